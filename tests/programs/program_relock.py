"""Writes lock files anew after a version was changed.

python tests/programs/program_relock.py LOCK ...

npm's locks leave out where each package came from, so that any registry will do. (npm's own switch
for that, omit-lockfile-registry-resolved, also loses packages of other platforms.)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv

from program_install import LOCKS


def relock_npm(name: str) -> None:
    """Resolve locks/NAME/package.json."""
    folder = LOCKS / name
    subprocess.run(
        ["npm", "install", "--package-lock-only", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=folder,
        check=True,
    )
    path = folder / "package-lock.json"
    lock = json.loads(path.read_text(encoding="utf-8"))
    for package in lock["packages"].values():
        for key in ("resolved", "funding"):
            package.pop(key, None)
    path.write_text(json.dumps(lock, indent=1) + "\n", encoding="utf-8")


def relock_pip(name: str) -> None:
    """Resolve what the first lines of locks/NAME.txt ask for, each after "#: "."""
    path = LOCKS / f"{name}.txt"
    asked = re.findall(r"^#: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        torch = [word for word in asked if word.startswith("torch==")]
        if torch:
            subprocess.run([*pip, "install", "-q", "--no-deps", *torch], check=True)
        subprocess.run([*pip, "install", "-q", *asked], check=True)
        frozen = subprocess.run(
            [*pip, "freeze", "--exclude", "setuptools"], check=True, capture_output=True, text=True
        ).stdout
    # A CPU build is the same version to whoever reads the lock.
    frozen = re.sub(r"^(torch==[0-9.]+)\+cpu", r"\1", frozen, flags=re.MULTILINE)
    path.write_text("".join(f"#: {word}\n" for word in asked) + frozen, encoding="utf-8")


if __name__ == "__main__":
    for lock_name in sys.argv[1:]:
        (relock_npm if (LOCKS / lock_name).is_dir() else relock_pip)(lock_name)
