"""Which compiled kernels this process runs on the CPU, and why; for people."""

from __future__ import annotations

import ctypes

from lingflash.core.processor import processor
from lingflash.kernels.cpu.build import load_library, why_no_library
from lingflash.kernels.cpu.mla_run import has_tiles
from lingflash.kernels.cpu.packed import DIGITS


def describe_kernels() -> list[str]:
    """A line for each kind of work; compiles the kernels if that was not done before."""
    library = load_library()
    if library is None:
        return [f"torch alone, which is slower: {why_no_library()}"]
    lanes = library.ling_lanes()
    cpu = processor()
    if has_tiles():
        prefix = "AMX tiles"
    elif cpu.used == "amx":
        prefix = f"float32 vectors of {lanes} (the system or the compiler refuses AMX tiles)"
    else:
        prefix = f"float32 vectors of {lanes} (AMX tiles are for amx)"
    return [
        f"compiled for {cpu.used}, vectors of {lanes} numbers",
        "one token of one sequence: C",
        f"new tokens over a long prefix: {prefix}",
        f"packed INT4 and FP8: {_packed(library)}",
    ]


def _packed(library: ctypes.CDLL) -> str:
    if not library.ling_has_products():
        return "turned into numbers at every use (in place from avx2 on)"
    way = "with VNNI" if library.ling_has_byte_sums() else "without VNNI"
    return f"in place, {way}, activations for INT4 in {8 * DIGITS} bits"
