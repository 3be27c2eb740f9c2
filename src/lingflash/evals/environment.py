"""Python environments of the packages that carry a benchmark's data and scorer.

Their pins clash with ours and with each other's, so each has an environment in the user's cache,
made when it is first needed from its list in `packages/`: every package with its version, installed
without resolving anything.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lingflash.core.errors import LingflashError

PACKAGES = Path(__file__).parent / "packages"


def locked_versions(name: str) -> dict[str, str]:
    """What an environment holds, by package."""
    text = (PACKAGES / f"{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def cache_folder() -> Path:
    """Where environments and data lie."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lingflash" / "evals"


async def environment_python(name: str) -> Path:
    """The interpreter of an environment, which is made if it is not there.

    Raises:
        LingflashError: a package cannot be had; the message is pip's.
    """
    return await asyncio.to_thread(_install, name)


def _install(name: str) -> Path:
    lock = PACKAGES / f"{name}.txt"
    content = lock.read_bytes() + sys.version.encode()
    target = cache_folder() / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f"{name}.lock", "w", encoding="ascii") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (target / "done").exists():
            print(f"installing the packages of {name} into {target}", file=sys.stderr, flush=True)
            shutil.rmtree(target, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(target)], name)
            pip = [str(target / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
            _run([*pip, "install", "-q", "--no-deps", "-r", str(lock)], name)
            (target / "done").touch()
    return target / "bin/python"


def _run(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=1800
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LingflashError(f"The packages of {name} cannot be installed: {error}.") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).strip().splitlines()[-2:])
        raise LingflashError(
            f"The packages of {name} cannot be installed ({said}). pip needs a package index that "
            f"has what {PACKAGES / name}.txt lists."
        )


if __name__ == "__main__":
    for each in sorted(path.stem for path in PACKAGES.glob("*.txt")):
        print(_install(each))
