"""Expert products for few tokens on the GPU: each expert that was chosen is read once.

plan_rows   which rows of which expert each program takes; one program makes it for all others
gate_up     SiLU(x W_gate) * (x W_up) of every (token, choice)
down        back to the hidden width, times the choice's weight, one part per choice

One token has kernels of its own: no plan, and products by each thread instead of tensor cores that
would be given 1 row of 16. INT4 weights multiply activations in `nibble_order`, so that a word's
eight values meet eight slices of x without being moved between threads.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from lingflash.kernels.skinny_gemm.triton_kernel import (
    SCALE_BLOCK,
    narrow,
    row_sums,
)
from lingflash.kernels.triton_dot import dot
from lingflash.kernels.triton_launch import (
    launch_options,
    start_next,
    wait_for_previous,
)

__all__ = [
    "DecodeExperts",
    "ExpertTiles",
    "RowPlan",
    "all_rows",
    "down_decode",
    "gate_up_decode",
    "nibble_order",
    "plan_rows",
]

# Rows per program: what the tensor cores want at least.
BLOCK_ROWS = 16
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
def _nibble(words, j: tl.constexpr, BF16: tl.constexpr):
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
def _offset_nibble(words, j: tl.constexpr):
    """128 + (value + 8) of nibble j: its bits in bfloat16's place, read as float32."""
    if _INTERPRETED:
        return ((((words >> (4 * j)) & 0xF) << 16) | 0x43000000).to(tl.float32, bitcast=True)
    return tl.inline_asm_elementwise(
        _offset_assembly(j), "=f,r", [words], tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _one_row_int4(
    x_ptr, w_row, scale_row, row_ok,
    WORDS: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """One row of x times BLOCK_N rows of INT4 weights, GROUPS times 128 columns at once."""
    group, word = tl.arange(0, GROUPS), tl.arange(0, 16)
    total = tl.zeros([BLOCK_N, GROUPS, 16], tl.float32)
    for step in range((WORDS + GROUPS * 16 - 1) // (GROUPS * 16)):
        here = step * GROUPS + group
        at = here[:, None] * 16 + word[None, :]
        ok = row_ok[:, None, None] & (at < WORDS)[None, :, :]
        words = tl.load(w_row[:, None, None] + at[None, :, :], mask=ok, other=0)
        part = tl.zeros([BLOCK_N, GROUPS, 16], tl.float32)
        sums = tl.zeros([GROUPS, 16], tl.float32)
        x_at = x_ptr + here[:, None] * 128 + word[None, :]
        for j in tl.static_range(8):
            x = tl.load(x_at + 16 * j, mask=at < WORDS, other=0.0).to(tl.float32)
            part += _offset_nibble(words, j) * x[None, :, :]
            sums += x
        part -= 136.0 * sums[None, :, :]
        if GROUP == 128:
            scale_ok = row_ok[:, None] & (here * 16 < WORDS)[None, :]
            scale = tl.load(scale_row[:, None] + here[None, :], mask=scale_ok, other=0.0)
            total += part * scale.to(tl.float32)[:, :, None]
        else:
            scale_at = scale_row[:, None, None] + (at // (GROUP // 8))[None, :, :]
            total += part * tl.load(scale_at, mask=ok, other=0.0).to(tl.float32)
    return tl.sum(tl.sum(total, 2), 1)


@triton.jit
def _one_gate_up(
    x_ptr, w_ptr, scale_ptr, act_ptr, tile, scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, NIBBLES: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One row of x through BLOCK_N gate and up columns of one expert."""
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < WIDTH
    if INT4:
        row, scale_row = w_ptr + column * (HIDDEN // 8), scale_ptr + column * scale_stride
        g = _one_row_int4(x_ptr, row, scale_row, inside, HIDDEN // 8, GROUP, BLOCK_N, CHUNKS)
        u = _one_row_int4(
            x_ptr, row + WIDTH * (HIDDEN // 8), scale_row + WIDTH * scale_stride, inside,
            HIDDEN // 8, GROUP, BLOCK_N, CHUNKS,
        )  # fmt: skip
    else:
        EVEN: tl.constexpr = WIDTH % BLOCK_N == 0 and HIDDEN % (128 * CHUNKS) == 0
        row = w_ptr + column * HIDDEN
        scale_row = scale_ptr + (tile * BLOCK_N // SCALE_BLOCK) * scale_stride
        up_scales = scale_row + WIDTH // SCALE_BLOCK * scale_stride
        g = row_sums(
            x_ptr, row, scale_row, inside, HIDDEN, SCALES == "block", EVEN, BLOCK_N, CHUNKS
        )
        u = row_sums(
            x_ptr, row + WIDTH * HIDDEN, up_scales, inside, HIDDEN, SCALES == "block", EVEN,
            BLOCK_N, CHUNKS,
        )  # fmt: skip
        if SCALES == "channel":
            g *= tl.load(scale_ptr + column * scale_stride, mask=inside, other=0.0)
            u *= tl.load(scale_ptr + (WIDTH + column) * scale_stride, mask=inside, other=0.0)
    act = g * tl.sigmoid(g) * u
    at = act_ptr + place_of(column, NIBBLES)
    tl.store(at, act.to(act_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _one_down(
    x_ptr, w_ptr, scale_ptr, out_ptr, weight, tile, scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One row of activations through BLOCK_N columns of one expert's way back."""
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < HIDDEN
    if INT4:
        row, scale_row = w_ptr + column * (WIDTH // 8), scale_ptr + column * scale_stride
        out = _one_row_int4(x_ptr, row, scale_row, inside, WIDTH // 8, GROUP, BLOCK_N, CHUNKS)
    else:
        EVEN: tl.constexpr = HIDDEN % BLOCK_N == 0 and WIDTH % (128 * CHUNKS) == 0
        scale_row = scale_ptr + (tile * BLOCK_N // SCALE_BLOCK) * scale_stride
        out = row_sums(
            x_ptr, w_ptr + column * WIDTH, scale_row, inside, WIDTH, SCALES == "block", EVEN,
            BLOCK_N, CHUNKS,
        )  # fmt: skip
        if SCALES == "channel":
            out *= tl.load(scale_ptr + column * scale_stride, mask=inside, other=0.0)
    tl.store(out_ptr + column, out * weight, mask=inside)


@triton.jit
def _gate_up_one_kernel(
    x_ptr, w_ptr, scale_ptr, ids_ptr, act_ptr, plain_ptr, shared_ptr, shared_scale_ptr,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride, topk,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, NIBBLES: tl.constexpr,
    SHARED: tl.constexpr, SHARED_SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    choice = tl.program_id(1)
    act = act_ptr + choice * WIDTH
    wait_for_previous(PDL)
    if choice < topk:
        expert = tl.load(ids_ptr + choice).to(tl.int64)
        _one_gate_up(
            x_ptr, w_ptr + expert * expert_stride, scale_ptr + expert * scale_expert_stride, act,
            tl.program_id(0), scale_stride, INT4, SCALES, GROUP, NIBBLES, WIDTH, HIDDEN,
            BLOCK_N, CHUNKS,
        )  # fmt: skip
    elif SHARED:
        _one_gate_up(
            plain_ptr, shared_ptr, shared_scale_ptr, act, tl.program_id(0), shared_scale_stride,
            False, SHARED_SCALES, 0, False, WIDTH, HIDDEN, BLOCK_N, CHUNKS,
        )  # fmt: skip


@triton.jit
def _down_one_kernel(
    act_ptr, w_ptr, scale_ptr, ids_ptr, weight_ptr, out_ptr, shared_ptr, shared_scale_ptr,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride, topk,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr,
    SHARED: tl.constexpr, SHARED_SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    choice = tl.program_id(1)
    x, out = act_ptr + choice * WIDTH, out_ptr + choice * HIDDEN
    wait_for_previous(PDL)
    if choice < topk:
        expert = tl.load(ids_ptr + choice).to(tl.int64)
        _one_down(
            x, w_ptr + expert * expert_stride, scale_ptr + expert * scale_expert_stride, out,
            tl.load(weight_ptr + choice), tl.program_id(0), scale_stride, INT4, SCALES, GROUP,
            WIDTH, HIDDEN, BLOCK_N, CHUNKS,
        )  # fmt: skip
    elif SHARED:
        _one_down(
            x, shared_ptr, shared_scale_ptr, out, 1.0, tl.program_id(0), shared_scale_stride,
            False, SHARED_SCALES, 0, WIDTH, HIDDEN, BLOCK_N, CHUNKS,
        )  # fmt: skip


@triton.jit
def _rows_int4(
    x_row, live, w_row, scale_row, inside, group, total,
    GROUP: tl.constexpr, BF16: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """total + x W^T over 128 columns: eight products of 16 columns, one for each nibble.

    In float16 if x is normed; in bfloat16, whose range every x fits, if it is not.
    """
    kind: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
    word = tl.arange(0, 16)
    words = tl.load(w_row + group * 16 + word[None, :], mask=inside[:, None], other=0)
    part = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if GROUP == 128:
        scale = tl.load(scale_row + group, mask=inside, other=0.0).to(tl.float32)
    else:
        scale = tl.load(
            scale_row[:, None] + (group * (128 // GROUP) + word // (GROUP // 8))[None, :],
            mask=inside[:, None], other=0.0,
        ).to(kind)  # fmt: skip
    for j in tl.static_range(8):
        x = tl.load(x_row + group * 128 + 16 * j + word[None, :], mask=live[:, None], other=0.0)
        value = _nibble(words, j, BF16)
        if GROUP < 128 and _INTERPRETED:  # which multiplies bfloat16's bits
            value = (value.to(tl.float32) * scale.to(tl.float32)).to(kind)
        elif GROUP < 128:
            value *= scale
        part = dot(x.to(kind), tl.trans(value), part)
    if GROUP == 128:
        part *= scale[None, :]
    return total + part


@triton.jit
def _rows_gate_up(
    x_row, w_ptr, scale_ptr, act_row, live, tile, scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, NIBBLES: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of x through BLOCK_N gate and up columns of one expert."""
    UNROLL: tl.constexpr = BLOCK_K // 128 if HIDDEN % BLOCK_K == 0 else 1
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < WIDTH
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if INT4:
        w_row = w_ptr + column[:, None] * (HIDDEN // 8)
        w_up_row = w_row + WIDTH * (HIDDEN // 8)
        scale_row = scale_ptr + column * scale_stride
        for first in tl.range(0, HIDDEN // 128, UNROLL):
            for i in tl.static_range(UNROLL):
                gate = _rows_int4(
                    x_row, live, w_row, scale_row, inside, first + i, gate,
                    GROUP, False, BLOCK_M, BLOCK_N,
                )  # fmt: skip
                up = _rows_int4(
                    x_row, live, w_up_row, scale_row + WIDTH * scale_stride, inside, first + i, up,
                    GROUP, False, BLOCK_M, BLOCK_N,
                )  # fmt: skip
    else:
        w_row = w_ptr + column[:, None] * HIDDEN
        scale_row = scale_ptr + (tile * BLOCK_N // SCALE_BLOCK) * scale_stride
        up_scales = scale_row + WIDTH // SCALE_BLOCK * scale_stride
        k = tl.arange(0, BLOCK_K)
        for start in tl.range(0, HIDDEN, BLOCK_K):
            at = start + k
            x = tl.load(x_row + at[None, :], mask=live[:, None] & (at < HIDDEN)[None, :], other=0.0)
            mask = inside[:, None] & (at < HIDDEN)[None, :]
            w_gate = tl.load(w_row + at[None, :], mask=mask, other=0.0)
            w_up = tl.load(w_row + WIDTH * HIDDEN + at[None, :], mask=mask, other=0.0)
            if SCALES == "block":
                x = x.to(tl.float16)
                none = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                block_k = start // SCALE_BLOCK
                part = dot(x, tl.trans(w_gate.to(tl.float16)), none)
                gate += part * tl.load(scale_row + block_k)
                part = dot(x, tl.trans(w_up.to(tl.float16)), none)
                up += part * tl.load(up_scales + block_k)
            elif SCALES == "channel":
                x = x.to(tl.float16)
                gate = dot(x, tl.trans(w_gate.to(tl.float16)), gate)
                up = dot(x, tl.trans(w_up.to(tl.float16)), up)
            else:
                x = x.to(w_ptr.dtype.element_ty)
                gate = dot(x, tl.trans(w_gate), gate)
                up = dot(x, tl.trans(w_up), up)
    if SCALES == "channel":
        gate *= tl.load(scale_ptr + column * scale_stride, mask=inside, other=0.0)[None, :]
        up_at = scale_ptr + (WIDTH + column) * scale_stride
        up *= tl.load(up_at, mask=inside, other=0.0)[None, :]
    act = gate * tl.sigmoid(gate) * up
    at = act_row + place_of(column, NIBBLES)[None, :]
    tl.store(at, act.to(act_row.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit
def _rows_down(
    act_row, w_ptr, scale_ptr, out_row, weight, live, tile, scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of activations through BLOCK_N columns of one expert's way back."""
    UNROLL: tl.constexpr = BLOCK_K // 128 if WIDTH % BLOCK_K == 0 else 1
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < HIDDEN
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if INT4:
        w_row = w_ptr + column[:, None] * (WIDTH // 8)
        scale_row = scale_ptr + column * scale_stride
        for first in tl.range(0, WIDTH // 128, UNROLL):
            for i in tl.static_range(UNROLL):
                total = _rows_int4(
                    act_row, live, w_row, scale_row, inside, first + i, total,
                    GROUP, True, BLOCK_M, BLOCK_N,
                )  # fmt: skip
    else:
        w_row = w_ptr + column[:, None] * WIDTH
        scale_row = scale_ptr + (tile * BLOCK_N // SCALE_BLOCK) * scale_stride
        k = tl.arange(0, BLOCK_K)
        for start in tl.range(0, WIDTH, BLOCK_K):
            at = start + k
            x = tl.load(
                act_row + at[None, :], mask=live[:, None] & (at < WIDTH)[None, :], other=0.0
            )
            mask = inside[:, None] & (at < WIDTH)[None, :]
            w = tl.load(w_row + at[None, :], mask=mask, other=0.0)
            if SCALES != "none":
                x, factor = narrow(x, True)
                none = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                part = dot(x, tl.trans(w.to(tl.float16)), none)
                if SCALES == "block":
                    factor *= tl.load(scale_row + start // SCALE_BLOCK)
                total += part * factor[:, None]
            else:
                total = dot(x.to(w_ptr.dtype.element_ty), tl.trans(w), total)
    if SCALES == "channel":
        total *= tl.load(scale_ptr + column * scale_stride, mask=inside, other=0.0)[None, :]
    total *= weight[:, None]
    tl.store(out_row + column[None, :], total, mask=live[:, None] & inside[None, :])


@triton.jit
def _gate_up_kernel(
    x_ptr, w_ptr, scale_ptr, row_ptr, expert_ptr, used_ptr, act_ptr,
    plain_ptr, shared_ptr, shared_scale_ptr, num_tokens, topk, choices, num_blocks,
    x_stride, expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, NIBBLES: tl.constexpr,
    SHARED: tl.constexpr, SHARED_SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    tile, block = tl.program_id(0), tl.program_id(1)
    m = tl.arange(0, BLOCK_M)
    wait_for_previous(PDL)
    if block < num_blocks:
        if block < tl.load(used_ptr):
            expert = tl.load(expert_ptr + block).to(tl.int64)
            row = tl.load(row_ptr + block * BLOCK_M + m)
            token = row // topk
            act_row = act_ptr + (token * choices + row % topk)[:, None] * WIDTH
            _rows_gate_up(
                x_ptr + token[:, None] * x_stride, w_ptr + expert * expert_stride,
                scale_ptr + expert * scale_expert_stride, act_row, token < num_tokens, tile,
                scale_stride, INT4, SCALES, GROUP, NIBBLES, WIDTH, HIDDEN,
                BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    elif SHARED:
        token = (block - num_blocks) * BLOCK_M + m
        act_row = act_ptr + (token * choices + topk)[:, None] * WIDTH
        _rows_gate_up(
            plain_ptr + token[:, None] * x_stride, shared_ptr, shared_scale_ptr, act_row,
            token < num_tokens, tile, shared_scale_stride, False, SHARED_SCALES, 0, False,
            WIDTH, HIDDEN, BLOCK_M, BLOCK_N, 128,
        )  # fmt: skip


@triton.jit
def _down_kernel(
    act_ptr, w_ptr, scale_ptr, row_ptr, expert_ptr, used_ptr, weight_ptr, out_ptr,
    shared_ptr, shared_scale_ptr, num_tokens, topk, choices, num_blocks,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr,
    SHARED: tl.constexpr, SHARED_SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    tile, block = tl.program_id(0), tl.program_id(1)
    m = tl.arange(0, BLOCK_M)
    wait_for_previous(PDL)
    if block < num_blocks:
        if block < tl.load(used_ptr):
            expert = tl.load(expert_ptr + block).to(tl.int64)
            row = tl.load(row_ptr + block * BLOCK_M + m)
            live = row < num_tokens * topk
            place = row // topk * choices + row % topk
            weight = tl.load(weight_ptr + row, mask=live, other=0.0)
            _rows_down(
                act_ptr + place[:, None] * WIDTH, w_ptr + expert * expert_stride,
                scale_ptr + expert * scale_expert_stride, out_ptr + place[:, None] * HIDDEN,
                weight, live, tile, scale_stride, INT4, SCALES, GROUP, WIDTH, HIDDEN,
                BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    elif SHARED:
        token = (block - num_blocks) * BLOCK_M + m
        place = token * choices + topk
        _rows_down(
            act_ptr + place[:, None] * WIDTH, shared_ptr, shared_scale_ptr,
            out_ptr + place[:, None] * HIDDEN, tl.full([BLOCK_M], 1.0, tl.float32),
            token < num_tokens, tile, shared_scale_stride, False, SHARED_SCALES, 0, WIDTH, HIDDEN,
            BLOCK_M, BLOCK_N, 128,
        )  # fmt: skip


@triton.jit
def _plan_kernel(
    ids_ptr, expert_ptr, row_ptr, used_ptr, num_rows,
    EXPERTS: tl.constexpr, MOST_BLOCKS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_E: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    j = tl.arange(0, BLOCK_J)
    expert = tl.arange(0, BLOCK_E)
    wait_for_previous(PDL)
    ids = tl.load(ids_ptr + j, mask=j < num_rows, other=EXPERTS).to(tl.int32)
    counts = tl.histogram(ids, BLOCK_E, mask=j < num_rows)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    first_block = tl.cumsum(blocks, 0) - blocks
    first_row = tl.cumsum(counts, 0) - counts
    # Sorted by expert, then by row; what is past the end sorts last and is not stored.
    key = tl.sort(ids * BLOCK_J + j)
    mine, row = key // BLOCK_J, key % BLOCK_J
    within = j - tl.gather(first_row, mine, 0)
    place = tl.gather(first_block, mine, 0) * BLOCK_M + within
    tl.store(row_ptr + place, row, mask=j < num_rows)
    for i in tl.static_range(BLOCK_M):
        last = first_block * BLOCK_M + counts + i
        tl.store(row_ptr + last, num_rows, mask=counts + i < blocks * BLOCK_M)
    for b in tl.static_range(MOST_BLOCKS):
        tl.store(expert_ptr + first_block + b, expert, mask=b < blocks)
    tl.store(used_ptr, tl.sum(blocks, 0))


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Blocks of rows that belong to one expert each.

    Args:
        rows: int32 [B * BLOCK_ROWS], place in topk_ids.flatten(); T k where a block is not full.
        experts: int32 [B].
        num_used: int32 [1], blocks that are needed; the rest hold nothing.
    """

    rows: Tensor
    experts: Tensor
    num_used: Tensor


def plan_rows(topk_ids: Tensor, num_experts: int) -> RowPlan:
    """Sort (token, choice) rows by expert into blocks of BLOCK_ROWS, in one launch.

    Args:
        topk_ids: int32 [T, k], T k at most 4,096; a token's choices differ.
        num_experts: E.

    Sync: none, graph-safe.

    Raises:
        ValueError: too many rows, or ids of another type.
    """
    num_rows, device = topk_ids.numel(), topk_ids.device
    if num_rows > 4096 or topk_ids.dtype != torch.int32 or not topk_ids.is_contiguous():
        raise ValueError(f"topk_ids are {topk_ids.dtype} {tuple(topk_ids.shape)}; int32, <= 4096.")
    num_blocks = min(num_rows, num_experts) + num_rows // BLOCK_ROWS
    rows = torch.empty(num_blocks * BLOCK_ROWS, dtype=torch.int32, device=device)
    experts = torch.empty(num_blocks, dtype=torch.int32, device=device)
    num_used = torch.empty(1, dtype=torch.int32, device=device)
    block_e = triton.next_power_of_2(num_experts + 1)
    _plan_kernel[(1,)](
        topk_ids, experts, rows, num_used, num_rows, EXPERTS=num_experts,
        MOST_BLOCKS=triton.cdiv(topk_ids.shape[0], BLOCK_ROWS), BLOCK_M=BLOCK_ROWS,
        BLOCK_J=max(triton.next_power_of_2(num_rows), 16), BLOCK_E=block_e,
        num_warps=8, **launch_options(topk_ids),
    )  # fmt: skip
    return RowPlan(rows, experts, num_used)


@cache
def all_rows(num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor, RowPlan | None]:
    """What routes every token to the only expert with weight 1: topk_ids, topk_weights, plan."""
    ids = torch.zeros(num_tokens, 1, dtype=torch.int32, device=device)
    weights = torch.ones(num_tokens, 1, dtype=torch.float32, device=device)
    if num_tokens == 1:
        return ids, weights, None
    blocks = triton.cdiv(num_tokens, BLOCK_ROWS)
    rows = torch.arange(blocks * BLOCK_ROWS, dtype=torch.int32, device=device)
    used = torch.full((1,), blocks, dtype=torch.int32, device=device)
    return ids, weights, RowPlan(rows.clamp(max=num_tokens), ids[:blocks, 0].clone(), used)


@dataclass(frozen=True, slots=True)
class DecodeExperts:
    """The matrices of E experts as the decode kernels read them.

    Args:
        values: bfloat16 or float8_e4m3fn [E, R, K], or int32 [E, R, K/8]; contiguous.
        scale: None for bfloat16; float32 [E, R/128, K/128] or [E, R, 1] for FP8, blocks or rows
            (R/128 rows of scales for each matrix that is stacked); any float dtype
            [E, R, K/group] for INT4.
        group: columns that share a scale of INT4, 32 or 128; else 0.
    """

    values: Tensor
    scale: Tensor | None
    group: int = 0

    @property
    def is_int4(self) -> bool:
        """Whether the values are words of eight nibbles."""
        return self.values.dtype == torch.int32

    @property
    def scale_kind(self) -> str:
        """How FP8 values are scaled: "none", "block" or "channel"."""
        if self.scale is None or self.is_int4:
            return "none"
        rows, columns = self.values.shape[1:]
        grid = (-(-rows // 128), -(-columns // 128))
        return "block" if self.scale.shape[1:] == grid else "channel"

    def scales(self) -> Tensor:
        """The scales; the values stand in where there are none."""
        return self.values if self.scale is None else self.scale


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """How a product is cut: rows of weights and columns per step; one row has no stages."""

    block_n: int
    block_k: int
    warps: int
    stages: int


def _chunks(width: int, most: int) -> int:
    """Pieces of 128 columns that one row's step takes, a power of two."""
    return min(triton.next_power_of_2(triton.cdiv(width, 128)), most)


def _gate_up_tiles(num_tokens: int, w: DecodeExperts) -> ExpertTiles:
    if num_tokens == 1:
        return ExpertTiles(8, 512, 4, 1) if w.is_int4 else ExpertTiles(4, 1024, 4, 1)
    return ExpertTiles(64, 256, 4, 3) if w.is_int4 else ExpertTiles(64, 128, 4, 4)


def _down_tiles(num_tokens: int, w: DecodeExperts) -> ExpertTiles:
    if num_tokens == 1:
        return ExpertTiles(16, 512 if w.is_int4 else 1024, 4, 1)
    return ExpertTiles(128, 128, 4, 3)


def _options(w: DecodeExperts, shared: DecodeExperts | None, tiles: ExpertTiles) -> dict[str, Any]:
    """What both products' kernels are compiled for.

    Raises:
        ValueError: a shared expert in INT4.
    """
    if shared is not None and shared.is_int4:
        raise ValueError("a shared expert in INT4 is not supported.")
    return {
        "INT4": w.is_int4, "SCALES": w.scale_kind, "GROUP": w.group,
        "SHARED": shared is not None,
        "SHARED_SCALES": "none" if shared is None else shared.scale_kind,
        "BLOCK_N": tiles.block_n, "num_warps": tiles.warps,
    }  # fmt: skip


def gate_up_decode(
    x: Tensor,
    w: DecodeExperts,
    topk_ids: Tensor,
    plan: RowPlan | None,
    act: Tensor,
    *,
    nibbles: bool = False,
    plain: Tensor | None = None,
    shared: DecodeExperts | None = None,
    tiles: ExpertTiles | None = None,
) -> Tensor:
    """SiLU(x W_gate,e) * (x W_up,e) of every (token, choice), and of a shared expert.

    Args:
        x: float16 or bfloat16 [T, K], contiguous, normed; in nibble_order for INT4 weights.
        w: [E, 2I, K], gate above up.
        topk_ids: int32 [T, k].
        plan: of topk_ids; None for one token.
        act: float [T, k, I], or [T, k + 1, I] with a shared expert; written, the routed experts'
            in nibble_order if `nibbles`.
        nibbles: whether the routed experts' next product is with INT4 weights.
        plain: x in its own order, for the shared expert; x by default.
        shared: [1, 2I, K], bfloat16 or FP8: an expert that every token takes.
        tiles: how to cut; by the shape if None.

    Numerics: accumulates in float32; FP8 and INT4 weights are exact in float16 and x is rounded to
        it. Sync: none, graph-safe.
    """
    num_tokens, topk = topk_ids.shape
    choices, width = act.shape[1:]
    t = tiles or _gate_up_tiles(num_tokens, w)
    other = w if shared is None else shared
    plain = x if plain is None else plain
    scale = w.scales()
    options = _options(w, shared, t) | launch_options(x)
    options |= {"NIBBLES": nibbles, "WIDTH": width, "HIDDEN": x.shape[1]}
    columns = triton.cdiv(width, t.block_n)
    if plan is None:
        _gate_up_one_kernel[(columns, choices)](
            x, w.values, scale, topk_ids, act, plain, other.values, other.scales(),
            w.values.stride(0), scale.stride(0), scale.stride(1), other.scales().stride(1), topk,
            CHUNKS=_chunks(x.shape[1], t.block_k // 128), **options,
        )  # fmt: skip
        return act
    blocks = plan.experts.numel()
    shared_blocks = 0 if shared is None else triton.cdiv(num_tokens, BLOCK_ROWS)
    _gate_up_kernel[(columns, blocks + shared_blocks)](
        x, w.values, scale, plan.rows, plan.experts, plan.num_used, act,
        plain, other.values, other.scales(), num_tokens, topk, choices, blocks,
        x.stride(0), w.values.stride(0), scale.stride(0), scale.stride(1),
        other.scales().stride(1), BLOCK_M=BLOCK_ROWS, BLOCK_K=t.block_k, num_stages=t.stages,
        **options,
    )  # fmt: skip
    return act


def down_decode(
    act: Tensor,
    w: DecodeExperts,
    topk_ids: Tensor,
    topk_weights: Tensor,
    plan: RowPlan | None,
    out: Tensor,
    *,
    shared: DecodeExperts | None = None,
    tiles: ExpertTiles | None = None,
) -> Tensor:
    """act W_down,e times the choice's weight, one part per choice; a shared expert's last.

    Args:
        act: float [T, k, I] or [T, k + 1, I], as gate_up_decode leaves it.
        w: [E, D, I].
        topk_ids: int32 [T, k].
        topk_weights: float32 [T, k].
        plan: of topk_ids; None for one token.
        out: float32 [T, k, D] or [T, k + 1, D], written.
        shared: [1, D, I], bfloat16 or FP8.
        tiles: how to cut; by the shape if None.

    Numerics: as gate_up_decode; of more than one row, those for FP8 weights are scaled to
        float16's range, those for INT4 weights rounded to bfloat16. Sync: none, graph-safe.
    """
    num_tokens, topk = topk_ids.shape
    (choices, width), hidden = act.shape[1:], out.shape[-1]
    t = tiles or _down_tiles(num_tokens, w)
    other = w if shared is None else shared
    scale = w.scales()
    options = _options(w, shared, t) | launch_options(act) | {"WIDTH": width, "HIDDEN": hidden}
    columns = triton.cdiv(hidden, t.block_n)
    if plan is None:
        _down_one_kernel[(columns, choices)](
            act, w.values, scale, topk_ids, topk_weights, out, other.values, other.scales(),
            w.values.stride(0), scale.stride(0), scale.stride(1), other.scales().stride(1), topk,
            CHUNKS=_chunks(width, t.block_k // 128), **options,
        )  # fmt: skip
        return out
    blocks = plan.experts.numel()
    shared_blocks = 0 if shared is None else triton.cdiv(num_tokens, BLOCK_ROWS)
    _down_kernel[(columns, blocks + shared_blocks)](
        act, w.values, scale, plan.rows, plan.experts, plan.num_used, topk_weights, out,
        other.values, other.scales(), num_tokens, topk, choices, blocks,
        w.values.stride(0), scale.stride(0), scale.stride(1), other.scales().stride(1),
        BLOCK_M=BLOCK_ROWS, BLOCK_K=t.block_k, num_stages=t.stages, **options,
    )  # fmt: skip
    return out
