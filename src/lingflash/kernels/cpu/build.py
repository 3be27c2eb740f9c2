"""Compiles the C files on first use, with the machine's C compiler, into the user's cache folder.

A compiler is not required: without one, or if it fails, everything runs through torch alone. For
which class of processor it compiles, `core/processor.py` says.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from lingflash.core.processor import CpuClass, Processor, processor

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_SOURCES = [_HERE / name for name in ("decode.c", "mla_run.c", "mla_vectors.c", "packed.c")]
_HEADERS = [_HERE / "vectors.h"]
# Sums may be reordered for vector units, but NaN and infinity keep their meaning.
_FLAGS = [
    "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math",
    "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math", "-pthread",
]  # fmt: skip
# Of a class below the processor's own: what the best one of that class would get.
_BELOW: dict[CpuClass, list[str]] = {
    "avx512": ["-march=native", "-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16"],
    "avx2": ["-march=x86-64-v3", "-mtune=native"],
    "plain": ["-march=x86-64", "-mtune=native"],
}
_TIMEOUT_S = 120


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "lingflash"


def _flags_for(cpu: Processor) -> list[str]:
    return [*_FLAGS, *(["-march=native"] if cpu.used == cpu.best else _BELOW[cpu.used])]


def load_library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be built (said once in the log)."""
    return _built()[0]


def why_no_library() -> str:
    """Why load_library gave None; empty if it did not."""
    return _built()[1]


@lru_cache(maxsize=1)
def _built() -> tuple[ctypes.CDLL | None, str]:
    if sys.platform != "linux":
        return None, f"on {sys.platform} nothing is compiled"
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        log.info("no C compiler: everything runs through torch, which is slower")
        return None, "no C compiler (cc, gcc or clang)"
    cpu = processor()
    flags = _flags_for(cpu)
    sources = b"".join(source.read_bytes() for source in _SOURCES + _HEADERS)
    # What -march=native depends on.
    told = [compiler, *flags, cpu.name, *sorted(cpu.flags)]
    key = hashlib.sha256(sources + " ".join(told).encode()).hexdigest()[:16]
    library = _cache_folder() / f"kernels-{key}.so"
    try:
        if not library.exists():
            _compile([compiler, *flags], library)
        return ctypes.CDLL(str(library)), ""
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", b"") or b""
        last = output.decode(errors="replace").strip()[-300:]
        log.warning(
            "compiling %s failed (%s %s): everything runs through torch, slower",
            ", ".join(source.name for source in _SOURCES),
            error,
            last,
        )
        return None, f"{compiler} failed: {last or error}"


def _compile(command: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        subprocess.run(
            [*command, "-o", str(built), *map(str, _SOURCES), "-lm"],
            check=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
        # Two processes may build at once; a rename is all or nothing.
        built.replace(library)
