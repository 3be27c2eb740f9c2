"""MLA decoding on the GPU: absorbed queries over paged latents, the context split over programs.

One program takes 32 heads of one sequence, which share every latent that is read, and one part of
its context; a second kernel joins the parts by their softmax statistics. Products are written with
the keys as rows and the heads as columns, since Hopper's tensor cores want 64 rows and take 8
columns: for 32 heads nothing is padded, and a latent once in shared memory serves both products.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and knows num_warps.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.triton_dot import dot

# tl.dot wants 16 of each.
_LEAST_BLOCK = 16
_MOST_HEADS = 32
# A part's result is 64 KiB for 32 heads of 512 channels, as much as 57 keys.
_LEAST_PART = 128
# Programs per multiprocessor when sequences of unequal length share the machine.
_WAVES = 4
_FEW_SEQUENCES = 4


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How the parts' kernel is cut; for tuning.

    Args:
        block_n: keys of a step.
    """

    block_n: int = 64
    num_warps: int = 8
    num_stages: int = 2


_BF16 = DecodeConfig()
# Without tensor cores: products are made of registers.
_FLOAT32 = DecodeConfig(block_n=16, num_warps=8, num_stages=1)


@triton.jit
def _tokens_of_a_part(length, num_parts, least, BLOCK_N: tl.constexpr):
    """Context of a program: whole steps, and a row's parts as many as there are, if long enough."""
    return tl.maximum(tl.cdiv(tl.cdiv(length, num_parts), BLOCK_N) * BLOCK_N, least)


