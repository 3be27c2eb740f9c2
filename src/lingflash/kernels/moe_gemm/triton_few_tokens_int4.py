"""Expert products of few tokens on the GPU with INT4 weights: one warp a program, in registers.

A warp multiplies rows of weights (the tensor core's first operand) with 8 or 16 tokens (its
second). Both come from memory 16 bytes a thread, and the columns of a product are taken in such an
order (lane_order) that each thread loads what the tensor core wants from it: weights become numbers
where they are, and nothing passes through shared memory or waits at a barrier. What keeps memory
busy is that many such programs run at a time, that each asks for a step's weights before it uses
the last one's, and that later ones are brought to the L2 cache meanwhile.

Compiled otherwise than meant, it would still be right, but exchange values between threads:
tests/hopper.py shows it (no SHFL, no shared memory but for the epilogue).
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from lingflash.kernels.moe_gemm.triton_nibbles import lane_columns, lane_numbers, place_of
from lingflash.kernels.triton_dot import dot, to_bf16
from lingflash.kernels.triton_launch import start_next, wait_for_previous

__all__ = ["down_int4_kernel", "gate_up_int4_kernel"]

_INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.constexpr_function
def _lines(num_bytes: int) -> int:
    """A power of two of lines that hold so many bytes, or nearly."""
    return 1 << max(num_bytes // 128, 1).bit_length() - 1


@triton.jit
def _to_cache(row, start, BYTES: tl.constexpr):
    """Bring BYTES from `start`, in elements, of each row to the L2 cache."""
    if not _INTERPRETED:
        SIZE: tl.constexpr = row.dtype.element_ty.primitive_bitwidth // 8
        lines = tl.arange(0, _lines(BYTES)) * (128 // SIZE)
        at = (row[:, None] + start + lines[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], tl.int32, is_pure=False,
            pack=1,
        )  # fmt: skip


@triton.jit
def _lanes(row, live, start, ROWS: tl.constexpr):
    """128 columns from `start` of 16-bit rows in lane_order: [ROWS, 128] for a product."""
    i, columns = tl.arange(0, 4) * 32, tl.arange(0, 32)
    at = row[:, None, None] + start + i[None, :, None] + columns[None, None, :]
    x = tl.load(at, mask=live[:, None, None], other=0.0)
    return lane_columns(tl.reshape(x, [ROWS, 4, 4, 2, 2, 2]), ROWS)


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
        x = tl.trans(to_bf16(_lanes(x_row, live, (at + i) * 128, TOKENS)))
        first = dot(_numbers(step[4 * i], step[4 * i + 1], ROWS), x, first)
        second = dot(_numbers(step[4 * i + 2], step[4 * i + 3], ROWS), x, second)
    return first, second


@triton.jit
def _two_products(
    x_row, live, w_row, w_apart, scale_row, scale_apart, WIDTH: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr,
    CACHE: tl.constexpr,
):  # fmt: skip
    """ROWS rows of INT4 weights, and as many further on, times TOKENS rows of x in lane_order.

    float32 [ROWS, TOKENS], twice. AHEAD: a step's weights are asked for before the last one's are
    used; CACHE: how many steps before that they are brought to the L2 cache, or 0.
    """
    CHUNKS: tl.constexpr = WIDTH // 128
    first = tl.zeros([ROWS, TOKENS], tl.float32)
    second = tl.zeros([ROWS, TOKENS], tl.float32)
    step = ()
    if AHEAD:
        step = _ask(w_row, w_apart, scale_row, scale_apart, 0, UNROLL, GROUP)
    for at in tl.range(0, CHUNKS, UNROLL):
        if CACHE > 0:
            # The last steps bring their own once more.
            later = tl.minimum(at + CACHE * UNROLL, CHUNKS - UNROLL)
            _to_cache(w_row, later * 16, 64 * UNROLL)
            _to_cache(w_row + w_apart, later * 16, 64 * UNROLL)
            group = later * (128 // GROUP)
            _to_cache(scale_row, group, 1)
            _to_cache(scale_row + scale_apart, group, 1)
        if AHEAD:
            ahead = tl.minimum(at + UNROLL, CHUNKS - UNROLL)
            after = _ask(w_row, w_apart, scale_row, scale_apart, ahead, UNROLL, GROUP)
            first, second = _add(first, second, x_row, live, step, at, ROWS, TOKENS, UNROLL)
            step = after
        else:
            now = _ask(w_row, w_apart, scale_row, scale_apart, at, UNROLL, GROUP)
            first, second = _add(first, second, x_row, live, now, at, ROWS, TOKENS, UNROLL)
    return first, second


@triton.jit
def _row_again(row_ptr, TOKENS: tl.constexpr):
    """A block's rows, which the loop has no registers to keep."""
    return tl.load(row_ptr + tl.arange(0, TOKENS), volatile=True)


@triton.jit
def _is_full(row_ptr, num_rows, BLOCK_M: tl.constexpr):
    """Whether a block has more than 8 rows; those that are there come first."""
    if BLOCK_M > 8:
        return tl.load(row_ptr + 8) < num_rows
    else:
        return False


