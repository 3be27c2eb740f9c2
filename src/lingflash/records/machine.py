"""Where a number was measured: the source tree, the machine, and what it can do at most."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Square float32 product for the matrix rate, and bytes of the copied buffer: beyond the caches.
_MATMUL_SIZE = 2048
_COPY_BYTES = 256 * 2**20


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
    program = Path(sys.argv[0])
    start = ["ling"]
    if program.suffix == ".py" and "lingflash" in program.parts:
        package = len(program.parts) - 1 - program.parts[::-1].index("lingflash")
        start = ["python", "-m", ".".join(program.with_suffix("").parts[package:])]
    words = [Path(word).name if word.endswith(".json") else word for word in sys.argv[1:]]
    return shlex.join([*start, *words])


def describe_machine() -> dict[str, Any]:
    """CPU, cores, memory and system."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


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


def _cpu_name() -> str:
    family: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            family.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or "unknown"
    name = family.get("model name", "unknown")
    flags = family.get("flags", "").split()
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    place = f"family {family.get('cpu family')} model {family.get('model')}"
    return f"{name} ({place}{', ' if wide else ''}{' '.join(wide)})"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(slots=True)
class Ceilings:
    """Rates that bound what is measured, sampled in the same run, between the measurements."""

    matmul_gflop_per_s: list[float] = field(default_factory=list)
    copy_gb_per_s: list[float] = field(default_factory=list)

    def sample(self) -> None:
        """Take one sample of each; needs torch, uses its present number of threads."""
        import torch

        a = torch.ones(_MATMUL_SIZE, _MATMUL_SIZE)
        b = torch.ones(_MATMUL_SIZE, _MATMUL_SIZE)
        out = torch.empty(_MATMUL_SIZE, _MATMUL_SIZE)
        if not self.matmul_gflop_per_s:
            torch.mm(a, b, out=out)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds = time.perf_counter() - start
        self.matmul_gflop_per_s.append(2e-9 * _MATMUL_SIZE**3 / seconds)
        source = torch.ones(_COPY_BYTES, dtype=torch.uint8)
        target = torch.zeros(_COPY_BYTES, dtype=torch.uint8)
        start = time.perf_counter()
        target.copy_(source)
        seconds = time.perf_counter() - start
        # Read once and written once.
        self.copy_gb_per_s.append(2e-9 * _COPY_BYTES / seconds)

    def as_dict(self) -> dict[str, Any]:
        """Median and samples of each, with what was measured."""
        return {
            "matmul_gflop_per_s": {
                "what": f"torch.mm, float32, {_MATMUL_SIZE} x {_MATMUL_SIZE} x {_MATMUL_SIZE}",
                "median": _round(statistics.median(self.matmul_gflop_per_s)),
                "samples": [_round(x) for x in self.matmul_gflop_per_s],
            },
            "copy_gb_per_s": {
                "what": f"copy of {_COPY_BYTES >> 20} MiB, bytes read plus bytes written",
                "median": _round(statistics.median(self.copy_gb_per_s)),
                "samples": [_round(x) for x in self.copy_gb_per_s],
            },
        }


def _round(value: float) -> float:
    return float(f"{value:.5g}")