# What differs from step to step: a kernel is compiled once for all of them, since to compile it for
# a number that 16 divides would hold every stream up for a quarter of a second.
@triton.jit(do_not_specialize=["table_width"])
def _part_kernel(
    query_ptr, latents_ptr, table_ptr, length_ptr, first_ptr, part_ptr, stat_ptr,
    scale, num_heads, table_width, least,
    RANK: tl.constexpr, ROPE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HAS_FIRST: tl.constexpr, IN_BLOCKS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    sequence, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    length = tl.load(length_ptr + sequence).to(tl.int32)
    part_tokens = _tokens_of_a_part(length, tl.num_programs(2), least, BLOCK_N)
    begin = part * part_tokens
    if begin >= length:
        return
    end = tl.minimum(begin + part_tokens, length)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    r, p, n = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    row = query_ptr + (sequence * num_heads + head)[:, None] * (RANK + ROPE)
    live = head[:, None] < num_heads
    q_r = tl.trans(tl.load(row + r[None, :], mask=live & (r[None, :] < RANK), other=0.0))
    q_p = tl.trans(tl.load(row + RANK + p[None, :], mask=live & (p[None, :] < ROPE), other=0.0))
    first = 0
    if HAS_FIRST:
        first = tl.load(first_ptr + sequence).to(tl.int32)
    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    mixed = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
    table = table_ptr + sequence * table_width
    for start in range(begin, end, BLOCK_N):
        token = start + n
        seen = token < end
        if HAS_FIRST:
            seen = seen & (token >= first)
        if IN_BLOCKS:  # a step's keys lie in one block
            cached = tl.load(table + start // BLOCK_SIZE) * BLOCK_SIZE + start % BLOCK_SIZE + n
        else:
            cached = tl.load(table + token // BLOCK_SIZE, mask=seen, other=0) * BLOCK_SIZE
            cached += token % BLOCK_SIZE
        at = latents_ptr + cached[:, None] * (RANK + ROPE)
        k_r = tl.load(at + r[None, :], mask=seen[:, None] & (r[None, :] < RANK), other=0.0)
        k_p = tl.load(at + RANK + p[None, :], mask=seen[:, None] & (p[None, :] < ROPE), other=0.0)
        scores = dot(k_r, q_r, tl.zeros([BLOCK_N, BLOCK_H], tl.float32))
        scores = dot(k_p, q_p, scores) * scale
        scores = tl.where(seen[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 0))
        if HAS_FIRST:  # nothing may have been seen so far
            new_top = tl.maximum(new_top, -1e30)
        weight = tl.exp2(scores - new_top[None, :])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(weight, 0)
        mixed = dot(tl.trans(k_r), weight.to(k_r.dtype), mixed * keep[None, :])
        top = new_top
    place = (sequence * tl.num_programs(2) + part) * num_heads + head
    mask = head < num_heads
    tl.store(stat_ptr + place * 2, top, mask=mask)
    tl.store(stat_ptr + place * 2 + 1, total, mask=mask)
    at = part_ptr + place[:, None] * RANK + r[None, :]
    tl.store(at, tl.trans(mixed), mask=live & (r[None, :] < RANK))


@triton.jit(do_not_specialize=["num_parts"])
def _join_kernel(
    part_ptr, stat_ptr, length_ptr, out_ptr, num_heads, num_parts, least,
    RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sequence, head = row // num_heads, row % num_heads
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = r < RANK
    length = tl.load(length_ptr + sequence).to(tl.int32)
    used = tl.cdiv(length, _tokens_of_a_part(length, num_parts, least, BLOCK_N))
    top, total = float("-inf"), 0.0
    mixed = tl.zeros([BLOCK_R], tl.float32)
    for begin in range(0, used, BLOCK_PARTS):
        part = begin + tl.arange(0, BLOCK_PARTS)
        live = part < used
        at = (sequence * num_parts + part) * num_heads + head
        its_top = tl.load(stat_ptr + at * 2, mask=live, other=float("-inf"))
        its_total = tl.load(stat_ptr + at * 2 + 1, mask=live, other=0.0)
        value = tl.load(
            part_ptr + at[:, None] * RANK + r[None, :], mask=live[:, None] & inside[None, :],
            other=0.0,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(its_top, 0))
        keep, gain = tl.exp2(top - new_top), tl.exp2(its_top - new_top)
        mixed = mixed * keep + tl.sum(value * gain[:, None], 0)
        total = total * keep + tl.sum(its_total * gain, 0)
        top = new_top
    tl.store(out_ptr + row * RANK + r, (mixed / total).to(out_ptr.dtype.element_ty), mask=inside)


@lru_cache(maxsize=8)
def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def num_parts_for(num_seqs: int, num_multiprocessors: int) -> int:
    """Programs per sequence: one per multiprocessor in all for few sequences, some for many.

    Few long sequences must fill the machine in one wave, for a second of it would cost as much as
    the first. Many are of unequal length and balance better in smaller parts.
    """
    waves = 1 if num_seqs <= _FEW_SEQUENCES else _WAVES
    return max(waves * num_multiprocessors // max(num_seqs, 1), 1)


def mla_decode_triton(
    query: Tensor,
    latents: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    scale: float,
    *,
    rank: int,
    max_length: int,
    part_tokens: int | None = None,
    first_keys: Tensor | None = None,
    config: DecodeConfig | None = None,
) -> Tensor:
    """Attend from one token per row to its cached latents.

    Args:
        query: float [N, H, R + P], absorbed and rotated, contiguous.
        latents: same dtype [num_blocks, block_size, R + P], contiguous.
        block_tables: int64 [N, max blocks]; several rows may be of one sequence.
        lengths: int64 [N], keys of each with its own, at least 1.
        rank: R.
        max_length: no length is larger. It bounds the grid, so a graph needs its largest; a row is
            cut by its own length all the same, and programs that it has no part for end at once.
        part_tokens: context per program, as long as no row is longer than max_length; if None,
            num_parts_for() programs share a row, with at least 128 tokens each.
        first_keys: int64 [N], keys before these are not attended to, at least one key being left;
            none if None.
        config: how the work is cut; a good one by dtype if None.

    Returns:
        Same dtype [N, H, R]: the mixed latents, still to be given W_kvb's value half.

    Raises:
        ValueError: a shape, dtype or stride does not fit.

    Numerics: scores, softmax and sums in float32; within 1e-5 of the reference in float32; in
        bfloat16 the weights are rounded to it before they meet the latents.
    Sync: none, graph-safe.
    """
    num_seqs, num_heads, width = query.shape
    if latents.shape[-1] != width or latents.dtype != query.dtype:
        raise ValueError(
            f"latents are {latents.dtype} {tuple(latents.shape)}, queries {width} wide."
        )
    if not (query.is_contiguous() and latents.is_contiguous() and block_tables.is_contiguous()):
        raise ValueError("query, latents and block_tables must be contiguous.")
    device, block_size = query.device, latents.shape[1]
    num_parts = -(-max_length // (part_tokens or _LEAST_PART))
    if part_tokens is None:
        num_parts = min(num_parts, num_parts_for(num_seqs, _num_multiprocessors(device)))
        part_tokens = _LEAST_PART
    parts = torch.empty(num_seqs, num_parts, num_heads, rank, dtype=torch.float32, device=device)
    stats = torch.empty(num_seqs, num_parts, num_heads, 2, dtype=torch.float32, device=device)
    out = torch.empty(num_seqs, num_heads, rank, dtype=query.dtype, device=device)
    if not num_seqs:
        return out
    c = config or (_FLOAT32 if query.dtype == torch.float32 else _BF16)
    heads = max(_LEAST_BLOCK, min(triton.next_power_of_2(num_heads), _MOST_HEADS))
    in_blocks = block_size % c.block_n == 0 and part_tokens % c.block_n == 0
    block_r = max(triton.next_power_of_2(rank), _LEAST_BLOCK)
    _part_kernel[(num_seqs, triton.cdiv(num_heads, heads), num_parts)](
        query, latents, block_tables, lengths, lengths if first_keys is None else first_keys,
        parts, stats, scale / math.log(2), num_heads, block_tables.shape[1], part_tokens,
        RANK=rank, ROPE=width - rank, BLOCK_SIZE=block_size, HAS_FIRST=first_keys is not None,
        IN_BLOCKS=in_blocks, BLOCK_H=heads, BLOCK_R=block_r,
        BLOCK_P=max(triton.next_power_of_2(width - rank), _LEAST_BLOCK), BLOCK_N=c.block_n,
        num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip
    block_r = min(block_r, 128)
    _join_kernel[(num_seqs * num_heads, triton.cdiv(rank, block_r))](
        parts, stats, lengths, out, num_heads, num_parts, part_tokens,
        RANK=rank, BLOCK_R=block_r, BLOCK_PARTS=min(triton.next_power_of_2(num_parts), 32),
        BLOCK_N=c.block_n,
    )  # fmt: skip
    return out
