"""Where a number was measured: the source tree, the command and the machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingflash.core.processor import cpu_name, processor


@dataclass(frozen=True, slots=True)
class SourceState:
    """The commit that runs.

    Args:
        commit: full hash, or "unknown" outside a git checkout.
        dirty: whether files under src/ differ from it, or it is unknown.
    """

    commit: str
    dirty: bool


def source_state() -> SourceState:
    """Ask git about the tree that this package was imported from."""
    src = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(src), *args], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        return SourceState("unknown", True)
    return SourceState(commit, bool(changes))


def command_line() -> str:
    """The command as it was typed, without the folders of the program and of the files it wrote."""
    program = Path(sys.argv[0]).with_suffix("")
    start = ["ling"]
    if "lingflash" in program.parts:
        package = len(program.parts) - 1 - program.parts[::-1].index("lingflash")
        start = ["python", "-m", ".".join(program.parts[package:]).removesuffix(".__main__")]
    words = [
        Path(word).name if word.endswith((".json", ".jsonl")) else word for word in sys.argv[1:]
    ]
    return shlex.join([*start, *words])


def describe_machine() -> dict[str, Any]:
    """CPU, class of its kernels that run, cores, memory and system."""
    return {
        "cpu": cpu_name(),
        "cpu_class": processor().used,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory of a process that no file backs (RssAnon); mapped checkpoint pages do not count.

    Raises:
        OSError: there is no such process, or its system does not tell.
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no RssAnon; this needs Linux 4.5 or later")


@dataclass(frozen=True, slots=True)
class CpuClock:
    """Processor time used up to now, by everything and by this process with its ended children."""

    wall_s: float
    busy_s: float
    own_s: float

    @classmethod
    def now(cls) -> CpuClock | None:
        """Read it; None where the system does not tell."""
        try:
            first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, *_ = map(int, first.split()[1:])
        busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        return cls(time.monotonic(), busy, sum(os.times()[:4]))


def others_busy_cores(start: CpuClock | None) -> float | None:
    """Cores that other programs kept busy since `start`, on average: how quiet the machine was."""
    end = CpuClock.now()
    if start is None or end is None or end.wall_s <= start.wall_s:
        return None
    others = (end.busy_s - start.busy_s) - (end.own_s - start.own_s)
    return round(max(others, 0.0) / (end.wall_s - start.wall_s), 2)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
