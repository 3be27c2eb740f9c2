"""Lightning attention over any number of tokens on the GPU: segments in parallel.

Three kernels. One sums what each segment adds to the state. One carries the states over the
segments of a sequence, from its anchor and tail on, leaving the state before each segment and
writing the sequence's own. One walks every segment in tiles of tokens, its state in registers, and
gives the outputs. So states travel through memory once in a segment (up to 2,048 tokens), not
once in a chunk of 64, while enough segments run at once to fill the machine.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and knows num_warps.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.lightning_attn.segments import SegmentTables
from lingflash.kernels.triton_dot import dot

__all__ = ["AttendConfig", "lightning_prefill_triton"]

# Columns of a segment's and of a sequence's row of tables, see SegmentTables.
_SEGMENT_WIDTH, _SEQUENCE_WIDTH = tl.constexpr(4), tl.constexpr(9)


@dataclass(frozen=True, slots=True)
class AttendConfig:
    """How the tensor-core kernels are cut; for tuning.

    Args:
        block_t: tokens of a tile.
        block_v: value columns of a program of the output.
        num_warps, num_stages: of the output's kernel.
        update_block_v, update_warps, update_stages: the same of the segments' updates.
    """

    block_t: int = 64
    block_v: int = 64
    num_warps: int = 4
    num_stages: int = 2
    update_block_v: int = 128
    update_warps: int = 8
    update_stages: int = 3


_BF16 = AttendConfig()
# Without tensor cores: products are made of registers.
_FLOAT32 = AttendConfig(
    block_t=16, block_v=16, num_warps=4, num_stages=1, update_block_v=32, update_warps=4,
    update_stages=1,
)  # fmt: skip


@triton.jit
def _update_kernel(
    k_ptr, v_ptr, segment_ptr, rate_ptr, update_ptr, k_stride, v_stride,
    HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """sum_j lambda^(n-1-j) k_j v_j^T over the n tokens of a segment: float32 [K, V]."""
    tiles_v: tl.constexpr = (VALUE + BLOCK_V - 1) // BLOCK_V
    head, tile, segment = tl.program_id(0) // tiles_v, tl.program_id(0) % tiles_v, tl.program_id(1)
    begin = tl.load(segment_ptr + segment * _SEGMENT_WIDTH)
    num_rows = tl.load(segment_ptr + segment * _SEGMENT_WIDTH + 1) - begin
    if tl.load(segment_ptr + segment * _SEGMENT_WIDTH + 2) == 0:
        return
    rate = tl.load(rate_ptr + head)
    t = tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_K)
    column = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    k_at = k_ptr + begin.to(tl.int64) * k_stride + head * KEY + channel[None, :]
    v_at = v_ptr + begin.to(tl.int64) * v_stride + head * VALUE + column[None, :]
    total = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    for done in range(0, num_rows, BLOCK_T):
        row = done + t
        live = (row < num_rows)[:, None]
        k = tl.load(k_at + row[:, None] * k_stride, mask=live & (channel < KEY)[None, :], other=0.0)
        v = tl.load(
            v_at + row[:, None] * v_stride, mask=live & (column < VALUE)[None, :], other=0.0
        )
        weight = tl.exp2(-rate * tl.maximum(num_rows - 1 - row, 0))
        v = (v.to(tl.float32) * weight[:, None]).to(k.dtype)
        total = dot(tl.trans(k), v, total)
    at = update_ptr + (segment.to(tl.int64) * HEADS + head) * KEY * VALUE
    at += channel[:, None] * VALUE + column[None, :]
    tl.store(at, total, mask=(channel < KEY)[:, None] & (column < VALUE)[None, :])


@triton.jit
def _carry_kernel(
    segment_ptr, sequence_ptr, rate_ptr, update_ptr, states_ptr, tail_k_ptr, tail_v_ptr, tail,
    HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_TAIL: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Replace each segment's update by the state before it; one tile of a head's state."""
    head, sequence = tl.program_id(0), tl.program_id(2)
    tiles_v: tl.constexpr = (VALUE + BLOCK_V - 1) // BLOCK_V
    channel = tl.program_id(1) // tiles_v * BLOCK_K + tl.arange(0, BLOCK_K)
    column = tl.program_id(1) % tiles_v * BLOCK_V + tl.arange(0, BLOCK_V)
    line = sequence_ptr + sequence * _SEQUENCE_WIDTH
    slot = tl.load(line).to(tl.int64) * HEADS + head
    num_tail, tail_folds = tl.load(line + 1), tl.load(line + 2)
    first, folded, end = tl.load(line + 3), tl.load(line + 4), tl.load(line + 5)
    rate = tl.load(rate_ptr + head)
    place = channel[:, None] * VALUE + column[None, :]
    inside = (channel < KEY)[:, None] & (column < VALUE)[None, :]
    state_at = states_ptr + slot * KEY * VALUE + place
    state = tl.load(state_at, mask=inside, other=0.0)
    if num_tail > 0:
        j = tl.arange(0, BLOCK_TAIL)
        key_at = tail_k_ptr + (slot * tail + j)[None, :] * KEY + channel[:, None]
        value_at = tail_v_ptr + (slot * tail + j)[:, None] * VALUE + column[None, :]
        live = j < num_tail
        keys = tl.load(key_at, mask=live[None, :] & (channel < KEY)[:, None], other=0.0)
        values = tl.load(value_at, mask=live[:, None] & (column < VALUE)[None, :], other=0.0)
        if (tail_folds > 0) & (folded == first):
            weight = tl.exp2(-rate * tl.maximum(tail_folds - 1 - j, 0))
            weight = tl.where(j < tail_folds, weight, 0.0)
            fold = dot(keys * weight[None, :], values, state * tl.exp2(-rate * tail_folds))
            tl.store(state_at, fold, mask=inside)
        weight = tl.exp2(-rate * tl.maximum(num_tail - 1 - j, 0))
        state = dot(keys * weight[None, :], values, state * tl.exp2(-rate * num_tail))
    at = update_ptr + (first.to(tl.int64) * HEADS + head) * KEY * VALUE + place
    for segment in tl.range(first, end, num_stages=4):
        update = tl.load(at, mask=inside, other=0.0)
        line = segment_ptr + segment * _SEGMENT_WIDTH
        num_rows = tl.load(line + 1) - tl.load(line)
        # An update that nobody needed was not made; what comes of it here is not used either.
        after = state * tl.exp2(-rate * num_rows) + update
        # In this order: loads run ahead of the loop and are sure to be done only when used.
        tl.store(at, state, mask=inside)
        state = after
        if segment == folded - 1:
            tl.store(state_at, state, mask=inside)
        at += HEADS * KEY * VALUE


