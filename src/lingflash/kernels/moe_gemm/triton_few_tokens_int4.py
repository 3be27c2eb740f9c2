"""Expert products of few tokens on the GPU with INT4 weights: one warp a program, in registers.

A warp multiplies ROWS rows of weights (the tensor core's first operand) with 8 or 16 tokens (its
second). Both come from memory 16 bytes a thread, and the columns of a product are taken in such an
order (lane_order) that each thread loads what the tensor core wants from it: weights become numbers
where they are, and nothing passes through shared memory or waits at a barrier. What keeps memory
busy is that many such programs run at a time.

Compiled otherwise than meant, it would still be right, but exchange values between threads:
tests/hopper.py shows it (no SHFL, no shared memory but for the epilogue).
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import triton
import triton.language as tl

from lingflash.kernels.moe_gemm.triton_nibbles import lane_columns, lane_numbers, place_of
from lingflash.kernels.skinny_gemm.triton_one_row import SCALE_BLOCK
from lingflash.kernels.triton_dot import dot, to_bf16
from lingflash.kernels.triton_launch import start_next, wait_for_previous

__all__ = ["down_int4_kernel", "gate_up_int4_kernel"]


@triton.jit
def _lanes(row, live, start, NARROW: tl.constexpr, ROWS: tl.constexpr):
    """128 columns from `start` of rows of numbers that are not packed: [ROWS, 128] for a product.

    The hint makes a thread load eight numbers, no more, of whatever width.
    """
    columns = tl.max_contiguous(tl.arange(0, 32), 8)
    at = row[:, None, None] + start + (tl.arange(0, 4) * 32)[None, :, None] + columns[None, None, :]
    if live is None:
        x = tl.load(at)
    else:
        x = tl.load(at, mask=live[:, None, None], other=0.0)
    return lane_columns(tl.reshape(x, [ROWS, 4, 4, 2, 2, 2]), ROWS, NARROW)


@triton.jit
def _int4(w_row, scale_row, chunk, GROUP: tl.constexpr):
    """Words [ROWS, 16] of 128 columns, and their scales [4, ROWS]: one for each thread of a row.

    The hint, and scales that lie along the first axis, make each of those threads load its own.
    """
    words = tl.load(w_row[:, None] + chunk * 16 + tl.arange(0, 16)[None, :], cache_modifier=".cg")
    group = tl.max_contiguous(tl.arange(0, 4), 1) * 32 // GROUP
    scale = tl.load(scale_row[None, :] + chunk * (128 // GROUP) + group[:, None])
    return words, scale


@triton.jit
def _numbers(words, scale, ROWS: tl.constexpr):
    """The numbers of _int4."""
    EXACT: tl.constexpr = scale.dtype == tl.bfloat16
    scale = tl.trans(scale.to(tl.float32))[:, :, None]
    scale = tl.reshape(tl.broadcast_to(scale, [ROWS, 4, 4]), [ROWS, 16])
    return lane_numbers(words, scale, ROWS, EXACT)


@triton.jit
def _ask(
    w_row, w_apart, scale_row, scale_apart, at, UNROLL: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Weights of a step for both products."""
    found = ()
    for i in tl.static_range(UNROLL):
        found += _int4(w_row, scale_row, at + i, GROUP)
        found += _int4(w_row + w_apart, scale_row + scale_apart, at + i, GROUP)
    return found


@triton.jit
def _add(first, second, x_row, live, step, at, ROWS: tl.constexpr, TOKENS: tl.constexpr,
         UNROLL: tl.constexpr):  # fmt: skip
    """Both products of a step's columns are added to their sums."""
    for i in tl.static_range(UNROLL):
        x = tl.trans(to_bf16(_lanes(x_row, live, (at + i) * 128, True, TOKENS)))
        first = dot(_numbers(step[4 * i], step[4 * i + 1], ROWS), x, first)
        second = dot(_numbers(step[4 * i + 2], step[4 * i + 3], ROWS), x, second)
    return first, second


