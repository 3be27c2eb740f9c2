"""Compile Triton kernels for Hopper on a machine without a GPU, and read what came out.

    python tests/hopper.py FILE.py FUNCTION     compile what FUNCTION launches, print a table

FUNCTION calls public kernel functions with CPU tensors of the shapes that matter; nothing is run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import jit
from triton.runtime.driver import driver

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTIONS = ("HGMMA", "QGMMA", "HMMA", "LDGSTS", "UTMALDG", "LDL", "STL", "I2F", "F2F")


class _HopperDriver:
    """As much of a driver as compiling asks for."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_for_hopper(launch: Callable[[], object]) -> list[tuple[str, object]]:
    """Names and compiled kernels of all Triton launches that `launch` makes, in order.

    Triton must not have been imported with TRITON_INTERPRET set.
    """
    found: list[tuple[str, object]] = []
    original = jit.JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel is not None:
            found.append((self.__name__, kernel))
        return kernel

    driver.set_active(_HopperDriver())
    jit.JITFunction.run = run
    try:
        launch()
    finally:
        jit.JITFunction.run = original
        driver._active = None
    return found


def describe(kernel) -> str:
    """Registers, spills, shared memory and the instructions that tell which path was taken."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])

        def dump(flag: str) -> str:
            command = [str(_BIN / "cuobjdump"), flag, str(cubin)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage, sass = dump("-res-usage"), dump("-sass")
    registers = re.search(r"REG:(\d+)", usage)
    stack = re.search(r"STACK:(\d+)", usage)
    names = Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", sass, re.M))
    seen = " ".join(f"{name} {names[name]}" for name in _INSTRUCTIONS if names[name])
    return (
        f"regs {registers[1] if registers else '?'} stack {stack[1] if stack else '?'} "
        f"smem {kernel.metadata.shared} warps {kernel.metadata.num_warps} "
        f"sass {sum(names.values())}: {seen}"
    )


def main(path: str, function: str) -> int:
    spec = importlib.util.spec_from_file_location("launches", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seen = set()
    for name, kernel in compile_for_hopper(getattr(module, function)):
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            print(f"{name}: {describe(kernel)}")
    return 0


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    sys.path.insert(0, str(Path(__file__).parent))
    raise SystemExit(main(sys.argv[1], sys.argv[2]))
