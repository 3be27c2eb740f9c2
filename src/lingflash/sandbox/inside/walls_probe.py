"""Tries every wall of a jail from inside; the server starts only where all of them hold.

One argument, JSON: `limits`, and `calls`, numbers of system calls that must answer EPERM. Says a
JSON object of what got through, which is empty in a good jail.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER = 0x10000000
_PR_GET_NO_NEW_PRIVS, _PR_GET_SECCOMP = 39, 21


def main() -> None:
    """Try all walls."""
    told = json.loads(sys.argv[-1])
    open_walls: dict[str, str] = {}
    for name, attempt in _WALLS.items():
        try:
            problem = attempt(told)
        except Exception as error:  # a wall that could not be tried does not count as held
            problem = f"could not be tried: {type(error).__name__}: {error}"
        if problem:
            open_walls[name] = problem
    print(json.dumps(open_walls))


def _files(told: dict[str, Any]) -> str | None:
    for path in ("/", "/usr", "/etc", "/dev", "/opt", "/run", "/proc/sys/kernel"):
        try:
            with open(f"{path}/lingflash-probe", "w", encoding="ascii"):
                return f"{path} can be written to"
        except OSError:
            continue
    for path in ("/root", "/sys", "/boot", "/mnt", "/srv", "/etc/shadow"):
        if os.path.exists(path) and not any(f.startswith(f"{path}/") for f in told["folders"]):
            return f"{path} of the host can be seen"
    return None


def _descriptors(told: dict[str, Any]) -> str | None:
    others = [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 3]  # 3: the listing's own
    return f"descriptors {others} are open" if others else None


def _variables(told: dict[str, Any]) -> str | None:
    others = [name for name in os.environ if name not in told["variables"]]
    return f"variables {others} came along" if others else None


def _network(told: dict[str, Any]) -> str | None:
    if told["network"]:
        return None
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if others:
        return f"interfaces {others} are there"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("198.51.100.1", 9))  # a documentation address; nothing is sent
        except OSError:
            return None
    return "there is a route out"


def _processes_of_host(told: dict[str, Any]) -> str | None:
    with open("/proc/1/cmdline", "rb") as file:
        if b"inside.supervisor" not in file.read():
            return "the host's processes can be seen"
    for name in ("root", "environ", "mem", "fd"):
        try:
            os.listdir(f"/proc/1/{name}") if name in ("root", "fd") else open(f"/proc/1/{name}")  # noqa: SIM115
        except OSError:
            continue
        return f"/proc/1/{name} can be opened"
    return None


def _privileges(told: dict[str, Any]) -> str | None:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        if int(fields[name], 16):
            return f"{name} is {fields[name]}"
    if fields.get("NoNewPrivs") != "1":
        return "a set-uid program would give privileges"
    if fields.get("Seccomp") != "2":
        return "there is no filter of system calls"
    return None


def _namespaces(told: dict[str, Any]) -> str | None:
    return None if _libc.unshare(_CLONE_NEWUSER) else "a user namespace can be made"


def _system_calls(told: dict[str, Any]) -> str | None:
    for name, number in told["calls"].items():
        ctypes.set_errno(0)
        result = _libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
        if result != -1 or ctypes.get_errno() != errno.EPERM:
            return f"{name} answers {result}, {errno.errorcode.get(ctypes.get_errno())}"
    return None


def _disk(told: dict[str, Any]) -> str | None:
    limit = told["limits"]["disk_bytes"]
    chunk, written = bytes(1 << 20), 0
    folders = ("/home/user", "/tmp", "/dev/shm")
    try:
        for folder in folders:
            with open(f"{folder}/probe", "wb", buffering=0) as file:
                try:
                    while written <= limit:
                        written += file.write(chunk)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EFBIG):
                        return f"writing fails otherwise: {error}"
        return None if written <= limit else f"{written} bytes were written"
    finally:
        for folder in folders:
            os.unlink(f"{folder}/probe")


def _inodes(told: dict[str, Any]) -> str | None:
    limit = told["limits"]["disk_inodes"]
    made = []
    try:
        for number in range(limit + 1):
            os.mkdir(f"/tmp/probe{number}")
            made.append(f"/tmp/probe{number}")
    except OSError as error:
        return None if error.errno == errno.ENOSPC else f"making files fails otherwise: {error}"
    finally:
        for path in made:
            os.rmdir(path)
    return f"{limit + 1} files were made"


def _process_count(told: dict[str, Any]) -> str | None:
    limit = told["limits"]["processes"]
    children = []
    try:
        for _ in range(limit + 1):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    except OSError:
        return None
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return f"{len(children)} processes were started"


def _memory(told: dict[str, Any]) -> str | None:
    limit = told["limits"]["memory_bytes"] + told["limits"]["disk_bytes"] + (128 << 20)
    for kind, flags in (("private", mmap.MAP_PRIVATE), ("shared", mmap.MAP_SHARED)):
        if not _is_stopped(lambda flags=flags: _touch(limit, flags)):
            return f"{limit} bytes of {kind} memory could be had"
    return None


def _touch(limit: int, flags: int) -> None:
    held = []
    for _ in range(0, limit, 1 << 22):
        held.append(mmap.mmap(-1, 1 << 22, flags | mmap.MAP_ANONYMOUS))
        for page in range(0, 1 << 22, mmap.PAGESIZE):
            held[-1][page] = 1
    time.sleep(2)  # a watchdog may need a moment to notice


def _is_stopped(attempt: Callable[[], None]) -> bool:
    """Whether something is refused, or its process is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        except (OSError, MemoryError):
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] != 0


_WALLS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "files": _files,
    "descriptors": _descriptors,
    "variables": _variables,
    "network": _network,
    "processes of the host": _processes_of_host,
    "privileges": _privileges,
    "namespaces": _namespaces,
    "system calls": _system_calls,
    "disk": _disk,
    "inodes": _inodes,
    "process count": _process_count,
    "memory": _memory,
}
