"""MLA decoding on the GPU: absorbed queries over paged latents, the context split over programs.

One program takes 16 or more heads of one sequence, which share every latent that is read, and one
part of its context; a second kernel joins the parts by their softmax statistics.
"""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.triton_dot import dot

__all__ = ["mla_decode_triton"]

# tl.dot wants 16 rows.
_MIN_HEADS = 16


@triton.jit
def _part_kernel(
    query_ptr, latents_ptr, table_ptr, length_ptr, part_ptr, stat_ptr,
    scale, num_heads, table_width, block_size,
    RANK: tl.constexpr, ROPE: tl.constexpr, PART_TOKENS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    sequence, part = tl.program_id(0), tl.program_id(2)
    num_parts = tl.num_programs(2)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    r, p, n = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    length = tl.load(length_ptr + sequence)
    begin = part * PART_TOKENS
    end = tl.minimum(begin + PART_TOKENS, length)
    row = query_ptr + (sequence * num_heads + head)[:, None] * (RANK + ROPE)
    live = head[:, None] < num_heads
    q_r = tl.load(row + r[None, :], mask=live & (r[None, :] < RANK), other=0.0)
    q_p = tl.load(row + RANK + p[None, :], mask=live & (p[None, :] < ROPE), other=0.0)
    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    mixed = tl.zeros([BLOCK_H, BLOCK_R], tl.float32)
    start = begin
    while start < end:  # not range(): the interpreter cannot take bounds from a tensor
        token = start + n
        seen = token < end
        block = tl.load(
            table_ptr + sequence * table_width + token // block_size, mask=seen, other=0
        )
        at = latents_ptr + (block * block_size + token % block_size)[:, None] * (RANK + ROPE)
        k_r = tl.load(at + r[None, :], mask=seen[:, None] & (r[None, :] < RANK), other=0.0)
        k_p = tl.load(at + RANK + p[None, :], mask=seen[:, None] & (p[None, :] < ROPE), other=0.0)
        scores = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
        scores = dot(q_r, tl.trans(k_r), scores)
        scores = dot(q_p, tl.trans(k_p), scores)
        scores = tl.where(seen[None, :], scores * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weight = tl.exp(scores - new_top[:, None])
        keep = tl.exp(top - new_top)
        total = total * keep + tl.sum(weight, 1)
        mixed = dot(weight.to(k_r.dtype), k_r, mixed * keep[:, None])
        top = new_top
        start += BLOCK_N
    place = (sequence * num_heads + head) * num_parts + part
    mask = head < num_heads
    # A part past the sequence's end has total 0, which the second kernel leaves out.
    tl.store(stat_ptr + place * 2, top, mask=mask)
    tl.store(stat_ptr + place * 2 + 1, total, mask=mask)
    tl.store(
        part_ptr + place[:, None] * RANK + r[None, :], mixed,
        mask=mask[:, None] & (r[None, :] < RANK),
    )  # fmt: skip


@triton.jit
def _join_kernel(
    part_ptr, stat_ptr, out_ptr, num_parts,
    RANK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    r = tl.arange(0, BLOCK_R)
    inside = r < RANK
    top, total = float("-inf"), 0.0
    mixed = tl.zeros([BLOCK_R], tl.float32)
    part = 0
    while part < num_parts:
        at = row * num_parts + part
        its_total = tl.load(stat_ptr + at * 2 + 1)
        if its_total > 0:
            its_top = tl.load(stat_ptr + at * 2)
            new_top = tl.maximum(top, its_top)
            keep, gain = tl.exp(top - new_top), tl.exp(its_top - new_top)
            value = tl.load(part_ptr + at * RANK + r, mask=inside, other=0.0)
            mixed = mixed * keep + value * gain
            total = total * keep + its_total * gain
            top = new_top
        part += 1
    tl.store(out_ptr + row * RANK + r, (mixed / total).to(out_ptr.dtype.element_ty), mask=inside)


def mla_decode_triton(
    query: Tensor,
    latents: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    scale: float,
    *,
    rank: int,
    max_length: int,
    part_tokens: int = 512,
) -> Tensor:
    """Attend from one token per sequence to its cached latents.

    Args:
        query: float [N, H, R + P], absorbed and rotated, contiguous.
        latents: same dtype [num_blocks, block_size, R + P], contiguous.
        block_tables: int64 [N, max blocks].
        lengths: int64 [N], tokens of each with this one, at least 1.
        scale: factor of the scores.
        rank: R.
        max_length: no length is larger; fixes the grid, so a graph needs its largest.
        part_tokens: context per program.

    Returns:
        Same dtype [N, H, R]: the mixed latents, still to be given W_kvb's value half.

    Raises:
        ValueError: a shape, dtype or stride does not fit.

    Numerics: scores, softmax and sums in float32; within 1e-5 of the reference in float32.
    Sync: none, graph-safe.
    """
    num_seqs, num_heads, width = query.shape
    if latents.shape[-1] != width or latents.dtype != query.dtype:
        raise ValueError(
            f"latents are {latents.dtype} {tuple(latents.shape)}, queries {width} wide."
        )
    if not (query.is_contiguous() and latents.is_contiguous() and block_tables.is_contiguous()):
        raise ValueError("query, latents and block_tables must be contiguous.")
    num_parts = -(-max_length // part_tokens)
    heads = max(_MIN_HEADS, min(triton.next_power_of_2(num_heads), 32))
    device = query.device
    parts = torch.empty(num_seqs, num_heads, num_parts, rank, dtype=torch.float32, device=device)
    stats = torch.empty(num_seqs, num_heads, num_parts, 2, dtype=torch.float32, device=device)
    out = torch.empty(num_seqs, num_heads, rank, dtype=query.dtype, device=device)
    if not num_seqs:
        return out
    block_r = max(triton.next_power_of_2(rank), 16)
    _part_kernel[(num_seqs, triton.cdiv(num_heads, heads), num_parts)](
        query, latents, block_tables, lengths, parts, stats,
        scale, num_heads, block_tables.shape[1], latents.shape[1],
        RANK=rank, ROPE=width - rank, PART_TOKENS=part_tokens, BLOCK_H=heads, BLOCK_R=block_r,
        BLOCK_P=max(triton.next_power_of_2(width - rank), 16), BLOCK_N=32,
    )  # fmt: skip
    _join_kernel[(num_seqs * num_heads,)](parts, stats, out, num_parts, RANK=rank, BLOCK_R=block_r)
    return out
