"""Lightning attention over any number of tokens on the GPU: segments in parallel.

Two kernels. One sums what each segment adds to the state, where another segment follows, and sets
out the state before the first. One begins each segment with the sum of what came before it, walks
it in tiles of tokens with the state in registers, gives the outputs, and leaves the state and the
tail where the sequence's fold and its end are. So states travel through memory once in a segment
(up to 8,192 tokens), not once in a chunk of 64, while enough segments run at once to fill the
machine.

States are transposed, [V, K], but in the cache: as a product's first operand a state comes from
registers, and only decayed values and scores pass through shared memory, which is what limits a
tile's time.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and knows num_warps.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lingflash.kernels.lightning_attn.segments import (
    SEGMENT_WIDTH,
    SEQUENCE_WIDTH,
    SegmentTables,
)
from lingflash.kernels.triton_dot import dot
from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous

# Columns of a segment's and of a sequence's row of tables, see SegmentTables.
_SEGMENT_WIDTH, _SEQUENCE_WIDTH = tl.constexpr(SEGMENT_WIDTH), tl.constexpr(SEQUENCE_WIDTH)


@dataclass(frozen=True, slots=True)
class AttendConfig:
    """How the tensor-core kernels are cut; for tuning.

    Args:
        block_t: tokens of a tile.
        block_v: value columns of a program of the output; the tensor cores take 64 at least.
        num_warps, num_stages: of the output's kernel.
        update_block_v, update_warps, update_stages: the same of the segments' updates.
    """

    block_t: int = 64
    block_v: int = 128
    num_warps: int = 8
    num_stages: int = 3
    update_block_v: int = 128
    update_warps: int = 8
    update_stages: int = 3


# Tiles by the copy engine where it can, else by threads.
_COPY_ENGINE = True
_BF16 = AttendConfig()
# Without tensor cores: products are made of registers.
_FLOAT32 = AttendConfig(
    block_t=16, block_v=16, num_warps=4, num_stages=1, update_block_v=32, update_warps=4,
    update_stages=1,
)  # fmt: skip


@triton.jit
def _rows(ptr, stride, begin, left, column, inside, BLOCK: tl.constexpr):
    """A tile of tokens; those past `left` are 0."""
    t = tl.arange(0, BLOCK)
    at = ptr + begin.to(tl.int64) * stride + t[:, None] * stride + column[None, :]
    return tl.load(at, mask=(t < left)[:, None] & inside[None, :], other=0.0)


@triton.jit
def _decayed(x, rate, left):
    """Columns of x [D, T], those of `left` tokens, decayed to the moment after the last."""
    j = tl.arange(0, x.shape[1])
    weight = tl.where(j < left, tl.exp2(-rate * tl.maximum(left - 1 - j, 0)), 0.0)
    return (x.to(tl.float32) * weight[None, :]).to(x.dtype)


@triton.jit
def _update_kernel(
    k_ptr, v_ptr, k_desc, v_desc, segment_ptr, sequence_ptr, rate_ptr, memory_ptr, states_ptr,
    tail_k_ptr, tail_v_ptr, k_stride, v_stride, tail,
    HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, COPY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What a segment adds to the state, if another follows; the first sets out the state too."""
    tiles_v: tl.constexpr = (VALUE + BLOCK_V - 1) // BLOCK_V
    head, tile, segment = tl.program_id(0) // tiles_v, tl.program_id(0) % tiles_v, tl.program_id(1)
    channel = tl.arange(0, BLOCK_K)
    column = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    has_key, has_value = channel < KEY, column < VALUE
    inside = has_value[:, None] & has_key[None, :]
    wait_for_previous(PDL)
    start_next(PDL)
    line = segment_ptr + segment * _SEGMENT_WIDTH
    begin = tl.load(line)
    num_rows = tl.load(line + 1) - begin
    if num_rows == 0:  # padding
        return
    line = sequence_ptr + tl.load(line + 2) * _SEQUENCE_WIDTH
    first, end = tl.load(line + 3), tl.load(line + 5)
    rate = tl.load(rate_ptr + head)
    memory_at = memory_ptr + (segment.to(tl.int64) * HEADS + head) * KEY * VALUE
    memory_at += column[:, None] * KEY + channel[None, :]
    if segment == first:
        slot = tl.load(line).to(tl.int64) * HEADS + head
        num_tail, tail_folds = tl.load(line + 1), tl.load(line + 2)
        state_at = states_ptr + slot * KEY * VALUE + channel[None, :] * VALUE + column[:, None]
        state = tl.load(state_at, mask=inside, other=0.0)
        # Where no new token is folded, the state moves to the anchor inside the old tail.
        fold_at = tl.where(tl.load(line + 4) == first, tail_folds, 0) - 1
        decay = tl.exp2(-rate)
        for j in range(num_tail):
            key = tl.load(tail_k_ptr + (slot * tail + j) * KEY + channel, mask=has_key, other=0.0)
            value = tl.load(
                tail_v_ptr + (slot * tail + j) * VALUE + column, mask=has_value, other=0.0
            )
            state = state * decay + value[:, None] * key[None, :]
            if j == fold_at:
                tl.store(state_at, state, mask=inside)
        tl.store(memory_at, state, mask=inside)
    if segment == end - 1:
        return
    k_ptr += head * KEY
    v_ptr += head * VALUE
    total = tl.zeros([BLOCK_V, BLOCK_K], tl.float32)
    # The last tile comes first: what is read last is what the next kernel begins with, and the
    # cache still has some of it.
    whole = num_rows // BLOCK_T * BLOCK_T
    left = num_rows - whole
    if left > 0:
        row = begin + whole
        k = _rows(k_ptr, k_stride, row, left, channel, has_key, BLOCK_T)
        v = _rows(v_ptr, v_stride, row, left, column, has_value, BLOCK_T)
        total = dot(_decayed(tl.trans(v), rate, left), k, total)
    for done in range(0, whole, BLOCK_T):
        row = begin + whole - BLOCK_T - done
        if COPY:
            k = k_desc.load([row, head * KEY])
            v = v_desc.load([row, head * VALUE + tile * BLOCK_V])
        else:
            k = _rows(k_ptr, k_stride, row, BLOCK_T, channel, has_key, BLOCK_T)
            v = _rows(v_ptr, v_stride, row, BLOCK_T, column, has_value, BLOCK_T)
        weight = tl.exp2(-rate * (left + done + BLOCK_T - 1 - tl.arange(0, BLOCK_T)))
        v = (tl.trans(v).to(tl.float32) * weight[None, :]).to(k.dtype)
        total = dot(v, k, total)
    tl.store(memory_at + HEADS * KEY * VALUE, total, mask=inside)


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
def _attend_tile(state, q, k, v, within, since, rate, left):
    """Outputs [V, T] of a tile of tokens, and the state [V, K] after `left` of them."""
    scores = dot(k, tl.trans(q), tl.zeros([k.shape[0], q.shape[0]], tl.float32)) * within
    out = dot(state.to(q.dtype), tl.trans(q), tl.zeros([v.shape[1], q.shape[0]], tl.float32))
    v = tl.trans(v)
    out = dot(v, scores.to(v.dtype), out * since[None, :])
    state = dot(_decayed(v, rate, left), k, state * tl.exp2(-rate * left))
    return out, state


