"""File operations as they are asked for from outside.

They run inside the jail as processes of their own, by the jail's own user: a symlink, a FIFO, a
device or a folder that is exchanged half-way is the jail's own affair, and a slow one holds up
nobody else. Output goes to descriptor 1, input comes from 0; an OSError becomes the answer.
"""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import shutil
import stat
from typing import Any

_CHUNK = 1 << 16
_MAX_ENTRIES = 20_000


def read(path: str) -> None:
    """Write a regular file's bytes to 1, its size before them as a line."""
    with _open_regular(path, os.O_RDONLY) as file:
        size = os.fstat(file.fileno()).st_size
        head = b"" if size else file.read(_CHUNK)  # files of /proc have none
        size = size or len(head)
        os.write(1, b"%d\n" % size)
        _write_all(head)
        size -= len(head)
        while size > 0 and (data := file.read(min(size, _CHUNK))):  # it may grow meanwhile
            _write_all(data)
            size -= len(data)


def write(path: str) -> None:
    """Make a regular file of what comes on 0, and the folders above it; say its entry."""
    path = absolute(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with _open_regular(path, os.O_WRONLY | os.O_CREAT) as file:
        os.ftruncate(file.fileno(), 0)
        while data := os.read(0, _CHUNK):
            file.write(data)
    _answer(entry(path))


def stat_path(path: str) -> None:
    """Say the entry of a path."""
    _answer(entry(absolute(path)))


def list_folder(path: str, depth: int) -> None:
    """Say the entries of a folder and of those in it, down to a depth."""
    top = absolute(path)
    if not stat.S_ISDIR(os.stat(top).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder")
    entries: list[dict[str, Any]] = []
    level = [top]
    for _ in range(depth):
        below: list[str] = []
        for folder in level:
            for name in sorted(os.listdir(folder)):
                found = os.path.join(folder, name)
                try:
                    entries.append(entry(found))
                except FileNotFoundError:
                    continue
                if len(entries) > _MAX_ENTRIES:
                    message = f"more than {_MAX_ENTRIES} entries; list a folder below, or less deep"
                    raise OSError(errno.E2BIG, message)
                if entries[-1]["type"] == "dir" and not entries[-1]["is_symlink"]:
                    below.append(found)
        level = below
    _answer(entries)


def make_folder(path: str) -> None:
    """Make a folder and those above it; EEXIST if it is there."""
    path = absolute(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        os.mkdir(path)
    except FileExistsError:
        kind = "folder" if os.path.isdir(path) else "file"
        raise FileExistsError(errno.EEXIST, f"there is a {kind} already") from None
    _answer(entry(path))


def move(source: str, destination: str) -> None:
    """Rename, making the folders above the new name."""
    source, destination = absolute(source), absolute(destination)
    os.lstat(source)
    os.makedirs(os.path.dirname(destination), exist_ok=True)
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:  # between /tmp and the home
            raise
        shutil.move(source, destination)
    _answer(entry(destination))


def remove(path: str) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing if it is not there."""
    path = absolute(path)
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            if not os.access(os.path.dirname(path), os.W_OK):
                # Or all that is in it would be gone before it is seen that it cannot go itself.
                raise PermissionError(errno.EACCES, "the folder that holds it cannot be changed")
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
    _answer({})


CALLS = {
    "read": read,
    "write": write,
    "stat": stat_path,
    "list": list_folder,
    "mkdir": make_folder,
    "move": move,
    "remove": remove,
}


def absolute(path: str) -> str:
    """A path as the caller means it: in the home if it does not begin with a slash."""
    if path == "~" or path.startswith("~/"):
        path = path[1:].lstrip("/")
    return os.path.normpath(os.path.join(os.environ.get("HOME", "/home/user"), path))


def entry(path: str) -> dict[str, Any]:
    """What there is at a path; of a link also what it points to, if that exists."""
    own = os.lstat(path)
    is_symlink = stat.S_ISLNK(own.st_mode)
    target = None
    status = own
    if is_symlink:
        target = os.path.realpath(path)
        try:
            status = os.stat(path)
        except OSError:
            status = own
    kind = "other"
    if stat.S_ISREG(status.st_mode):
        kind = "file"
    elif stat.S_ISDIR(status.st_mode):
        kind = "dir"
    elif stat.S_ISLNK(status.st_mode):
        kind = "symlink"
    return {
        "name": os.path.basename(path) or "/",
        "path": path,
        "type": kind,
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "permissions": stat.filemode(own.st_mode),
        "owner": _name(pwd.getpwuid, status.st_uid),
        "group": _name(grp.getgrgid, status.st_gid),
        "modified_ns": status.st_mtime_ns,
        "target": target,
        "is_symlink": is_symlink,
    }


def _name(look_up: Any, number: int) -> str:
    try:
        return look_up(number)[0]
    except KeyError:
        return str(number)


def _open_regular(path: str, flags: int) -> Any:
    # Non-blocking: to open a FIFO would else wait for its other end for ever.
    fd = os.open(absolute(path), flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, 0o644)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"it is {kind}")
    return os.fdopen(fd, "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "wb", buffering=0)


def _answer(value: Any) -> None:
    _write_all(json.dumps(value).encode())


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