@triton.jit
def _keep(
    x_ptr, x_stride, tail_ptr, sequence_ptr, head, channel, inside, tail,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_TAIL: tl.constexpr,
):  # fmt: skip
    """Write what follows a sequence's fold to its tail, old tail tokens among it."""
    slot = tl.load(sequence_ptr).to(tl.int64) * HEADS + head
    num_tail, tail_folds = tl.load(sequence_ptr + 1), tl.load(sequence_ptr + 2)
    start, first_kept = tl.load(sequence_ptr + 6), tl.load(sequence_ptr + 7)
    num_rows = tl.load(sequence_ptr + 8)
    place = tl.arange(0, BLOCK_TAIL)
    token = first_kept + place  # of the sequence's query tokens; those below 0 are old
    is_new = (token >= 0) & (token < num_rows)
    moves = (token < 0) & (tail_folds > 0)  # else they are where they belong
    row = (start + tl.maximum(token, 0)).to(tl.int64)
    new = tl.load(
        x_ptr + row[:, None] * x_stride + channel[None, :],
        mask=is_new[:, None] & inside[None, :], other=0.0,
    )  # fmt: skip
    at = tail_ptr + (slot * tail + num_tail + token)[:, None] * DIM + channel[None, :]
    old = tl.load(at, mask=moves[:, None] & inside[None, :], other=0.0)
    tl.debug_barrier()  # all is read before any of it is written over
    at = tail_ptr + (slot * tail + place)[:, None] * DIM + channel[None, :]
    is_kept = (is_new | moves)[:, None] & inside[None, :]
    tl.store(at, tl.where(moves[:, None], old, new.to(tl.float32)), mask=is_kept)


