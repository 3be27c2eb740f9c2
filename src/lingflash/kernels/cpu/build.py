"""Compiles the C files on first use, with the machine's C compiler, into the user's cache folder.

A compiler is not required: without one, or if it fails, everything runs through torch alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

_SOURCES = [Path(__file__).with_name(name) for name in ("decode.c", "mla_run.c")]
# Sums may be reordered for vector units, but NaN and infinity keep their meaning.
_FLAGS = [
    "-O3", "-march=native", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math",
    "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math", "-pthread",
]  # fmt: skip
_TIMEOUT_S = 60


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "lingflash"


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({x for x in lines if x.startswith(("model name", "flags"))}))
    except OSError:
        return platform.processor()


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be built (said once in the log)."""
    if sys.platform != "linux":
        return None
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        log.info("no C compiler: everything runs through torch, which is slower")
        return None
    sources = b"".join(source.read_bytes() for source in _SOURCES)
    key = hashlib.sha256(
        sources + " ".join([compiler, *_FLAGS, _processor()]).encode()
    ).hexdigest()[:16]
    library = _cache_folder() / f"kernels-{key}.so"
    try:
        if not library.exists():
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", b"") or b""
        log.warning(
            "compiling %s failed (%s %s): everything runs through torch, slower",
            " and ".join(source.name for source in _SOURCES),
            error,
            output.decode(errors="replace").strip()[-300:],
        )
        return None


def _compile(compiler: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        subprocess.run(
            [compiler, *_FLAGS, "-o", str(built), *map(str, _SOURCES), "-lm"],
            check=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
        # Two processes may build at once; a rename is all or nothing.
        built.replace(library)
