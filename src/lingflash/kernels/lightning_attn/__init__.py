"""Lightning linear attention with an anchored state: prefill, decode, verification in one.

    tokens                               on a CPU, float32    on a GPU, BF16
    one of each sequence                 __init__.py          triton_decode.py
    ... of one sequence, fast mode       ../cpu/decode.c      triton_decode.py
    up to 8 of each of 1 or 2 (drafts)   chunks.py            triton_verify.py
    more                                 chunks.py            triton_prepare.py, triton_prefill.py
                                                              over segments.py

plan.py chooses for a step; its definition is reference.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lingflash.core.anchors import ANCHOR
from lingflash.kernels.lightning_attn.chunks import ChunkTables
from lingflash.kernels.lightning_attn.plan import LightningPlan, plan_lightning
from lingflash.kernels.lightning_attn.reference import lightning_attention_reference

__all__ = [
    "DecayTables",
    "LightningPlan",
    "decay_tables",
    "lightning_attention",
    "lightning_attention_reference",
    "plan_lightning",
]

# Chunks whose states are held at once: bounds the workspace, so that time is linear in the prompt.
_SEGMENT_CHUNKS = 32

_Memory = tuple[Tensor, Tensor, Tensor]  # states, tail_k, tail_v


@dataclass(frozen=True, slots=True)
class DecayTables:
    """Powers of the decay of one layer, for one chunk size C; K is the key width, A = ANCHOR.

    Args:
        within: float32 [H, C, C], K^(-1/2) lambda^(i-j) for i >= j, else 0.
        query: float32 [H, C, 1], K^(-1/2) lambda^(i+1): what the state at the chunk's start has
            decayed to.
        fold: float32 [C/A+1, H, C, 1], row n: lambda^(nA-1-j) for j < nA, else 0.
        carry: float32 [C/A+1, H, 1, 1], row n: lambda^(nA).
        decode: float32 [A, H, A], row t: `within` of the token at tail place t, for one token.
        decode_query: float32 [A, H, 1], row t: `query` of it.
        log2_rate: float32 [H], -log2 of the decay per token.
    """

    within: Tensor
    query: Tensor
    fold: Tensor
    carry: Tensor
    decode: Tensor
    decode_query: Tensor
    log2_rate: Tensor


def decay_tables(decay_rate: Tensor, chunk: int, key_dim: int, device: torch.device) -> DecayTables:
    """Tabulate the powers of lambda = exp(-decay_rate).

    Differences of exponents are taken before the exponential: lambda^-j alone overflows float32
    from about 106 tokens on for the fastest head of Ling-2.6-flash.

    Args:
        decay_rate: float64 [H], -ln of the decay per token.
        chunk: tokens per chunk, a multiple of ANCHOR.
        key_dim: K.
    """
    rate = decay_rate.double().cpu()
    scale = key_dim**-0.5
    i = torch.arange(chunk, dtype=torch.float64)
    gap = i[:, None] - i[None, :]
    within = torch.where(gap >= 0, torch.exp(-rate[:, None, None] * gap.clamp(min=0)), 0.0) * scale
    query = torch.exp(-rate[:, None] * (i + 1)) * scale
    ends = torch.arange(chunk // ANCHOR + 1, dtype=torch.float64) * ANCHOR
    left = ends[:, None] - 1 - i[None, :]
    fold = torch.where(
        left[:, None] >= 0, torch.exp(-rate[:, None] * left[:, None].clamp(min=0)), 0.0
    )
    carry = torch.exp(-rate * ends[:, None])

    def put(x: Tensor) -> Tensor:
        return x.float().contiguous().to(device)

    return DecayTables(
        within=put(within),
        query=put(query[..., None]),
        fold=put(fold[..., None]),
        carry=put(carry[..., None, None]),
        decode=put(within[:, :ANCHOR, :ANCHOR].transpose(0, 1)),
        decode_query=put(query[:, :ANCHOR].t()[..., None]),
        log2_rate=put(rate / math.log(2)),
    )


def lightning_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: DecayTables,
    states: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    plan: LightningPlan,
) -> Tensor:
    """Attend to each sequence's whole past through its state and tail, and advance both.

    Args:
        q, k: float32 [T, H, K], T = plan.num_tokens; with plan.segments (the GPU) also bfloat16.
        v: same dtype [T, H, V].
        tables: of this layer, for plan.chunk.
        states: float32 [slots, H, K, V], folded to each sequence's anchor; updated in place.
        tail_k: float32 [slots, H, tail, K], (k) past the anchor; updated in place. tail >= ANCHOR.
        tail_v: float32 [slots, H, tail, V].

    Returns:
        [T, H, V] in q's dtype.

    Raises:
        ValueError: a shape or dtype does not fit.

    Numerics: with plan.segments as triton_prefill.py says. Else float32: within a chunk
        O = ((Q K^T) * M) V + diag(lambda^(i+1)) Q S, between chunks
        S' = lambda^n S + sum_j lambda^(n-1-j) k_j v_j^T; within 2e-5 of reference.py relative to
        the largest output. With chunk = ANCHOR and allow_decode False a token's result is bitwise
        the same in prefill, decode and any chunking. Sync: none.
    """
    if plan.segments is not None:
        # Not at the top: a machine without a GPU may be without Triton.
        from lingflash.kernels.lightning_attn.triton_prefill import lightning_prefill_triton

        return lightning_prefill_triton(
            q, k, v, tables.log2_rate, states, tail_k, tail_v, plan.segments
        )
    if q.shape[0] != plan.num_tokens or q.shape != k.shape or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit a plan of "
            f"{plan.num_tokens} tokens."
        )
    if q.dtype != torch.float32 or states.dtype != torch.float32:
        raise ValueError(f"q is {q.dtype}, states {states.dtype}; both must be float32.")
    memory = states, tail_k, tail_v
    if plan.decode_one is not None:
        return _decode_one(q, k, v, tables, memory, plan.decode_one)
    if plan.decode_slots is not None:
        return _decode(q, k, v, tables, memory, plan)
    assert plan.chunks is not None
    return _chunked(q, k, v, tables, memory, plan.chunk, plan.chunks)


def _decode(
    q: Tensor, k: Tensor, v: Tensor, tables: DecayTables, memory: _Memory, plan: LightningPlan
) -> Tensor:
    """One query token per sequence: read the state once, write it only when the tail is full."""
    states, tail_k, tail_v = memory
    slots, offsets = plan.decode_slots, plan.decode_offsets
    assert slots is not None
    assert offsets is not None
    tail_k[slots, :, offsets] = k
    tail_v[slots, :, offsets] = v
    keys = tail_k.index_select(0, slots)[:, :, :ANCHOR]  # [N, H, A, K]
    values = tail_v.index_select(0, slots)[:, :, :ANCHOR]
    state = states.index_select(0, slots)
    scores = torch.matmul(keys, q[..., None]).squeeze(-1) * tables.decode.index_select(0, offsets)
    out = torch.matmul(scores[:, :, None], values)
    out += torch.matmul((q * tables.decode_query.index_select(0, offsets))[:, :, None], state)
    if plan.decode_folds is not None:
        rows = plan.decode_folds
        update = (keys[rows] * tables.fold[1, :, :ANCHOR]).transpose(-1, -2) @ values[rows]
        states.index_copy_(0, slots[rows], state[rows] * tables.carry[1] + update)
    return out.squeeze(2)


def _decode_one(
    q: Tensor, k: Tensor, v: Tensor, tables: DecayTables, memory: _Memory, place: tuple[int, int]
) -> Tensor:
    """_decode for a single sequence, on views of its own memory."""
    states, tail_k, tail_v = memory
    slot, offset = place
    keys, values, state = tail_k[slot, :, :ANCHOR], tail_v[slot, :, :ANCHOR], states[slot]
    keys[:, offset].copy_(k[0])
    values[:, offset].copy_(v[0])
    query = q[0, :, :, None]  # [H, K, 1]
    scores = torch.bmm(keys, query).mul_(tables.decode[offset][..., None])
    state_query = query * tables.decode_query[offset][..., None]
    out = torch.baddbmm(
        torch.bmm(scores.transpose(1, 2), values), state_query.transpose(1, 2), state
    )
    if offset == ANCHOR - 1:
        update = torch.bmm((keys * tables.fold[1, :, :ANCHOR]).transpose(1, 2), values)
        state.mul_(tables.carry[1]).add_(update)
    return out.transpose(0, 1)


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: DecayTables,
    memory: _Memory,
    chunk: int,
    plan: ChunkTables,
) -> Tensor:
    """Any number of query tokens per sequence: chunks in parallel, states carried along."""
    states, tail_k, tail_v = memory
    num_heads = q.shape[1]
    tail_slots, tail_offsets, tail_rows = plan.tail

    def grid(x: Tensor, tail: Tensor | None) -> Tensor:
        if plan.token_rows is None:
            return x
        out = x.new_zeros(plan.num_chunks * chunk, num_heads, x.shape[-1])
        out.index_copy_(0, plan.token_rows, x)
        if tail is not None and tail_rows.numel():
            out.index_copy_(0, tail_rows, tail[tail_slots, :, tail_offsets])
        return out

    def chunks(x: Tensor, lo: int, hi: int) -> Tensor:  # [G, H, d] to [hi - lo, H, C, d]
        return (
            x[lo * chunk : hi * chunk]
            .view(hi - lo, chunk, num_heads, -1)
            .transpose(1, 2)
            .contiguous()
        )

    q_grid, k_grid, v_grid = grid(q, None), grid(k, tail_k), grid(v, tail_v)
    out_grid = torch.empty_like(v_grid)
    owner = {first: slot for slot, first in plan.sequences}
    state = states[0]
    for lo in range(0, plan.num_chunks, _SEGMENT_CHUNKS):
        hi = min(lo + _SEGMENT_CHUNKS, plan.num_chunks)
        q_c, k_c, v_c = chunks(q_grid, lo, hi), chunks(k_grid, lo, hi), chunks(v_grid, lo, hi)
        folds = plan.fold_anchors_host[lo:hi]
        out = torch.matmul(torch.matmul(q_c, k_c.transpose(-1, -2)).mul_(tables.within), v_c)
        weights = tables.fold.index_select(0, plan.fold_anchors[lo:hi])
        updates = torch.matmul((k_c * weights).transpose(-1, -2), v_c)
        before = torch.empty_like(updates)
        for c in range(lo, hi):
            if c in owner:
                state = states[owner[c]]
            before[c - lo].copy_(state)
            if folds[c - lo] and c in plan.passing:
                state = (state * tables.carry[folds[c - lo]]).add_(updates[c - lo])
            elif folds[c - lo]:
                # Two operations on purpose: a fused multiply-add rounds differently in vector
                # tails.
                state.mul_(tables.carry[folds[c - lo]]).add_(updates[c - lo])
        out += torch.matmul(q_c * tables.query, before)
        out_grid[lo * chunk : hi * chunk] = out.transpose(1, 2).reshape(-1, *out_grid.shape[1:])
    slots, offsets, rows = plan.keep
    if rows.numel():
        tail_k[slots, :, offsets] = k_grid.index_select(0, rows)
        tail_v[slots, :, offsets] = v_grid.index_select(0, rows)
    return out_grid if plan.token_rows is None else out_grid.index_select(0, plan.token_rows)