@triton.jit
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, segment_ptr, sequence_ptr, rate_ptr, before_ptr, tail_k_ptr, tail_v_ptr,
    out_ptr, q_stride, k_stride, v_stride, tail, scale,
    HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Outputs of a segment's tokens; the last segment of a sequence writes the new tail too."""
    tiles_v: tl.constexpr = (VALUE + BLOCK_V - 1) // BLOCK_V
    head, tile, segment = tl.program_id(0) // tiles_v, tl.program_id(0) % tiles_v, tl.program_id(1)
    line = segment_ptr + segment * _SEGMENT_WIDTH
    begin = tl.load(line)
    num_rows = tl.load(line + 1) - begin
    rate = tl.load(rate_ptr + head)
    t = tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_K)
    column = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    first = begin.to(tl.int64)
    q_at = q_ptr + first * q_stride + head * KEY + channel[None, :]
    k_at = k_ptr + first * k_stride + head * KEY + channel[None, :]
    v_at = v_ptr + first * v_stride + head * VALUE + column[None, :]
    out_at = out_ptr + (first * HEADS + head) * VALUE + column[None, :]
    at = before_ptr + (segment.to(tl.int64) * HEADS + head) * KEY * VALUE
    at += channel[:, None] * VALUE + column[None, :]
    has_key, has_value = (channel < KEY)[None, :], (column < VALUE)[None, :]
    state = tl.load(at, mask=(channel < KEY)[:, None] & has_value, other=0.0)
    gap = t[:, None] - t[None, :]
    # The difference first: lambda^-j alone overflows for a fast head and a large tile.
    within = tl.where(gap >= 0, tl.exp2(-rate * tl.maximum(gap, 0)) * scale, 0.0)
    since = tl.exp2(-rate * (t + 1)) * scale
    until = tl.exp2(-rate * (BLOCK_T - 1 - t))
    carry = tl.exp2(-rate * BLOCK_T)
    for done in range(0, num_rows, BLOCK_T):
        row = done + t
        live = (row < num_rows)[:, None]
        q = tl.load(q_at + row[:, None] * q_stride, mask=live & has_key, other=0.0)
        k = tl.load(k_at + row[:, None] * k_stride, mask=live & has_key, other=0.0)
        v = tl.load(v_at + row[:, None] * v_stride, mask=live & has_value, other=0.0)
        scores = dot(q, tl.trans(k), tl.zeros([BLOCK_T, BLOCK_T], tl.float32)) * within
        out = dot(q, state.to(q.dtype), tl.zeros([BLOCK_T, BLOCK_V], tl.float32))
        out = dot(scores.to(v.dtype), v, out * since[:, None])
        tl.store(
            out_at + row[:, None] * (HEADS * VALUE), out.to(out_ptr.dtype.element_ty),
            mask=live & has_value,
        )  # fmt: skip
        # Past the segment's end rows are 0 and the state is not used again.
        v = (v.to(tl.float32) * until[:, None]).to(k.dtype)
        state = dot(tl.trans(k), v, state * carry)
    sequence = tl.load(line + 3)
    if sequence >= 0:
        row = sequence_ptr + sequence * _SEQUENCE_WIDTH
        # Each program writes its own value columns; one of them the keys.
        _keep(v_ptr + head * VALUE, v_stride, tail_v_ptr, row, head, column, column < VALUE,
              tail, HEADS, VALUE, BLOCK_TAIL)  # fmt: skip
        if tile == 0:
            _keep(k_ptr + head * KEY, k_stride, tail_k_ptr, row, head, channel, channel < KEY,
                  tail, HEADS, KEY, BLOCK_TAIL)  # fmt: skip


