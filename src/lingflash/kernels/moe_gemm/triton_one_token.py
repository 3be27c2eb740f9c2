"""Expert products of one token on the GPU: each thread multiplies what it loaded itself.

Tensor cores would be given 1 row of 16, and need no plan of rows here: the token's choices are the
programs' second number. A shared expert, of a format of its own, is the last choice.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import triton
import triton.language as tl

from lingflash.kernels.moe_gemm.triton_nibbles import offset_nibble, place_of
from lingflash.kernels.skinny_gemm.triton_kernel import SCALE_BLOCK, row_sums
from lingflash.kernels.triton_launch import start_next, wait_for_previous

__all__ = ["down_one_kernel", "gate_up_one_kernel"]


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
            part += offset_nibble(words, j) * x[None, :, :]
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
    x_ptr, w_ptr, scale_ptr, tile, scale_stride,
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
    return out


@triton.jit
def gate_up_one_kernel(
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
def down_one_kernel(
    act_ptr, w_ptr, scale_ptr, ids_ptr, weight_ptr, out_ptr, shared_ptr, shared_scale_ptr,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride, topk, choices,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr,
    SHARED: tl.constexpr, SHARED_SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr, TOGETHER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """TOGETHER choices are summed, so that the norm that adds the parts has fewer to read."""
    start_next(PDL)
    tile = tl.program_id(0)
    wait_for_previous(PDL)
    total = tl.zeros([BLOCK_N], tl.float32)
    for i in range(TOGETHER):
        choice = tl.program_id(1) * TOGETHER + i
        x = act_ptr + choice * WIDTH
        if choice < topk:
            expert = tl.load(ids_ptr + choice).to(tl.int64)
            total += tl.load(weight_ptr + choice) * _one_down(
                x, w_ptr + expert * expert_stride, scale_ptr + expert * scale_expert_stride, tile,
                scale_stride, INT4, SCALES, GROUP, WIDTH, HIDDEN, BLOCK_N, CHUNKS,
            )  # fmt: skip
        elif SHARED:  # noqa: SIM102  (decided when this is compiled, unlike the next)
            if choice < choices:
                total += _one_down(
                    x, shared_ptr, shared_scale_ptr, tile, shared_scale_stride, False,
                    SHARED_SCALES, 0, WIDTH, HIDDEN, BLOCK_N, CHUNKS,
                )  # fmt: skip
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    at = out_ptr + tl.program_id(1) * HIDDEN + column
    tl.store(at, total, mask=column < HIDDEN)
