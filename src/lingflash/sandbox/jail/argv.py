"""The bubblewrap command line that makes the namespaces and what can be seen in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CODE = "/opt/sandbox"
"""Where our own code for the inside lies in a jail."""
BIN = "/opt/bin"
UID = 1000
OWN_FOLDERS = ("/home/user", "/tmp", "/var/tmp", "/dev/shm")
"""Where a jail can write; nothing of the host's shows there."""
_HOST = "/opt/host"
_INSIDE = Path(__file__).parent.parent / "inside"
# Programs, their libraries, and what these look up. Nothing else of the host's /etc.
_SYSTEM = ("/usr",)
_ETC = (
    "/etc/alternatives",
    "/etc/fonts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/ssl/certs",
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEV_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_LINKS = ("bin", "sbin", "lib", "lib64", "lib32", "libx32")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python of a jail.

    Args:
        path: of its executable.
        folders: what it needs outside of /usr, to be seen at the same place.
    """

    path: str
    folders: tuple[str, ...]


def jail_argv(bwrap: str, interpreter: Interpreter, channel: int, *, network: bool) -> list[str]:
    """The command of a jail.

    The supervisor starts with CAP_SYS_ADMIN over the jail's own namespaces: it mounts what has
    limits that bubblewrap cannot set, then gives the capability away (`inside/walls.py`).

    Args:
        channel: an open descriptor, the supervisor's end of a socket pair.
        network: keep the host's network.
    """
    argv = [
        bwrap,
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts"),
        "--unshare-cgroup-try",
        *(() if network else ("--unshare-net",)),
        *("--hostname", "sandbox", "--uid", str(UID), "--gid", str(UID)),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"),
        *("--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"),
    ]
    for folder in _SYSTEM:
        argv += ["--ro-bind", folder, folder]
    for name in _LINKS:
        path = Path("/", name)
        if path.is_symlink():
            argv += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            argv += ["--ro-bind", str(path), str(path)]
    for path in (*_ETC, *(("/etc/resolv.conf",) if network else ())):
        argv += ["--ro-bind-try", path, path]
    argv += ["--proc", "/proc"]
    # Not --dev: for its terminals bubblewrap would need a second user namespace, in which the
    # supervisor could mount nothing.
    for name in _DEVICES:
        argv += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in _DEV_LINKS.items():
        argv += ["--symlink", target, f"/dev/{name}"]
    late = late_binds(interpreter)
    for folder in interpreter.folders:
        argv += ["--ro-bind", folder, late.get(folder, folder)]
    argv += [
        *("--ro-bind", str(_INSIDE), f"{CODE}/lingflash/sandbox/inside"),
        *("--symlink", interpreter.path, f"{BIN}/python"),
        *(word for folder in (*OWN_FOLDERS, "/run/disk") for word in ("--dir", folder)),
        *("--chdir", "/"),
        *(
            "--",
            _early_path(interpreter, late),
            "-E",
            "-s",
            "-S",
            "-B",
            "-c",
            entry_code("supervisor"),
        ),
        str(channel),
    ]
    return argv


def entry_code(module: str) -> str:
    """Python for `-c` in a jail: the `main` of a module of `inside/`."""
    imports = f"from lingflash.sandbox.inside.{module} import main"
    return f"import sys; sys.path.insert(0, {CODE!r}); {imports}; main()"


def late_binds(interpreter: Interpreter) -> dict[str, str]:
    """Folders that lie where a jail mounts its own disk, with where they are shown until then."""
    return {
        folder: f"{_HOST}/{number}"
        for number, folder in enumerate(interpreter.folders)
        if any(f"{folder}/".startswith(f"{own}/") for own in OWN_FOLDERS)
    }


def _early_path(interpreter: Interpreter, late: dict[str, str]) -> str:
    """The interpreter itself, without a virtual environment, where it can be seen at first."""
    path = os.path.realpath(interpreter.path)
    for folder, shown in late.items():
        if path.startswith(f"{folder}/"):
            return shown + path.removeprefix(folder)
    return path


def environment(interpreter: Interpreter) -> dict[str, str]:
    """The variables of every process in a jail; nothing of the server's."""
    own = os.path.dirname(interpreter.path)
    return {
        "PATH": f"{own}:{BIN}:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/home/user",
        "USER": "user",
        "LOGNAME": "user",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def outside_usr(folders: Sequence[str]) -> tuple[str, ...]:
    """Those that a jail does not see anyway, without repetition and without ones inside others."""
    kept: list[str] = []
    for folder in sorted({os.path.realpath(each) for each in folders} | set(folders)):
        if folder == "/usr" or folder.startswith("/usr/"):
            continue
        if not any(folder == other or folder.startswith(other + "/") for other in kept):
            kept.append(folder)
    return tuple(kept)
