"""Multi-head latent attention over a paged cache of latents.

Two forms of one product. Expanded: keys and values are made from the latents, cheap per score,
used for long query runs. Absorbed: W_kvb is folded into the query and applied to the result, so
that one token reads R + P values per cached token instead of H (N + V); used for short runs, and
over a long prefix for longer ones where the processor has AMX tiles.

    tokens                               on a CPU             on a GPU, BF16
    one of each sequence                 ../cpu/mla_rows.py   triton_absorb.py, triton_decode.py
    ... of one sequence, fast mode       ../cpu/decode.c      the same
    a run over a long prefix             ../cpu/mla_run.c on AMX tiles; else as below
    a run, absorbed                      ../cpu/mla_vectors.c triton_decode.py, a row each
    a run, expanded                      ../cpu/mla_vectors.c triton_prefill.py
    ... long, or without a C compiler    __init__.py          the same
    batch-invariant, float32             __init__.py          no

gpu_plan.py lays a step out for the GPU; the definition is reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lingflash.core.config import ROW_MULTIPLE
from lingflash.kernels.cpu.mla_rows import attend_rows, can_attend_rows
from lingflash.kernels.cpu.mla_run import attend_on_tiles, can_attend_on_tiles
from lingflash.kernels.cpu.mla_vectors import attend_in_vectors, can_attend_in_vectors
from lingflash.kernels.mla.gpu_plan import EXPANDED_KEYS, GpuPlan, plan_mla_gpu
from lingflash.kernels.mla.reference import mla_attention_reference

__all__ = ["MlaPlan", "mla_attention", "mla_attention_reference", "plan_mla"]

# Query rows whose scores are held at once in the expanded form.
_QUERY_ROWS = 256
# On AMX tiles: from so many tokens before the run on, its attention to them costs as much as its
# own layers do, and up to so many tokens, where keys and values that are made once cost no more.
_TILES_FROM = 512
_TILES_TO = 1024
# In vectors: up to so many tokens, whose sums stay in the second-level cache.
_VECTORS_TO = 1024
# What making keys and values costs, by their multiplications. Through torch they are written, put
# together and read again.
_EXPANDING_IN_VECTORS, _EXPANDING_ON_CPU = 1.0, 4.0


@dataclass(frozen=True, slots=True)
class MlaPlan:
    """Who attends to which blocks in one step; shared by all MLA layers.

    Args:
        decode_rows: int64 [Nd], rows of the sequences with one query token; None if that is all
            rows.
        decode_blocks: int64 [Nd, max blocks], their block tables, padded with blocks of their own,
            since a masked NaN in another's would still spoil the sum.
        decode_mask: bool [Nd, 1, max blocks * block_size], True where no key of the sequence is;
            None if no key is masked.
        decode_keys: int64 [2, Nd], the first key of each in its blocks and the one after its last.
        runs: per other sequence: first row, row after the last, length with this step, block table.
        fixed_blocks: compute every sequence over whole key blocks in one fixed order.
        decode_span: first cache row and length of a single decoding sequence whose blocks follow
            each other, read in place.
        gpu: the same for Triton's kernels, instead of all the above.
        num_threads: of the CPU, that runs may use.
    """

    decode_rows: Tensor | None
    decode_blocks: Tensor | None
    decode_mask: Tensor | None
    decode_keys: Tensor | None
    runs: list[tuple[int, int, int, Tensor]]
    fixed_blocks: bool
    decode_span: tuple[int, int] | None = None
    gpu: GpuPlan | None = None
    num_threads: int = 1


def plan_mla(
    starts: Sequence[int],
    query_lens: Sequence[int],
    block_tables: Sequence[Sequence[int]] | Sequence[np.ndarray],
    *,
    block_size: int,
    device: torch.device,
    fixed_blocks: bool,
    first_keys: Sequence[int] | None = None,
    for_gpu: bool | None = None,
) -> MlaPlan:
    """Sort a batch into single-token sequences, which are computed together, and longer runs.

    Args:
        starts: position of each sequence's first query token.
        query_lens: query tokens of each.
        block_tables: blocks of each, at least enough for start + query_len tokens.
        fixed_blocks: see MlaPlan; for bitwise batch invariance.
        first_keys: position of each sequence's first key; 0 by default. Only for one query token
            each, without fixed_blocks.
        for_gpu: lay out for Triton's kernels; by default if `device` is a GPU, but for
            fixed_blocks.

    Raises:
        ValueError: first_keys does not go with the rest.
    """
    if first_keys is not None and (fixed_blocks or max(query_lens, default=1) > 1):
        raise ValueError("first_keys is for single query tokens without fixed_blocks.")
    if (device.type == "cuda" if for_gpu is None else for_gpu) and not fixed_blocks:
        gpu = plan_mla_gpu(
            starts, query_lens, block_tables, block_size=block_size, device=device,
            first_keys=first_keys,
        )  # fmt: skip
        return MlaPlan(None, None, None, None, [], fixed_blocks, gpu=gpu)
    decode: list[tuple[int, int, np.ndarray]] = []  # row, length, blocks
    runs = []
    row = 0
    for start, length, table in zip(starts, query_lens, block_tables, strict=True):
        total = start + length
        blocks = np.asarray(table[: -(-total // block_size)], dtype=np.int64)
        if length == 1 and not fixed_blocks:
            decode.append((row, total, blocks))
        else:
            runs.append((row, row + length, total, torch.from_numpy(blocks).to(device)))
        row += length
    firsts = [0] * len(decode)
    if first_keys is not None:
        # Whole blocks before the first key are not even read.
        firsts = [first % block_size for first in first_keys]
        decode = [
            (row, total - first + rest, blocks[first // block_size :])
            for (row, total, blocks), first, rest in zip(decode, first_keys, firsts, strict=True)
        ]
    if not decode:
        return MlaPlan(
            None, None, None, None, runs, fixed_blocks, num_threads=torch.get_num_threads()
        )
    if len(decode) == 1 and not runs:
        _, total, blocks = decode[0]
        if len(blocks) == 1 or (np.diff(blocks) == 1).all():
            span = int(blocks[0]) * block_size + firsts[0], total - firsts[0]
            return MlaPlan(None, None, None, None, runs, fixed_blocks, span)
    width = max(len(blocks) for _, _, blocks in decode)
    tables = np.zeros((len(decode), width), dtype=np.int64)
    for i, (_, _, blocks) in enumerate(decode):
        tables[i, : len(blocks)] = blocks
        tables[i, len(blocks) :] = blocks[0]
    lengths = np.array([total for _, total, _ in decode])
    mask = np.arange(width * block_size)[None] >= lengths[:, None]
    if any(firsts):
        mask |= np.arange(width * block_size)[None] < np.array(firsts)[:, None]
    rows = None
    if runs:
        rows = torch.tensor([r for r, _, _ in decode], device=device)
    return MlaPlan(
        rows,
        torch.from_numpy(tables).to(device),
        torch.from_numpy(mask[:, None]).to(device) if mask.any() else None,
        torch.from_numpy(np.stack([np.array(firsts), lengths])).to(device),
        runs,
        fixed_blocks,
        num_threads=torch.get_num_threads(),
    )


def mla_attention(
    q_nope: Tensor, q_rope: Tensor, latents: Tensor, w_kvb: Tensor, scale: float, plan: MlaPlan
) -> Tensor:
    """Attend to the cached latents, which already hold the query tokens' own.

    Args:
        q_nope: float [T, H, N].
        q_rope: same dtype [T, H, P], rotated.
        latents: same dtype [num_blocks, block_size, R + P].
        w_kvb: same dtype [H, N + V, R].
        plan: from plan_mla; its sequences' tokens are the rows of q in order. Rows past the last
            sequence are padding and give 0.

    Returns:
        Same dtype [T, H, V].

    Numerics: scores and softmax in float32, on tiles values of 16 bits (see attend_on_tiles).
        Within 1e-5 of reference.py in float32; on tiles only while no channel of the latents is
        some 10 times larger than the rest. Sync: none.
    """
    num_tokens, num_heads, nope = q_nope.shape
    value_dim = w_kvb.shape[1] - nope
    if plan.gpu is not None:
        return _on_gpu(q_nope, q_rope, latents, w_kvb, scale, plan.gpu)
    if plan.decode_span is not None:
        first, length = plan.decode_span
        cached = latents.view(-1, latents.shape[-1])[first : first + length]
        return _absorbed(q_nope, q_rope, cached, w_kvb, scale)
    if plan.decode_blocks is not None and plan.decode_rows is None:
        return _decode(q_nope, q_rope, latents, w_kvb, scale, plan)
    if plan.fixed_blocks:
        return _fixed_blocks(q_nope, q_rope, latents, w_kvb, scale, plan)
    out = q_nope.new_zeros(num_tokens, num_heads, value_dim)
    if plan.decode_rows is not None:
        rows = plan.decode_rows
        out[rows] = _decode(q_nope[rows], q_rope[rows], latents, w_kvb, scale, plan)
    has_tiles = can_attend_on_tiles(latents, w_kvb.shape[-1])
    has_vectors = can_attend_in_vectors(latents)
    for lo, hi, length, blocks in plan.runs:
        if has_tiles and length - (hi - lo) >= _TILES_FROM and hi - lo <= _TILES_TO:
            query = _absorb(q_nope[lo:hi], q_rope[lo:hi], w_kvb).mul_(scale * math.log2(math.e))
            mixed = attend_on_tiles(
                query, latents, blocks, length, w_kvb.shape[-1], plan.num_threads
            )
            out[lo:hi] = _unabsorb(mixed, w_kvb, nope)
            continue
        if has_vectors and hi - lo <= _VECTORS_TO:
            q, r, rest = q_nope[lo:hi], q_rope[lo:hi], (latents, blocks, length)
            if _expanding_pays(hi - lo, w_kvb, _EXPANDING_IN_VECTORS):
                out[lo:hi] = attend_in_vectors(q, r, *rest, w_kvb, scale, plan.num_threads)
            else:
                q = _absorb_nope(q, w_kvb)
                mixed = attend_in_vectors(q, r, *rest, None, scale, plan.num_threads)
                out[lo:hi] = _unabsorb(mixed, w_kvb, nope)
            continue
        cached = latents.index_select(0, blocks).flatten(0, 1)[:length]
        cost = _EXPANDING_ON_CPU if w_kvb.device.type == "cpu" else 1
        form = _expanded if _expanding_pays(hi - lo, w_kvb, cost) else _absorbed
        out[lo:hi] = form(q_nope[lo:hi], q_rope[lo:hi], cached, w_kvb, scale)
    return out


def _on_gpu(
    q_nope: Tensor, q_rope: Tensor, latents: Tensor, w_kvb: Tensor, scale: float, plan: GpuPlan
) -> Tensor:
    """Decoding rows absorbed, runs expanded, by Triton's kernels."""
    # Not at the top: a machine without a GPU may be without Triton.
    from lingflash.kernels.mla.triton_decode import mla_decode_triton
    from lingflash.kernels.mla.triton_prefill import mla_prefill_triton

    num_tokens, num_heads, nope = q_nope.shape
    kv_width, rank = w_kvb.shape[1:]

    def decode(q_nope: Tensor, q_rope: Tensor) -> Tensor:
        assert plan.block_tables is not None
        assert plan.lengths is not None
        mixed = mla_decode_triton(
            _absorb(q_nope, q_rope, w_kvb), latents, plan.block_tables, plan.lengths, scale,
            rank=rank, max_length=plan.max_length, first_keys=plan.firsts,
        )  # fmt: skip
        return _unabsorb(mixed, w_kvb, nope)

    if not num_tokens:  # the middle of a prompt, where no row of the last layer is wanted
        return q_nope.new_empty(0, num_heads, kv_width - nope)
    if not plan.groups and plan.num_rows == num_tokens:
        return decode(q_nope, q_rope)
    make = q_nope.new_empty if plan.num_rows == num_tokens else q_nope.new_zeros
    out = make(num_tokens, num_heads, kv_width - nope)
    if plan.block_tables is not None:
        rows = slice(plan.num_rows) if plan.rows is None else plan.rows
        out[rows] = decode(q_nope[rows], q_rope[rows])
    for group in plan.groups:
        cached = latents.index_select(0, group.blocks).flatten(0, 1)
        # A conversation's next turn finds room in the memory of this one.
        room = -(-len(cached) // EXPANDED_KEYS) * EXPANDED_KEYS
        expanded = cached.new_empty(room, num_heads, kv_width)[: len(cached)]
        torch.mm(cached[:, :rank], w_kvb.flatten(0, 1).t(), out=expanded.flatten(1))
        mla_prefill_triton(q_nope, q_rope, expanded, cached[:, rank:], group.tiles, scale, out)
    return out


def _expanding_pays(num_queries: int, w_kvb: Tensor, cost: float) -> bool:
    """Whether making keys and values from the latents costs less than scores of latent width.

    Multiplications per cached token and head: absorbed m (2R + P); expanded `cost` times R (N + V)
    once, then m (N + P + V). The break-even is at 171 queries for Ling-2.6-flash where the cost is
    1, at 232 for ling-nano where it is 4.
    """
    _, kv_width, rank = w_kvb.shape
    return num_queries * (2 * rank - kv_width) > cost * rank * kv_width


def _absorb(q_nope: Tensor, q_rope: Tensor, w_kvb: Tensor) -> Tensor:
    """Fold W_kvb's key half into the query: [T, H, N] and [T, H, P] to [T, H, R + P]."""
    return torch.cat([_absorb_nope(q_nope, w_kvb), q_rope], -1)


def _absorb_nope(q_nope: Tensor, w_kvb: Tensor) -> Tensor:
    """What _absorb makes of the part that is not rotated: [T, H, N] to [T, H, R]."""
    w_key = w_kvb[:, : q_nope.shape[-1]]
    return torch.matmul(q_nope.transpose(0, 1), w_key).transpose(0, 1)


def _unabsorb(mixed: Tensor, w_kvb: Tensor, nope: int) -> Tensor:
    """Apply W_kvb's value half to mixed latents: [T, H, R] to [T, H, V]."""
    return torch.matmul(mixed.transpose(0, 1), w_kvb[:, nope:].transpose(1, 2)).transpose(0, 1)


def _decode(
    q_nope: Tensor, q_rope: Tensor, latents: Tensor, w_kvb: Tensor, scale: float, plan: MlaPlan
) -> Tensor:
    """One query token each: in C, or all sequences at once, padded to the longest."""
    assert plan.decode_blocks is not None
    assert plan.decode_keys is not None
    num_seqs, width = plan.decode_blocks.shape
    rank, nope = w_kvb.shape[-1], q_nope.shape[-1]
    query = _absorb(q_nope, q_rope, w_kvb)
    if can_attend_rows(latents):
        firsts, lasts = plan.decode_keys
        mixed = attend_rows(query, latents, plan.decode_blocks, firsts, lasts, rank, scale)
        return _unabsorb(mixed, w_kvb, nope)
    cached = latents.index_select(0, plan.decode_blocks.flatten())
    cached = cached.view(num_seqs, width * latents.shape[1], -1)
    scores = torch.matmul(query.float(), cached.float().transpose(1, 2)) * scale
    if plan.decode_mask is not None:
        scores = scores.masked_fill_(plan.decode_mask, float("-inf"))
    probs = scores.softmax(-1).to(cached.dtype)
    return _unabsorb(torch.matmul(probs, cached[..., :rank]), w_kvb, nope)


def _absorbed(
    q_nope: Tensor, q_rope: Tensor, cached: Tensor, w_kvb: Tensor, scale: float
) -> Tensor:
    """A short run of one sequence: [m, H, N], [m, H, P] over cached [L, R + P] to [m, H, V]."""
    m, num_heads, nope = q_nope.shape
    length, rank = cached.shape[0], w_kvb.shape[-1]
    query = _absorb(q_nope, q_rope, w_kvb).reshape(m * num_heads, -1).float() * scale
    scores = torch.matmul(query, cached.float().t()).view(m, num_heads, length)
    if m > 1:
        scores[..., length - m :].masked_fill_(_future(m, cached.device)[:, None], float("-inf"))
    probs = scores.softmax(-1).to(cached.dtype).view(m * num_heads, length)
    mixed = torch.matmul(probs, cached[:, :rank]).view(m, num_heads, rank)
    return _unabsorb(mixed, w_kvb, nope)


def _expanded(
    q_nope: Tensor, q_rope: Tensor, cached: Tensor, w_kvb: Tensor, scale: float
) -> Tensor:
    """A long run of one sequence, shapes as _absorbed; query rows in blocks."""
    m, num_heads, nope = q_nope.shape
    length, rank = cached.shape[0], w_kvb.shape[-1]
    rope, value_dim = cached.shape[1] - rank, w_kvb.shape[1] - nope
    width = max(nope + rope, value_dim)
    expanded = F.linear(cached[:, :rank], w_kvb.flatten(0, 1)).view(length, num_heads, -1)
    shared = cached[:, None, rank:].expand(-1, num_heads, -1)

    def heads_first(*parts: Tensor) -> Tensor:
        """[T, H, w] parts side by side, to [1, H, T, width]."""
        # torch's fused attention wants queries, keys and values of one width; zeros change no
        # product.
        missing = width - sum(part.shape[-1] for part in parts)
        if missing:
            parts = (*parts, parts[0].new_zeros(1, 1, 1).expand(*parts[0].shape[:2], missing))
        return torch.cat(parts, -1).transpose(0, 1)[None]

    query = heads_first(q_nope, q_rope)
    key = heads_first(expanded[..., :nope], shared)
    value = heads_first(expanded[..., nope:])
    if m == length:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    else:
        parts = []
        for lo in range(0, m, _QUERY_ROWS):
            hi = min(lo + _QUERY_ROWS, m)
            end = length - m + hi
            mask = q_nope.new_zeros(hi - lo, end)
            mask[:, end - (hi - lo) :].masked_fill_(_future(hi - lo, mask.device), float("-inf"))
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, lo:hi], key[:, :, :end], value[:, :, :end], mask, scale=scale
                )
            )
        out = torch.cat(parts, 2)
    return out[0, ..., :value_dim].transpose(0, 1)