@triton.jit
def _gate_up_rows(
    x_ptr, w_ptr, scale_ptr, row_ptr, act_ptr, num_tokens, topk, choices, tile, x_stride,
    scale_stride, GROUP: tl.constexpr, NIBBLES: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr,
    AHEAD: tl.constexpr, CACHE: tl.constexpr,
):  # fmt: skip
    row = tl.load(row_ptr + tl.arange(0, TOKENS))
    token = row // topk
    live = token < num_tokens
    column = tile * ROWS + tl.arange(0, ROWS)
    gate, up = _two_products(
        x_ptr + token * x_stride, live, w_ptr + column * (HIDDEN // 8), WIDTH * (HIDDEN // 8),
        scale_ptr + column * scale_stride, WIDTH * scale_stride,
        HIDDEN, GROUP, ROWS, TOKENS, UNROLL, AHEAD, CACHE,
    )  # fmt: skip
    act = gate * tl.sigmoid(gate) * up
    row = _row_again(row_ptr, TOKENS)
    token = row // topk
    live = token < num_tokens
    if act_ptr.dtype.element_ty == tl.bfloat16:
        act = to_bf16(act)
    place = (token * choices + row % topk) * WIDTH
    at = act_ptr + place[None, :] + place_of(column, NIBBLES)[:, None]
    tl.store(at, act.to(act_ptr.dtype.element_ty), mask=live[None, :])


@triton.jit
def gate_up_int4_kernel(
    x_ptr, w_ptr, scale_ptr, row_ptr, expert_ptr, used_ptr, act_ptr, num_tokens, topk, choices,
    x_stride, expert_stride, scale_expert_stride, scale_stride,
    GROUP: tl.constexpr, NIBBLES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr,
    CACHE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    tile, block = tl.program_id(0), tl.program_id(1)
    wait_for_previous(PDL)
    if block < tl.load(used_ptr):
        expert = tl.load(expert_ptr + block).to(tl.int64)
        row_ptr += block * BLOCK_M
        w_ptr += expert * expert_stride
        scale_ptr += expert * scale_expert_stride
        if _is_full(row_ptr, num_tokens * topk, BLOCK_M):
            _gate_up_rows(
                x_ptr, w_ptr, scale_ptr, row_ptr, act_ptr, num_tokens, topk, choices, tile,
                x_stride, scale_stride, GROUP, NIBBLES, WIDTH, HIDDEN, BLOCK_M, ROWS, UNROLL,
                AHEAD, CACHE,
            )  # fmt: skip
        else:
            _gate_up_rows(
                x_ptr, w_ptr, scale_ptr, row_ptr, act_ptr, num_tokens, topk, choices, tile,
                x_stride, scale_stride, GROUP, NIBBLES, WIDTH, HIDDEN, 8, ROWS, UNROLL, AHEAD,
                CACHE,
            )  # fmt: skip


@triton.jit
def _down_rows(
    act_ptr, w_ptr, scale_ptr, row_ptr, weight_ptr, out_ptr, num_rows, topk, choices, tile,
    scale_stride, GROUP: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr, UNROLL: tl.constexpr,
    AHEAD: tl.constexpr, CACHE: tl.constexpr,
):  # fmt: skip
    row = tl.load(row_ptr + tl.arange(0, TOKENS))
    live = row < num_rows
    weight = tl.load(weight_ptr + row, mask=live, other=0.0)[None, :]
    place = row // topk * choices + row % topk
    CACHED: tl.constexpr = PIECES if CACHE else 0
    for piece in tl.range(PIECES):
        column = (tile * PIECES + piece) * (2 * ROWS) + tl.arange(0, ROWS)
        w_row = w_ptr + column * (WIDTH // 8)
        scale_row = scale_ptr + column * scale_stride
        if piece + 1 < CACHED:
            _to_cache(w_row + 2 * ROWS * (WIDTH // 8), 0, WIDTH // 2)
            _to_cache(w_row + 3 * ROWS * (WIDTH // 8), 0, WIDTH // 2)
            _to_cache(scale_row + 2 * ROWS * scale_stride, 0, 1)
            _to_cache(scale_row + 3 * ROWS * scale_stride, 0, 1)
        first, second = _two_products(
            act_ptr + place * WIDTH, live, w_row, ROWS * (WIDTH // 8), scale_row,
            ROWS * scale_stride, WIDTH, GROUP, ROWS, TOKENS, UNROLL, AHEAD, 0,
        )  # fmt: skip
        at = out_ptr + (place * HIDDEN)[None, :] + column[:, None]
        tl.store(at, first * weight, mask=live[None, :])
        tl.store(at + ROWS, second * weight, mask=live[None, :])


@triton.jit
def down_int4_kernel(
    act_ptr, w_ptr, scale_ptr, row_ptr, expert_ptr, used_ptr, weight_ptr, out_ptr,
    num_tokens, topk, choices, expert_stride, scale_expert_stride, scale_stride,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr, PIECES: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr,
    CACHE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    tile, block = tl.program_id(0), tl.program_id(1)
    wait_for_previous(PDL)
    if block < tl.load(used_ptr):
        expert = tl.load(expert_ptr + block).to(tl.int64)
        row_ptr += block * BLOCK_M
        w_ptr += expert * expert_stride
        scale_ptr += expert * scale_expert_stride
        num_rows = num_tokens * topk
        if _is_full(row_ptr, num_rows, BLOCK_M):
            _down_rows(
                act_ptr, w_ptr, scale_ptr, row_ptr, weight_ptr, out_ptr, num_rows, topk, choices,
                tile, scale_stride, GROUP, WIDTH, HIDDEN, BLOCK_M, ROWS, PIECES, UNROLL, AHEAD,
                CACHE,
            )  # fmt: skip
        else:
            _down_rows(
                act_ptr, w_ptr, scale_ptr, row_ptr, weight_ptr, out_ptr, num_rows, topk, choices,
                tile, scale_stride, GROUP, WIDTH, HIDDEN, 8, ROWS, PIECES, UNROLL, AHEAD, CACHE,
            )  # fmt: skip
