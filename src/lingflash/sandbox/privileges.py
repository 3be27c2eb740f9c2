"""How a server that root started becomes an ordinary user, for good."""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from lingflash.core.errors import ConfigError

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19


def check_user(user: str | None) -> None:
    """Refuse to stay root, and to become somebody else without being root.

    Raises:
        ConfigError: one of these, or the user is not there, or is root.
    """
    if os.getuid() != 0:
        if user is not None and user != own_name():
            raise ConfigError(f"--user {user} needs root; leave it out.", param="user")
        return
    if user is None:
        raise ConfigError(
            "The sandbox does not run as root: what gets out of a jail would be root on this "
            "host. Start it as an ordinary user, or give --user nobody (or another) to become "
            "that user once the port is open.",
            param="user",
        )
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"--user {user!r}: this host has no such user.", param="user") from None
    if entry.pw_uid == 0:
        raise ConfigError(f"--user {user!r} is root; allowed: another.", param="user")


def own_name() -> str:
    """This process's user, by number if it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def become(user: str, folders: Iterable[str]) -> None:
    """Turn this process, which is root's and has one thread, into another user's.

    A folder that the user could not reach, such as an interpreter below /root, is shown to it at
    the same place in a mount namespace of this process, and nothing else of what lies around it.

    Raises:
        ConfigError: the kernel lets this root do less than that.
    """
    entry = pwd.getpwnam(user)
    needed = [*folders, *_own_folders()]
    try:
        hidden = _unreachable(needed)
        if hidden:
            _show(hidden)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except OSError as error:
        raise ConfigError(
            f"--user {user}: this root may not become it ({error}). Start `ling sandbox` as an "
            "ordinary user, with Python and lingflash where it can read them.",
            param="user",
        ) from None
    for folder in needed:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise ConfigError(
                f"--user {user} cannot read {folder}; make it readable (chmod -R a+rX) or "
                "install lingflash elsewhere.",
                param="user",
            )


def _own_folders() -> list[str]:
    """What this process may still import."""
    package = str(Path(__file__).parent.parent.parent)
    folders = [sys.prefix, sys.base_prefix, package, *sys.path]
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def _unreachable(folders: Iterable[str]) -> dict[str, list[str]]:
    """The folders that others may not enter, with those that are needed below each."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        real = os.path.realpath(folder)
        for above in reversed(Path(real).parents):
            if not os.stat(above).st_mode & stat.S_IXOTH:
                below = found.setdefault(str(above), [])
                if real not in below:
                    below.append(real)
                break
    return found


def _show(hidden: dict[str, list[str]]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    def mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
        words = [None if word is None else word.encode() for word in (source, target, kind, data)]
        check(libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]), f"mount {target}")

    check(libc.unshare(_CLONE_NEWNS), "unshare")
    mount("none", "/", None, _MS_REC | _MS_SLAVE, None)
    for above, below in hidden.items():
        opened = {folder: os.open(folder, os.O_PATH) for folder in sorted(below, key=len)}
        mount("tmpfs", above, "tmpfs", 0, "size=1m,mode=0755")
        for folder, fd in opened.items():
            if not os.path.isdir(folder):  # else it lies in one that is shown already
                os.makedirs(folder)
                mount(f"/proc/self/fd/{fd}", folder, None, _MS_BIND | _MS_REC, None)
            os.close(fd)
