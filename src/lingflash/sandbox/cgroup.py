"""Control groups, where the server may make some: memory, processes and CPU time of a sandbox.

With version 1, root makes a folder `lingflash-sandbox` in each hierarchy, which stays, and gives
it to the user that it becomes. With version 2 the server's own group must have been delegated to
it, as `systemd-run --user --scope -p Delegate=yes` does. The folders below are named for the
server's process, so that a later one can tell which were left behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from lingflash.sandbox.jail.limits import Limits

_ROOT = Path("/sys/fs/cgroup")
_V1_PARENTS = tuple(_ROOT / each / "lingflash-sandbox" for each in ("memory", "pids", "cpuacct"))
_NAME = re.compile(r"server-(\d+)-(\d+)")
_OVERHEAD_BYTES = 64 << 20  # of the supervisor and of what the kernel keeps for the sandbox
_OVERHEAD_PROCESSES = 4
_REMOVE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where the groups of sandboxes are made.

    Args:
        version: of the interface.
        folders: this server's, one for each hierarchy.
    """

    version: int
    folders: tuple[Path, ...]

    def make(self, name: str, limits: Limits) -> list[Path]:
        """Make a sandbox's group.

        Returns:
            Its folders.

        Raises:
            OSError: the kernel refused.
        """
        made = [folder / name for folder in self.folders]
        memory = limits.memory_bytes + limits.disk_bytes + _OVERHEAD_BYTES
        values = {
            "memory.limit_in_bytes": memory,
            "memory.max": memory,
            "memory.swap.max": 0,
            "pids.max": limits.processes + _OVERHEAD_PROCESSES,
        }
        for folder in made:
            folder.mkdir()
            for file, value in values.items():
                with contextlib.suppress(FileNotFoundError):
                    _write(folder / file, value)
        return made

    def cpu_s(self, name: str) -> float:
        """CPU seconds of all that ever ran in a sandbox's group; 0 if it is gone."""
        with contextlib.suppress(OSError):
            if self.version == 2:
                lines = (self.folders[0] / name / "cpu.stat").read_text(encoding="ascii").split()
                return int(lines[lines.index("usage_usec") + 1]) / 1e6
            return int((self.folders[-1] / name / "cpuacct.usage").read_text()) / 1e9
        return 0.0

    def remove(self, name: str) -> None:
        """Remove a sandbox's group, all of whose processes are ending."""
        for folder in self.folders:
            _remove(folder / name)

    def close(self) -> None:
        """Remove what is left."""
        for folder in self.folders:
            _remove_tree(folder)


def give(uid: int, gid: int) -> None:
    """As root: let a user make groups of version 1."""
    if (_ROOT / "cgroup.controllers").exists():
        return
    with contextlib.suppress(OSError):
        for folder in _V1_PARENTS:
            folder.mkdir(exist_ok=True)
            for path in (folder, folder / "cgroup.procs", folder / "tasks"):
                os.chown(path, uid, gid)


def prepare() -> Cgroups | None:
    """Make this server's folders, or None where that cannot be done."""
    name = f"server-{os.getpid()}-{_start_time(os.getpid())}"
    if (_ROOT / "cgroup.controllers").exists():
        return _prepare_v2(name)
    return _prepare_v1(name)


def sweep() -> int:
    """Remove the folders of servers that are gone.

    Returns:
        How many there were.
    """
    count = 0
    for parent in _parents():
        for folder in _children(parent):
            if (match := _NAME.fullmatch(folder.name)) is None:
                continue
            pid, start = match.groups()
            if _start_time(int(pid)) != start:
                _remove_tree(folder)
                count += 1
    return count


def _parents() -> list[Path]:
    own = _own_group()
    return [*_V1_PARENTS, *([own.parent, own] if own else [])]


def _own_group() -> Path | None:
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            number, _, path = line.rstrip("\n").split(":", 2)
            if number == "0" and (_ROOT / "cgroup.controllers").exists():
                return _ROOT / path.lstrip("/")
    return None


def _prepare_v1(name: str) -> Cgroups | None:
    folders = [parent / name for parent in _V1_PARENTS]
    try:
        for folder in folders:
            folder.mkdir()
    except OSError:
        for folder in folders:
            _remove(folder)
        return None
    return Cgroups(1, tuple(folders))


def _prepare_v2(name: str) -> Cgroups | None:
    """Put the server into a leaf of its own group, as version 2 wants it, and others beside it."""
    own = _own_group()
    if own is None:
        return None
    try:
        available = (own / "cgroup.controllers").read_text().split()
        if not {"memory", "pids"} <= set(available):
            return None
        leaf = own / f"{name}-server"
        leaf.mkdir()
        _write(leaf / "cgroup.procs", os.getpid())
        folder = own / name
        folder.mkdir()
        for parent in (own, folder):
            _write(parent / "cgroup.subtree_control", "+memory +pids")
    except OSError:
        return None
    return Cgroups(2, (folder,))


def _children(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in folder.iterdir() if path.is_dir()]
    return []


def _remove_tree(folder: Path) -> None:
    for child in _children(folder):
        _remove_tree(child)
    _remove(folder)


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _REMOVE_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except PermissionError:
            return
        except OSError:  # a process of it is not quite gone
            time.sleep(0.005)
        else:
            return


def _write(path: Path, value: object) -> None:
    fd = os.open(path, os.O_WRONLY)  # not open(): where it is not, it cannot be made either
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _start_time(pid: int) -> str:
    """When a process began, so that another with its number is told apart; "" if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""