def lightning_prefill_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log2_rate: Tensor,
    states: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    segments: SegmentTables,
    *,
    out_dtype: torch.dtype | None = None,
    config: AttendConfig | None = None,
) -> Tensor:
    """Attend to each sequence's whole past through its state and tail, and advance both.

    Args:
        q, k: bfloat16 or float32 [T, H, K], a token's heads contiguous; rows may be strided.
        v: same dtype [T, H, V], likewise.
        log2_rate: float32 [H], -log2 of the decay per token.
        states: float32 [slots, H, K, V], contiguous; updated in place.
        tail_k, tail_v: float32 [slots, H, tail, K or V], contiguous; updated in place.
        segments: layout of the batch, T rows.
        out_dtype: of the result; that of q if None.
        config: how the work is cut; a good one by dtype if None.

    Returns:
        [T, H, V], contiguous.

    Raises:
        ValueError: a shape, dtype or stride does not fit.

    Numerics: sums, decays and states in float32. Products of float32 in float32: within 2e-5 of
        reference.py relative to the largest output. Of bfloat16 on the tensor cores: scores,
        decayed values and the state as an operand (never as it is kept) are rounded to bfloat16,
        which moves an output by less than 1% of the largest. Sync: none, graph-safe for one
        layout.
    """
    num_rows, heads, key_dim = q.shape
    value_dim = v.shape[-1]
    _check(q, k, v, states, tail_k, tail_v, segments)
    out = torch.empty(num_rows, heads, value_dim, dtype=out_dtype or q.dtype, device=q.device)
    if not num_rows:
        return out
    c = config or (_FLOAT32 if q.dtype == torch.float32 else _BF16)
    memory = torch.empty(
        segments.num_segments, heads, key_dim, value_dim, dtype=torch.float32, device=q.device
    )
    block_k = max(triton.next_power_of_2(key_dim), 16)
    widest_v = max(triton.next_power_of_2(value_dim), 16)
    shape = {"HEADS": heads, "KEY": key_dim, "VALUE": value_dim}
    tail = tail_k.shape[2]
    block_tail = max(triton.next_power_of_2(tail), 16)
    # Programs that read the same rows are next to each other, so that memory gives them once.
    block_v = min(c.update_block_v, widest_v)
    _update_kernel[(heads * triton.cdiv(value_dim, block_v), segments.num_segments)](
        k, v, segments.segments, log2_rate, memory, k.stride(0), v.stride(0),
        **shape, BLOCK_T=c.block_t, BLOCK_K=block_k, BLOCK_V=block_v,
        num_warps=c.update_warps, num_stages=c.update_stages,
    )  # fmt: skip
    tile_k, tile_v = min(32, block_k), min(32, widest_v)
    tiles = triton.cdiv(key_dim, tile_k) * triton.cdiv(value_dim, tile_v)
    _carry_kernel[(heads, tiles, segments.num_sequences)](
        segments.segments, segments.sequences, log2_rate, memory, states, tail_k, tail_v, tail,
        **shape, BLOCK_TAIL=block_tail, BLOCK_K=tile_k, BLOCK_V=tile_v, num_warps=4,
    )  # fmt: skip
    block_v = min(c.block_v, widest_v)
    _attend_kernel[(heads * triton.cdiv(value_dim, block_v), segments.num_segments)](
        q, k, v, segments.segments, segments.sequences, log2_rate, memory, tail_k, tail_v,
        out, q.stride(0), k.stride(0), v.stride(0), tail, key_dim**-0.5,
        **shape, BLOCK_TAIL=block_tail, BLOCK_T=c.block_t, BLOCK_K=block_k, BLOCK_V=block_v,
        num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip
    return out


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    states: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    segments: SegmentTables,
) -> None:
    if q.shape[0] != segments.num_rows or q.shape != k.shape or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit a plan of "
            f"{segments.num_rows} tokens."
        )
    if q.dtype not in (torch.float32, torch.bfloat16) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; one of float32, bfloat16.")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.numel() and (x.stride(2) != 1 or x.stride(1) != x.shape[2]):
            raise ValueError(f"{name} has strides {x.stride()}; a token's heads must be adjacent.")
    for name, x in (("states", states), ("tail_k", tail_k), ("tail_v", tail_v)):
        if x.dtype != torch.float32 or not x.is_contiguous():
            raise ValueError(f"{name} must be contiguous and float32.")