@triton.jit
def _two_products(
    x_row, live, w_row, w_apart, scale_row, scale_apart, WIDTH: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """ROWS rows of INT4 weights, and as many further on, times TOKENS rows of x in lane_order.

    float32 [ROWS, TOKENS], twice. AHEAD: a step's weights are asked for before the last one's are
    used.
    """
    CHUNKS: tl.constexpr = WIDTH // 128
    first = tl.zeros([ROWS, TOKENS], tl.float32)
    second = tl.zeros([ROWS, TOKENS], tl.float32)
    if AHEAD:
        step = _ask(w_row, w_apart, scale_row, scale_apart, 0, UNROLL, GROUP)
        for at in tl.range(0, CHUNKS, UNROLL):
            # The last step asks for its own once more.
            ahead = tl.minimum(at + UNROLL, CHUNKS - UNROLL)
            after = _ask(w_row, w_apart, scale_row, scale_apart, ahead, UNROLL, GROUP)
            first, second = _add(
                first, second, x_row, live, step, at, ROWS, TOKENS, UNROLL
            )  # fmt: skip
            step = after
    else:
        for at in tl.range(0, CHUNKS, UNROLL):
            step = _ask(w_row, w_apart, scale_row, scale_apart, at, UNROLL, GROUP)
            first, second = _add(
                first, second, x_row, live, step, at, ROWS, TOKENS, UNROLL
            )  # fmt: skip
    return first, second


@triton.jit
def _two_shared_products(
    x_row, live, w_row, w_apart, scale_row, scale_apart, scale_step, SCALES: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """_two_products with BF16 or FP8 weights and x in its own order.

    FP8 weights are exact in whichever of float16 and bfloat16 x has. scale_row: of the first row,
    one scale of 128 columns after the other if SCALES is "block"; scale_step apart of the rows if
    it is "channel".
    """
    first = tl.zeros([ROWS, TOKENS], tl.float32)
    second = tl.zeros([ROWS, TOKENS], tl.float32)
    NARROW: tl.constexpr = SCALES != "none"
    for chunk in tl.range(0, WIDTH // 128):
        x = _lanes(x_row, live, chunk * 128, NARROW, TOKENS)
        w = _lanes(w_row, None, chunk * 128, NARROW, ROWS)
        other = _lanes(w_row + w_apart, None, chunk * 128, NARROW, ROWS)
        if SCALES == "none":
            x = to_bf16(x)
        else:
            w, other = w.to(x.dtype), other.to(x.dtype)
        if SCALES == "block":
            none = tl.zeros([ROWS, TOKENS], tl.float32)
            first += dot(w, tl.trans(x), none) * tl.load(scale_row + chunk)
            second += dot(other, tl.trans(x), none) * tl.load(scale_row + scale_apart + chunk)
        else:
            first = dot(w, tl.trans(x), first)
            second = dot(other, tl.trans(x), second)
    if SCALES == "channel":
        at = scale_row + tl.arange(0, ROWS) * scale_step
        first *= tl.load(at)[:, None]
        second *= tl.load(at + scale_apart)[:, None]
    return first, second


@triton.jit
def _scale_place(
    column, apart, stride, SCALES: tl.constexpr,
):  # fmt: skip
    """Where a shared expert's scales of the row `column` are, and those of `apart` rows on."""
    if SCALES == "block":
        at = column // SCALE_BLOCK * stride
        # Both products may be in one block of rows.
        return at, (column + apart) // SCALE_BLOCK * stride - at
    return column * stride, apart * stride


@triton.jit
def _store_act(gate, up, act_row, live, column, NIBBLES: tl.constexpr):
    act = gate * tl.sigmoid(gate) * up
    at = act_row[None, :] + place_of(column, NIBBLES)[:, None]
    tl.store(at, act.to(act_row.dtype.element_ty), mask=live[None, :])


@triton.jit
def _gate_up_rows(
    x_ptr, w_ptr, scale_ptr, row_ptr, act_ptr, num_tokens, topk, choices, tile, x_stride,
    scale_stride, GROUP: tl.constexpr, NIBBLES: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    row = tl.load(row_ptr + tl.arange(0, TOKENS))
    token = row // topk
    live = token < num_tokens
    column = tile * ROWS + tl.arange(0, ROWS)
    gate, up = _two_products(
        x_ptr + token * x_stride, live, w_ptr + column * (HIDDEN // 8), WIDTH * (HIDDEN // 8),
        scale_ptr + column * scale_stride, WIDTH * scale_stride,
        HIDDEN, GROUP, ROWS, TOKENS, UNROLL, AHEAD,
    )  # fmt: skip
    act_row = act_ptr + (token * choices + row % topk) * WIDTH
    _store_act(gate, up, act_row, live, column, NIBBLES)


@triton.jit
def gate_up_int4_kernel(
    x_ptr, w_ptr, scale_ptr, row_ptr, expert_ptr, used_ptr, act_ptr,
    plain_ptr, shared_ptr, shared_scale_ptr, num_tokens, topk, choices, num_blocks,
    x_stride, expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    GROUP: tl.constexpr, NIBBLES: tl.constexpr, SHARED: tl.constexpr,
    SHARED_SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    tile, block = tl.program_id(0), tl.program_id(1)
    wait_for_previous(PDL)
    if block < num_blocks:
        if block < tl.load(used_ptr):
            expert = tl.load(expert_ptr + block).to(tl.int64)
            row_ptr += block * BLOCK_M
            w_ptr += expert * expert_stride
            scale_ptr += expert * scale_expert_stride
            # Rows of a block that are there come first.
            if tl.load(row_ptr + 8) < num_tokens * topk:
                _gate_up_rows(
                    x_ptr, w_ptr, scale_ptr, row_ptr, act_ptr, num_tokens, topk, choices, tile,
                    x_stride, scale_stride, GROUP, NIBBLES, WIDTH, HIDDEN, BLOCK_M, ROWS, UNROLL,
                    AHEAD,
                )  # fmt: skip
            else:
                _gate_up_rows(
                    x_ptr, w_ptr, scale_ptr, row_ptr, act_ptr, num_tokens, topk, choices, tile,
                    x_stride, scale_stride, GROUP, NIBBLES, WIDTH, HIDDEN, 8, ROWS, UNROLL, AHEAD,
                )  # fmt: skip
    elif SHARED:
        token = (block - num_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
        live = token < num_tokens
        first = tile * ROWS
        column = first + tl.arange(0, ROWS)
        at, apart = _scale_place(first, WIDTH, shared_scale_stride, SHARED_SCALES)
        gate, up = _two_shared_products(
            plain_ptr + token * x_stride, live, shared_ptr + column * HIDDEN, WIDTH * HIDDEN,
            shared_scale_ptr + at, apart, shared_scale_stride, SHARED_SCALES, HIDDEN, ROWS, BLOCK_M,
        )  # fmt: skip
        _store_act(gate, up, act_ptr + (token * choices + topk) * WIDTH, live, column, False)


@triton.jit
def _down_rows(
    act_ptr, w_ptr, scale_ptr, row_ptr, weight_ptr, out_ptr, num_rows, topk, choices, tile,
    scale_stride, GROUP: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    row = tl.load(row_ptr + tl.arange(0, TOKENS))
    live = row < num_rows
    place = row // topk * choices + row % topk
    column = tile * (2 * ROWS) + tl.arange(0, ROWS)
    first, second = _two_products(
        act_ptr + place * WIDTH, live, w_ptr + column * (WIDTH // 8), ROWS * (WIDTH // 8),
        scale_ptr + column * scale_stride, ROWS * scale_stride,
        WIDTH, GROUP, ROWS, TOKENS, UNROLL, AHEAD,
    )  # fmt: skip
    weight = tl.load(weight_ptr + row, mask=live, other=0.0)[None, :]
    at = out_ptr + (place * HIDDEN)[None, :] + column[:, None]
    tl.store(at, first * weight, mask=live[None, :])
    tl.store(at + ROWS, second * weight, mask=live[None, :])


@triton.jit
def down_int4_kernel(
    act_ptr, w_ptr, scale_ptr, row_ptr, expert_ptr, used_ptr, weight_ptr, out_ptr,
    shared_ptr, shared_scale_ptr, num_tokens, topk, choices, num_blocks,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    GROUP: tl.constexpr, SHARED: tl.constexpr, SHARED_SCALES: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr,
    AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    tile, block = tl.program_id(0), tl.program_id(1)
    wait_for_previous(PDL)
    if block < num_blocks:
        if block < tl.load(used_ptr):
            expert = tl.load(expert_ptr + block).to(tl.int64)
            row_ptr += block * BLOCK_M
            w_ptr += expert * expert_stride
            scale_ptr += expert * scale_expert_stride
            num_rows = num_tokens * topk
            if tl.load(row_ptr + 8) < num_rows:
                _down_rows(
                    act_ptr, w_ptr, scale_ptr, row_ptr, weight_ptr, out_ptr, num_rows, topk,
                    choices, tile, scale_stride, GROUP, WIDTH, HIDDEN, BLOCK_M, ROWS, UNROLL, AHEAD,
                )  # fmt: skip
            else:
                _down_rows(
                    act_ptr, w_ptr, scale_ptr, row_ptr, weight_ptr, out_ptr, num_rows, topk,
                    choices, tile, scale_stride, GROUP, WIDTH, HIDDEN, 8, ROWS, UNROLL, AHEAD,
                )  # fmt: skip
    elif SHARED:
        token = (block - num_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
        live = token < num_tokens
        place = token * choices + topk
        start = tile * (2 * ROWS)
        column = start + tl.arange(0, ROWS)
        at, apart = _scale_place(start, ROWS, shared_scale_stride, SHARED_SCALES)
        first, second = _two_shared_products(
            act_ptr + place * WIDTH, live, shared_ptr + column * WIDTH, ROWS * WIDTH,
            shared_scale_ptr + at, apart, shared_scale_stride, SHARED_SCALES, WIDTH, ROWS, BLOCK_M,
        )  # fmt: skip
        at = out_ptr + (place * HIDDEN)[None, :] + column[:, None]
        tl.store(at, first, mask=live[None, :])
        tl.store(at + ROWS, second, mask=live[None, :])
