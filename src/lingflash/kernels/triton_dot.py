"""tl.dot for all kernels: float32 stays float32, and the interpreter can do bfloat16 too."""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

# The interpreter keeps bfloat16 as integers and would multiply those.
_WIDEN = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def dot(a, b, total):
    """total + a b, accumulated in float32; without TF32."""
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