def _fixed_blocks(
    q_nope: Tensor, q_rope: Tensor, latents: Tensor, w_kvb: Tensor, scale: float, plan: MlaPlan
) -> Tensor:
    """Absorbed form in which a row's arithmetic depends on nothing but its own keys (float32, CPU).

    Every product has a multiple of ROW_MULTIPLE rows and one key block of columns; blocks are
    summed in order. Keys that a row does not see add an exact 0, so chunk mates that see more
    blocks change nothing.
    """
    num_tokens, num_heads, nope = q_nope.shape
    block_size, rank = latents.shape[1], w_kvb.shape[-1]
    query = _absorb(q_nope, q_rope, w_kvb)
    mixed = q_nope.new_zeros(num_tokens, num_heads, rank)
    for lo, hi, length, blocks in plan.runs:
        m, rows = hi - lo, (hi - lo) * num_heads
        padded = -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
        cached = latents.index_select(0, blocks)  # [B, block, R + P]
        flat = F.pad(query[lo:hi].reshape(rows, -1), (0, 0, 0, padded - rows))
        scores = torch.bmm(
            flat.expand(len(blocks), -1, -1).contiguous(), cached.transpose(1, 2).contiguous()
        ).mul_(scale)  # [B, rows, block]
        position = torch.arange(length - m, length).repeat_interleave(num_heads)
        position = F.pad(position, (0, padded - rows), value=length - 1)
        key_position = torch.arange(len(blocks) * block_size).view(len(blocks), 1, block_size)
        unseen = key_position > position[None, :, None]
        scores.masked_fill_(unseen, float("-inf"))
        probs = (scores - scores.amax((0, 2), keepdim=True)).exp_()
        parts = torch.bmm(probs, cached[..., :rank].contiguous())
        sums = probs.sum(-1, keepdim=True)
        total, weight = parts[0], sums[0]
        for b in range(1, len(blocks)):
            total = total + parts[b]
            weight = weight + sums[b]
        mixed[lo:hi] = (total / weight)[:rows].view(m, num_heads, rank)
    return _unabsorb(mixed, w_kvb, nope)


def _future(m: int, device: torch.device) -> Tensor:
    """bool [m, m], True where key j comes after query i."""
    i = torch.arange(m, device=device)
    return i[None, :] > i[:, None]
