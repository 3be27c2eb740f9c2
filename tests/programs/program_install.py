"""Installs the programs that tests/programs runs, once per lock file, into the user's cache.

python tests/programs/program_install.py [LOCK ...]     `make programs` runs it for all

A lock is a folder of locks/ for npm, or a .txt file for pip. TORCH_CPU_INDEX may name where
torch's CPU builds are published, SKIP_PROGRAMS the locks that no registry here gives.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).parent / "locks"
# Not `npm ci`: it wants optional packages of all platforms in the lock, and not every registry has
# them. With a lock `npm install` takes the same versions.
_NPM = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]


class NotInstalledError(Exception):
    """A registry did not give a program; the message is the installer's."""


def lock_names() -> list[str]:
    """All that can be installed."""
    return sorted({path.stem for path in LOCKS.iterdir()})


def install(name: str) -> Path:
    """Install what a lock names, if it is not there.

    Returns:
        The folder of its commands.

    Raises:
        NotInstalledError: it cannot be had.
    """
    is_npm = (LOCKS / name).is_dir()
    lock = LOCKS / name / "package-lock.json" if is_npm else LOCKS / f"{name}.txt"
    content = lock.read_bytes() + (b"" if is_npm else sys.version.encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lingflash/programs"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    with open(root / f"{name}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (target / "done").exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            (_install_npm if is_npm else _install_pip)(lock, target)
            (target / "done").touch()
    return target / ("node_modules/.bin" if is_npm else "bin")


def _install_npm(lock: Path, target: Path) -> None:
    for file in (lock, lock.with_name("package.json")):
        shutil.copy(file, target)
    _run(_NPM, target)


def _install_pip(lock: Path, target: Path) -> None:
    _run([sys.executable, "-m", "venv", str(target)], target)
    pip = [str(target / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    # torch comes first and alone, as in the Makefile: a CPU build, without the CUDA packages.
    torch = re.search(r"^torch==\S+", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if torch:
        index = os.environ.get("TORCH_CPU_INDEX")
        extra = ["--retries", "1", "--extra-index-url", index] if index else []
        _run([*pip, "--no-deps", *extra, torch.group()], target)
    # The lock names every package, so nothing is left to resolve.
    _run([*pip, "--no-deps", "-r", str(lock)], target)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=900
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalledError(str(error)) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise NotInstalledError(f"{' '.join(command)}: {said[-1500:]}")


if __name__ == "__main__":
    skipped = os.environ.get("SKIP_PROGRAMS", "").split()
    for lock_name in sys.argv[1:] or [name for name in lock_names() if name not in skipped]:
        print(f"{lock_name}: ", end="", flush=True)
        try:
            print(install(lock_name))
        except NotInstalledError as error:
            sys.exit(f"cannot be installed: {error}")
