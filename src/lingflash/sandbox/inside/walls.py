"""The walls that are built from inside, before the first foreign byte runs."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 32, 4096
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
HOME, DISK = "/home/user", "/run/disk"


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def build(config: dict[str, Any]) -> None:
    """Mount, write /etc, limit, drop, filter: in this order, and none of it can be undone.

    Args:
        config: `disk_bytes`, `disk_inodes`, `late_binds` (where to, what), `filter` (bytes).

    Raises:
        OSError: the kernel refused one; nothing may run then.
    """
    _mount_disk(config["disk_bytes"], config["disk_inodes"])
    for target, source in config["late_binds"].items():
        os.makedirs(target, exist_ok=True)
        _mount(source, target, None, _MS_BIND, None)
    _write_etc()
    read_only = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    _mount(None, "/", None, read_only, None)  # a tmpfs, on which the others are mounted
    os.nice(5)  # before the server's own requests everything here waits
    _drop_capabilities()
    # Whoever has our user id could else read and write our memory by way of /proc/1/mem.
    _prctl(_PR_SET_DUMPABLE, 0)
    program = config["filter"]
    fprog = _SockFprog(len(program) // 8, program)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog))
    os.chdir(HOME)


def show_in_proc() -> None:
    """Let a child of the supervisor be as visible as other processes: it holds nothing of ours."""
    _prctl(_PR_SET_DUMPABLE, 1)


def _mount_disk(num_bytes: int, num_inodes: int) -> None:
    """One tmpfs behind all that can be written, so that its limits hold for the sum."""
    options = f"size={num_bytes},nr_inodes={num_inodes},mode=0755"
    _mount("tmpfs", DISK, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    for name, mode, targets in (
        ("home", 0o755, (HOME,)),
        ("tmp", 0o1777, ("/tmp", "/var/tmp")),
        ("shm", 0o1777, ("/dev/shm",)),
    ):
        folder = f"{DISK}/{name}"
        os.mkdir(folder)
        os.chmod(folder, mode)
        for target in targets:
            _mount(folder, target, None, _MS_BIND, None)


def _write_etc() -> None:
    uid = os.getuid()
    files = {
        "passwd": f"user:x:{uid}:{uid}::{HOME}:/bin/bash\n",
        "group": f"user:x:{uid}:\n",
        "hosts": "127.0.0.1 localhost\n127.0.1.1 sandbox\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    os.makedirs("/etc", exist_ok=True)
    for name, text in files.items():
        with open(f"/etc/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _drop_capabilities() -> None:
    # The bounding set has been emptied by bubblewrap, but for the one capability that is held here
    # and that no_new_privs keeps every later program from.
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0))
    nothing = ctypes.create_string_buffer(struct.pack("<6I", *[0] * 6))
    _checked(_libc.capset(header, nothing), "capset")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = _libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3])
    _checked(result, f"mount {target}")


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(option, *padded), f"prctl {option}")


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
