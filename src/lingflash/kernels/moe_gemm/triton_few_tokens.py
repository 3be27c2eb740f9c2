"""Expert products of few tokens on the GPU, by tensor cores: blocks of 16 rows of one expert each.
BF16 and FP8 weights; INT4's are in triton_few_tokens_int4.py.

Most rows of a block are empty at small batches, which costs nothing while the weights come from
memory. plan_kernel says which rows are in which block; a shared expert's blocks come last.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import triton
import triton.language as tl

from lingflash.kernels.moe_gemm.triton_nibbles import place_of
from lingflash.kernels.skinny_gemm.triton_few_rows import narrow
from lingflash.kernels.skinny_gemm.triton_one_row import SCALE_BLOCK
from lingflash.kernels.triton_dot import dot
from lingflash.kernels.triton_launch import start_next, wait_for_previous

__all__ = [
    "dense_down_kernel",
    "dense_gate_up_kernel",
    "down_kernel",
    "gate_up_kernel",
    "plan_kernel",
]


@triton.jit
def _rows_gate_up(
    x_row, w_ptr, scale_ptr, act_row, live, tile, scale_stride,
    SCALES: tl.constexpr, NIBBLES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of x through BLOCK_N gate and up columns of one expert."""
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < WIDTH
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
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
    SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of activations through BLOCK_N columns of one expert's way back."""
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < HIDDEN
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    w_row = w_ptr + column[:, None] * WIDTH
    scale_row = scale_ptr + (tile * BLOCK_N // SCALE_BLOCK) * scale_stride
    k = tl.arange(0, BLOCK_K)
    for start in tl.range(0, WIDTH, BLOCK_K):
        at = start + k
        x = tl.load(act_row + at[None, :], mask=live[:, None] & (at < WIDTH)[None, :], other=0.0)
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
def gate_up_kernel(
    x_ptr, w_ptr, scale_ptr, row_ptr, expert_ptr, used_ptr, act_ptr,
    plain_ptr, shared_ptr, shared_scale_ptr, num_tokens, topk, choices, num_blocks,
    x_stride, expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    SCALES: tl.constexpr, NIBBLES: tl.constexpr, SHARED: tl.constexpr,
    SHARED_SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
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
                scale_stride, SCALES, NIBBLES, WIDTH, HIDDEN, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    elif SHARED:
        token = (block - num_blocks) * BLOCK_M + m
        act_row = act_ptr + (token * choices + topk)[:, None] * WIDTH
        _rows_gate_up(
            plain_ptr + token[:, None] * x_stride, shared_ptr, shared_scale_ptr, act_row,
            token < num_tokens, tile, shared_scale_stride, SHARED_SCALES, False, WIDTH, HIDDEN,
            BLOCK_M, BLOCK_N, 128,
        )  # fmt: skip


@triton.jit
def dense_gate_up_kernel(
    x_ptr, w_ptr, scale_ptr, act_ptr, num_tokens, x_stride, act_stride, scale_stride,
    SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """An expert that all tokens take, BLOCK_M of them a program."""
    start_next(PDL)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    wait_for_previous(PDL)
    _rows_gate_up(
        x_ptr + token[:, None] * x_stride, w_ptr, scale_ptr, act_ptr + token[:, None] * act_stride,
        token < num_tokens, tl.program_id(0), scale_stride, SCALES, False, WIDTH, HIDDEN,
        BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip


@triton.jit
def dense_down_kernel(
    act_ptr, w_ptr, scale_ptr, out_ptr, num_tokens, act_stride, out_stride, scale_stride,
    SCALES: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The way back of an expert that all tokens take."""
    start_next(PDL)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    wait_for_previous(PDL)
    _rows_down(
        act_ptr + token[:, None] * act_stride, w_ptr, scale_ptr,
        out_ptr + token[:, None] * out_stride, tl.full([BLOCK_M], 1.0, tl.float32),
        token < num_tokens, tl.program_id(0), scale_stride, SCALES, WIDTH, HIDDEN,
        BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip


@triton.jit
def down_kernel(
    act_ptr, w_ptr, scale_ptr, row_ptr, expert_ptr, used_ptr, weight_ptr, out_ptr,
    shared_ptr, shared_scale_ptr, num_tokens, topk, choices, num_blocks,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    SCALES: tl.constexpr, SHARED: tl.constexpr, SHARED_SCALES: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
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
                weight, live, tile, scale_stride, SCALES, WIDTH, HIDDEN,
                BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    elif SHARED:
        token = (block - num_blocks) * BLOCK_M + m
        place = token * choices + topk
        _rows_down(
            act_ptr + place[:, None] * WIDTH, shared_ptr, shared_scale_ptr,
            out_ptr + place[:, None] * HIDDEN, tl.full([BLOCK_M], 1.0, tl.float32),
            token < num_tokens, tile, shared_scale_stride, SHARED_SCALES, WIDTH, HIDDEN,
            BLOCK_M, BLOCK_N, 128,
        )  # fmt: skip


@triton.jit
def plan_kernel(
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
