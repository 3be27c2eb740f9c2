"""INT4 weights on the GPU: from words of eight nibbles to numbers, without moving them.

Weights multiply activations in `nibble_order`, so that a word's eight values meet eight slices of
x. Source of the layout: quant/pack.py.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

__all__ = ["nibble", "nibble_order", "offset_nibble", "place_of"]

# The interpreter knows no assembly.
_INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
# Columns whose order is changed together: 16 words of eight nibbles.
_NIBBLE_GROUP = tl.constexpr(128)


def nibble_order(width: int) -> Tensor:
    """Places of columns 0 .. width - 1 in the order that INT4 products read x: int64 [width].

    Within 128 columns, column 8 w + j goes to place 16 j + w.
    """
    column = torch.arange(width)
    within = column % 128
    return column - within + within % 8 * 16 + within // 8


@triton.jit
def place_of(column, NIBBLES: tl.constexpr):
    """Where a column of activations is kept: in nibble_order for INT4 weights."""
    if NIBBLES:
        within = column % _NIBBLE_GROUP
        return column - within + within % 8 * 16 + within // 8
    return column


@triton.constexpr_function
def _nibble_assembly(j: int, bf16: bool) -> str:
    """PTX that makes two numbers of nibble j of two words."""
    byte = j // 2
    shift = "shr.u32 t, t, 4; " if j % 2 else ""
    bits, kind = ("0x4300", "bf16") if bf16 else ("0x6400", "f16")
    offset = "0x4308" if bf16 else "0x6408"
    return (
        f"{{ .reg .b32 t, m; mov.b32 m, {offset}{offset[2:]};"
        f" prmt.b32 t, $1, $2, {byte + (byte + 4) * 256}; {shift}"
        f"lop3.b32 t, t, 0x000F000F, {bits}{bits[2:]}, 0xEA; sub.{kind}x2 $0, t, m; }}"
    )


@triton.jit
def nibble(words, j: tl.constexpr, BF16: tl.constexpr):
    """Value of nibble j as float16 or bfloat16, exact.

    1024 + (value + 8) is made by bits, since float16's last ten count ones; then 1032 is taken
    off. In bfloat16 it is 128 and 136. Two words at once: one byte of each is put in place, masked
    and filled in, subtracted.
    """
    if _INTERPRETED:
        number = ((words >> (4 * j)) & 0xF).to(tl.float32) - 8.0
        return number.to(tl.bfloat16 if BF16 else tl.float16)
    return tl.inline_asm_elementwise(
        _nibble_assembly(j, BF16), "=r,r,r", [words], tl.bfloat16 if BF16 else tl.float16,
        is_pure=True, pack=2,
    )  # fmt: skip


@triton.constexpr_function
def _offset_assembly(j: int) -> str:
    """PTX that makes float32 128 + (value + 8) of nibble j of a word."""
    shift = f"shl.b32 t, $1, {16 - 4 * j};" if j <= 4 else f"shr.u32 t, $1, {4 * j - 16};"
    return f"{{ .reg .b32 t; {shift} lop3.b32 t, t, 0x000F0000, 0x43000000, 0xEA; mov.b32 $0, t; }}"


@triton.jit
def offset_nibble(words, j: tl.constexpr):
    """128 + (value + 8) of nibble j: its bits in bfloat16's place, read as float32."""
    if _INTERPRETED:
        return ((((words >> (4 * j)) & 0xF) << 16) | 0x43000000).to(tl.float32, bitcast=True)
    return tl.inline_asm_elementwise(
        _offset_assembly(j), "=f,r", [words], tl.float32, is_pure=True, pack=1
    )
