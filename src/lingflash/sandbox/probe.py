"""Before the server starts: one jail, in which every wall is tried; it refuses to start without.

What a host forbids is named with what to change there, as far as the host says it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lingflash.core.errors import ConfigError, SandboxError, SandboxGoneError
from lingflash.sandbox.box import Box, JailKind
from lingflash.sandbox.jail.argv import (
    Interpreter,
    entry_code,
    environment,
    outside_usr,
)
from lingflash.sandbox.jail.limits import Limits
from lingflash.sandbox.jail.seccomp import probe_calls
from lingflash.sandbox.process import End

_MIB = 2**20
# Small, so that all of them can be reached in a moment.
PROBE_LIMITS = Limits(
    memory_bytes=96 * _MIB,
    disk_bytes=8 * _MIB,
    disk_inodes=200,
    processes=16,
    cpu_s=30,
    output_bytes=_MIB,
)
_ASK = (
    "import json, sys; from importlib.util import find_spec; "
    "print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, sys.version_info[:2], "
    "bool(find_spec('ipykernel'))]))"
)
_SYSCTLS = (
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor keeps ordinary programs from user namespaces here. Allow bubblewrap alone: write "
        "'abi <abi/4.0>, include <tunables/global> profile bwrap /usr/bin/bwrap "
        "flags=(unconfined) { userns, }' to /etc/apparmor.d/bwrap and run `apparmor_parser -r "
        "/etc/apparmor.d/bwrap`; or, for all programs, "
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`.",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "User namespaces are off: `sysctl kernel.unprivileged_userns_clone=1`.",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "User namespaces are off: `sysctl user.max_user_namespaces=15000`.",
    ),
)


def find_bwrap() -> str:
    """Where bubblewrap is.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise ConfigError(
            "bubblewrap is not installed: `apt-get install bubblewrap` or `dnf install bubblewrap`."
        )
    return found


def find_interpreter(python: Path | None, *, needs_kernel: bool = True) -> Interpreter:
    """What a sandbox needs to see of an interpreter.

    Args:
        python: its path; this process's if None.
        needs_kernel: it must be able to run Jupyter kernels.

    Raises:
        ConfigError: it cannot be run, is too old, or lacks ipykernel.
    """
    path = str(python or sys.executable)
    try:
        said = subprocess.run(
            [path, "-E", "-s", "-c", _ASK], capture_output=True, text=True, timeout=30, check=True
        ).stdout
        executable, prefix, base, version, has_kernel = json.loads(said)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(f"--python {path} cannot be run: {error}.", param="python") from None
    if tuple(version) < (3, 10):
        found = ".".join(map(str, version))
        raise ConfigError(f"--python {path} is Python {found}; 3.10 is needed.", param="python")
    if needs_kernel and not has_kernel:
        raise ConfigError(
            f"--python {path} has no ipykernel, which run_code needs: "
            f"{path} -m pip install ipykernel, or give the --python of an environment with it.",
            param="python",
        )
    return Interpreter(executable, outside_usr([prefix, base]))


async def probe(kind: JailKind, cgroup: tuple[str, ...] = ()) -> None:
    """Start a jail and try its walls.

    Raises:
        ConfigError: it does not start, or a wall does not hold; with a remedy where one is known.
    """
    small = dataclasses.replace(kind, limits=PROBE_LIMITS)
    try:
        box = await Box.start(small, cgroup)
    except SandboxGoneError as error:
        raise ConfigError(f"{error.message}. {remedy(error.message)}") from None
    told = {
        "limits": dataclasses.asdict(PROBE_LIMITS),
        "calls": probe_calls(),
        "network": kind.network,
        "folders": kind.interpreter.folders,
        "variables": [*environment(kind.interpreter), "LC_CTYPE"],
    }
    parts = {1: b"", 2: b""}
    end: End | None = None
    try:
        argv = [kind.interpreter.path, "-E", "-s", "-S", "-B", "-c", entry_code("walls_probe")]
        argv.append(json.dumps(told))
        process = await box.spawn(argv)
        async for event in process.events():
            if isinstance(event, End):
                end = event
            else:
                parts[event.fd] += event.data
        open_walls = json.loads(parts[1])
    except (SandboxError, ValueError) as error:
        said = parts[2].decode(errors="replace")[-500:]
        raise ConfigError(
            f"The walls of a sandbox could not be tried: {error}, {end} {said}"
        ) from None
    finally:
        await box.end()
    if open_walls:
        names = "; ".join(f"{name}: {problem}" for name, problem in open_walls.items())
        raise ConfigError(f"A sandbox on this host would not hold, so none is started. {names}.")


def remedy(said: str) -> str:
    """What to change on a host where no jail starts, from what it forbids."""
    for path, value, advice in _SYSCTLS:
        try:
            if Path(path).read_text(encoding="ascii").strip() == value:
                return advice
        except OSError:
            continue
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return (
            "This is a container: start it with --security-opt seccomp=unconfined --security-opt "
            "apparmor=unconfined, or run the sandbox server on its host."
        )
    if "mount" in said or "proc" in said:
        return (
            "Mounts are refused: in a container /proc must not be masked (docker run "
            "--security-opt systempaths=unconfined), or run the sandbox server on its host."
        )
    return "See docs/sandbox.md for what a host must allow."
