"""Tells of changes in a folder, by inotify, until it is killed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import stat
import struct

from lingflash.sandbox.inside.file_calls import absolute, entry

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("iIII")
_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO = 0x2, 0x4, 0x40, 0x80
_CREATE, _DELETE, _IS_DIR, _ONLY_DIR, _OVERFLOW = 0x100, 0x200, 0x40000000, 0x01000000, 0x4000
# A file moved out of a folder is "renamed", one moved in is "created", as fsnotify has them.
_KINDS = {
    _CREATE: "create",
    _MOVED_TO: "create",
    _MODIFY: "write",
    _DELETE: "remove",
    _MOVED_FROM: "rename",
    _ATTRIB: "chmod",
}
_MASK = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLY_DIR
_MAX_FOLDERS = 4096


def watch(path: str, recursive: bool, include_entry: bool) -> None:
    """Write a line of JSON for each change; the first line is {} once it watches."""
    top = absolute(path)
    if not stat.S_ISDIR(os.stat(top).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder")
    inotify = _libc.inotify_init1(os.O_CLOEXEC)
    if inotify < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    folders: dict[int, str] = {}
    _add(inotify, folders, top, recursive)
    os.write(1, b"{}\n")
    hung_up = select.poll()
    hung_up.register(inotify, select.POLLIN)
    hung_up.register(1, 0)  # nobody reads any more
    while True:
        ready = dict(hung_up.poll())
        if 1 in ready:
            return
        for kind, found in _events(inotify, folders):
            if recursive and kind == "create" and os.path.isdir(found):
                _add(inotify, folders, found, recursive)
            told: dict[str, object] = {"name": os.path.relpath(found, top), "kind": kind}
            if include_entry:
                with contextlib.suppress(OSError):  # gone again
                    told["entry"] = entry(found)
            os.write(1, json.dumps(told).encode() + b"\n")


def _events(inotify: int, folders: dict[int, str]) -> list[tuple[str, str]]:
    data = os.read(inotify, 1 << 16)
    found = []
    while data:
        watch_id, mask, _, size = _EVENT.unpack_from(data)
        name = os.fsdecode(data[_EVENT.size : _EVENT.size + size].rstrip(b"\0"))
        data = data[_EVENT.size + size :]
        if name and watch_id in folders:
            found += [
                (kind, os.path.join(folders[watch_id], name))
                for bit, kind in _KINDS.items()
                if mask & bit
            ]
    return found


def _add(inotify: int, folders: dict[int, str], top: str, recursive: bool) -> None:
    for folder, _, _ in os.walk(top):
        if len(folders) >= _MAX_FOLDERS:
            raise OSError(errno.ENOSPC, f"more than {_MAX_FOLDERS} folders to watch")
        watch_id = _libc.inotify_add_watch(inotify, os.fsencode(folder), _MASK)
        if watch_id < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        folders[watch_id] = folder
        if not recursive:
            return
