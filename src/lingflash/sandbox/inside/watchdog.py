"""How much a jail uses, and the wall around its memory where no memory cgroup is one."""

from __future__ import annotations

import os
import signal
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class Watchdog:
    """Looks at all processes of the namespace.

    Args:
        limit: bytes that they may have together; above, the largest is killed. None only counts.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.num_killed = 0

    def look(self) -> None:
        """Kill the largest process if there is too much memory in use."""
        if self._limit is None:
            return
        own = os.getpid()
        # A quick sum that counts shared pages once for each process; exact only if that is high.
        if sum(_resident(pid) for pid in _pids()) <= self._limit:
            return
        sizes = {pid: _exact(pid) for pid in _pids() if pid != own}
        if sizes and sum(sizes.values()) > self._limit:
            os.kill(max(sizes, key=lambda pid: sizes[pid]), signal.SIGKILL)
            self.num_killed += 1

    def usage(self) -> dict[str, Any]:
        """Memory, CPU time and disk now."""
        disk = os.statvfs("/tmp")
        return {
            "memory_bytes": sum(_exact(pid) for pid in _pids()),
            "cpu_s": sum(_cpu_s(pid) for pid in _pids()),
            "processes": len(_pids()),
            "disk_bytes": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "disk_inodes": disk.f_files - disk.f_ffree,
            "memory_kills": self.num_killed,
        }


def descendants(root: int) -> list[int]:
    """The processes below one, parents first."""
    stats = {pid: _stat_fields(pid) for pid in _pids()}
    found = [root]
    for above in found:
        found += [pid for pid, fields in stats.items() if fields and int(fields[1]) == above]
    return found[1:]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:  # it has ended, or hides
        return ""


def _resident(pid: int) -> int:
    """Anonymous and shared memory together with mapped files: never too little."""
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _exact(pid: int) -> int:
    """Its own share of what it has; all that it has if it hides."""
    rollup = _read(f"/proc/{pid}/smaps_rollup")
    sizes = {}
    for line in rollup.splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    if "Pss_Anon" in sizes:
        return sizes["Pss_Anon"] + sizes.get("Pss_Shmem", 0)
    return _resident(pid)


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _cpu_s(pid: int) -> float:
    fields = _stat_fields(pid)
    return sum(map(int, fields[11:15])) / _TICKS if fields else 0.0
