"""tl.dot and casts to few digits for all kernels, in forms that Triton's interpreter can do too."""

# Casts with bitcast and widths are on Triton's own values, which pyright takes for numbers.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

# The interpreter keeps bfloat16 and FP8 as integers and would multiply those.
_WIDEN = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def dot(a, b, total):
    """total + a b, accumulated in float32; without TF32."""
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def to_bf16(x):
    """Round float32 or float16 to the nearest bfloat16 number, ties to even; bfloat16 stays."""
    if _WIDEN and x.dtype != tl.bfloat16:
        # The interpreter cuts digits off, so it gets numbers that have none.
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(tl.bfloat16)


@triton.jit
def to_fp8(x):
    """Round float32 within +-448 to the nearest e4m3 number, ties to even."""
    if _WIDEN:
        # The interpreter loses the carry into the exponent, so it gets numbers already rounded:
        # to 4 significant bits, or to multiples of 2^-9 where e4m3 has no smaller exponent.
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000
        rounded = bits.to(tl.float32, bitcast=True)
        small = (x + 24576.0) - 24576.0
        x = tl.where(tl.abs(x) < 0.015625, small, rounded)
    return x.to(tl.float8e4nv)