@triton.jit
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, q_desc, k_desc, v_desc, out_desc, segment_ptr, sequence_ptr,
    rate_ptr, memory_ptr, states_ptr, tail_k_ptr, tail_v_ptr, q_stride, k_stride, v_stride, tail,
    scale,
    HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, COPY: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Outputs of a segment's tokens; where a segment ends in the fold or the sequence, memory."""
    tiles_v: tl.constexpr = (VALUE + BLOCK_V - 1) // BLOCK_V
    head, tile, segment = tl.program_id(0) // tiles_v, tl.program_id(0) % tiles_v, tl.program_id(1)
    t = tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_K)
    column = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    has_key, has_value = channel < KEY, column < VALUE
    inside = has_value[:, None] & has_key[None, :]
    wait_for_previous(PDL)
    start_next(PDL)
    rate = tl.load(rate_ptr + head)
    line = segment_ptr + segment * _SEGMENT_WIDTH
    begin = tl.load(line)
    num_rows = tl.load(line + 1) - begin
    if num_rows == 0:  # padding
        return
    sequence = sequence_ptr + tl.load(line + 2) * _SEQUENCE_WIDTH
    start = tl.load(sequence + 3)
    at = memory_ptr + (start.to(tl.int64) * HEADS + head) * KEY * VALUE
    at += column[:, None] * KEY + channel[None, :]
    state = tl.load(at, mask=inside, other=0.0)
    for earlier in range(start, segment):
        at += HEADS * KEY * VALUE
        line = segment_ptr + earlier * _SEGMENT_WIDTH
        state *= tl.exp2(-rate * (tl.load(line + 1) - tl.load(line)))
        state += tl.load(at, mask=inside, other=0.0)
    gap = t[None, :] - t[:, None]
    # The difference first: lambda^-j alone overflows for a fast head and a large tile.
    within = tl.where(gap >= 0, tl.exp2(-rate * tl.maximum(gap, 0)) * scale, 0.0)
    since = tl.exp2(-rate * (t + 1)) * scale
    q_ptr += head * KEY
    k_ptr += head * KEY
    v_ptr += head * VALUE
    out_ptr += head * VALUE
    out_places = t[None, :] * (HEADS * VALUE) + column[:, None]
    whole = num_rows // BLOCK_T * BLOCK_T
    for done in range(0, whole, BLOCK_T):
        row = begin + done
        if COPY:
            q = q_desc.load([row, head * KEY])
            k = k_desc.load([row, head * KEY])
            v = v_desc.load([row, head * VALUE + tile * BLOCK_V])
        else:
            q = _rows(q_ptr, q_stride, row, BLOCK_T, channel, has_key, BLOCK_T)
            k = _rows(k_ptr, k_stride, row, BLOCK_T, channel, has_key, BLOCK_T)
            v = _rows(v_ptr, v_stride, row, BLOCK_T, column, has_value, BLOCK_T)
        out, state = _attend_tile(state, q, k, v, within, since, rate, BLOCK_T)
        out = out.to(out_ptr.dtype.element_ty)
        if COPY:
            out_desc.store([row, head * VALUE + tile * BLOCK_V], tl.trans(out))
        else:
            out_at = out_ptr + row.to(tl.int64) * (HEADS * VALUE) + out_places
            tl.store(out_at, out, mask=has_value[:, None])
    left = num_rows - whole
    if left > 0:
        last = begin + whole
        q = _rows(q_ptr, q_stride, last, left, channel, has_key, BLOCK_T)
        k = _rows(k_ptr, k_stride, last, left, channel, has_key, BLOCK_T)
        v = _rows(v_ptr, v_stride, last, left, column, has_value, BLOCK_T)
        out, state = _attend_tile(state, q, k, v, within, since, rate, left)
        last_at = out_ptr + last.to(tl.int64) * (HEADS * VALUE) + out_places
        out = out.to(out_ptr.dtype.element_ty)
        tl.store(last_at, out, mask=(t < left)[None, :] & has_value[:, None])
    if segment == tl.load(sequence + 4) - 1:
        slot = tl.load(sequence).to(tl.int64) * HEADS + head
        at = states_ptr + slot * KEY * VALUE + channel[None, :] * VALUE + column[:, None]
        tl.store(at, state, mask=inside)
    if segment == tl.load(sequence + 9) - 1:
        slot = tl.load(sequence + 10).to(tl.int64) * HEADS + head
        at = states_ptr + slot * KEY * VALUE + channel[None, :] * VALUE + column[:, None]
        tl.store(at, state, mask=inside)
    if segment == tl.load(sequence + 5) - 1:
        # Each program writes its own value columns; one of them the keys.
        _keep(v_ptr, v_stride, tail_v_ptr, sequence, head, column, has_value,
              tail, HEADS, VALUE, BLOCK_TAIL)  # fmt: skip
        if tile == 0:
            _keep(k_ptr, k_stride, tail_k_ptr, sequence, head, channel, has_key,
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
    make = torch.zeros if segments.has_gaps else torch.empty
    out = make(num_rows, heads, value_dim, dtype=out_dtype or q.dtype, device=q.device)
    if not num_rows:
        return out
    c = config or (_FLOAT32 if q.dtype == torch.float32 else _BF16)
    memory = torch.empty(
        segments.num_segments, heads, value_dim, key_dim, dtype=torch.float32, device=q.device
    )
    block_k = max(triton.next_power_of_2(key_dim), 16)
    widest_v = max(triton.next_power_of_2(value_dim), 16)
    shape = {"HEADS": heads, "KEY": key_dim, "VALUE": value_dim}
    tail = tail_k.shape[2]
    block_tail = max(triton.next_power_of_2(tail), 16)
    tables = segments.segments, segments.sequences, log2_rate, memory, states, tail_k, tail_v
    options = launch_options(q)

    def launch(kernel: Any, tensors: list[Tensor], block_v: int, **cut: Any) -> None:
        """Programs that read the same rows are next to each other: memory gives them once."""
        # The copy engine takes tiles without edges, in rows on its grid of 16 bytes.
        copy = _COPY_ENGINE and q.dtype == torch.bfloat16
        copy = copy and key_dim == block_k and value_dim % block_v == 0
        copy = copy and all(x.data_ptr() % 16 == 0 and x.stride(0) % 8 == 0 for x in tensors)
        operands = tensors
        if copy:
            operands = [
                TensorDescriptor(
                    x, [num_rows, heads * x.shape[2]], [x.stride(0), 1],
                    [c.block_t, block_k if x is q or x is k else block_v],
                )
                for x in tensors
            ]  # fmt: skip
        kernel[(heads * triton.cdiv(value_dim, block_v), segments.num_segments)](
            *tensors, *operands, *tables, **cut, **shape, BLOCK_T=c.block_t, BLOCK_K=block_k,
            BLOCK_V=block_v, COPY=copy, **options,
        )  # fmt: skip

    launch(
        _update_kernel, [k, v], min(c.update_block_v, widest_v), k_stride=k.stride(0),
        v_stride=v.stride(0), tail=tail, num_warps=c.update_warps, num_stages=c.update_stages,
    )  # fmt: skip
    launch(
        _attend_kernel, [q, k, v, out], min(c.block_v, widest_v), q_stride=q.stride(0),
        k_stride=k.stride(0), v_stride=v.stride(0), tail=tail, scale=key_dim**-0.5,
        BLOCK_TAIL=block_tail, num_warps=c.num_warps, num_stages=c.num_stages,
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
