"""Which rows of which expert each program of a grouped product takes, made without asking the host.

A counting sort: expert numbers are counted per chunk of rows, one running sum over (expert, chunk)
says where each chunk's rows of an expert begin, and each row finds its place within its chunk.
"""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["SortedRows", "sort_rows"]

_CHUNK = 128
# Sizes that differ from step to step: a kernel is compiled once for all of them.
_VARYING = ["num_rows", "num_chunks"]


@dataclass(frozen=True, slots=True)
class SortedRows:
    """(Token, choice) rows in the order of their experts, cut into blocks of one expert each.

    Args:
        tokens: int32 [R], token of each place; places of an expert follow each other, in the order
            of the rows.
        places: int32 [R], place of each row of topk_ids.flatten().
        blocks: int32 [3, B], expert (-1: not needed), first place and end of the expert's places.
        block_rows: places in a block.
    """

    tokens: Tensor
    places: Tensor
    blocks: Tensor
    block_rows: int


@triton.jit(do_not_specialize=_VARYING)
def _count_kernel(
    ids_ptr, counts_ptr, num_rows, num_chunks, num_experts,
    CHUNK: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    row = chunk * CHUNK + tl.arange(0, CHUNK)
    # Rows that are not there count for an expert that is not there either.
    expert = tl.load(ids_ptr + row, mask=row < num_rows, other=num_experts).to(tl.int32)
    count = tl.histogram(expert, BLOCK_E)
    number = tl.arange(0, BLOCK_E)
    tl.store(counts_ptr + number * num_chunks + chunk, count, mask=number < num_experts)


@triton.jit(do_not_specialize=_VARYING)
def _place_kernel(
    ids_ptr, ends_ptr, tokens_ptr, places_ptr, num_rows, num_chunks, topk, CHUNK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    within = tl.arange(0, CHUNK)
    row = chunk * CHUNK + within
    live = row < num_rows
    expert = tl.load(ids_ptr + row, mask=live, other=0).to(tl.int32)
    # The same numbers along the other axis: loaded again, which is cheaper than a transposition.
    others = tl.load(ids_ptr + row, mask=live, other=0).to(tl.int32)
    same = (expert[:, None] == others[None, :]) & (within[None, :] < within[:, None])
    rank = tl.sum(same.to(tl.int32), 1)
    at = expert * num_chunks + chunk
    place = rank + tl.load(ends_ptr + at - 1, mask=live & (at > 0), other=0)
    tl.store(places_ptr + row, place, mask=live)
    tl.store(tokens_ptr + place, row // topk, mask=live)


@triton.jit(do_not_specialize=["num_chunks", "num_blocks"])
def _blocks_kernel(
    ends_ptr, blocks_ptr, num_chunks, num_experts, num_blocks,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    mine = tl.program_id(0)
    expert = tl.arange(0, BLOCK_E)
    inside = expert < num_experts
    begin_at = expert * num_chunks
    begin = tl.load(ends_ptr + begin_at - 1, mask=inside & (expert > 0), other=0)
    end = tl.load(ends_ptr + begin_at + num_chunks - 1, mask=inside, other=0)
    count = tl.where(inside, tl.cdiv(end - begin, BLOCK_M), 0)
    first = tl.sum(tl.where(expert < mine, count, 0), 0)
    number = tl.arange(0, STEP)
    if mine < num_experts:
        my_count = tl.sum(tl.where(expert == mine, count, 0), 0)
        my_begin = tl.sum(tl.where(expert == mine, begin, 0), 0)
        my_end = tl.sum(tl.where(expert == mine, end, 0), 0)
        for start in range(0, my_count, STEP):
            block = start + number
            at = blocks_ptr + first + block
            kept = block < my_count
            tl.store(at, mine + tl.zeros_like(block), mask=kept)
            tl.store(at + num_blocks, my_begin + block * BLOCK_M, mask=kept)
            tl.store(at + 2 * num_blocks, my_end + tl.zeros_like(block), mask=kept)
    else:
        for start in range(first, num_blocks, STEP):
            block = start + number
            tl.store(blocks_ptr + block, tl.full([STEP], -1, tl.int32), mask=block < num_blocks)


def sort_rows(topk_ids: Tensor, num_experts: int, block_rows: int) -> SortedRows:
    """Sort (token, choice) rows by expert, stably.

    All sizes follow from the arguments' shapes, so that nothing waits for the device.

    Args:
        topk_ids: int64 [T, k], contiguous, T > 0.
        num_experts: E.
        block_rows: places in a block.

    Sync: none, graph-safe.
    """
    num_tokens, topk = topk_ids.shape
    num_rows, device = num_tokens * topk, topk_ids.device
    chunks = triton.cdiv(num_rows, _CHUNK)
    # In the worst case every expert in use wastes a block but for one row.
    num_blocks = min(num_rows, num_experts) + num_rows // block_rows
    counts = torch.empty(num_experts, chunks, dtype=torch.int32, device=device)
    tokens = torch.empty(num_rows, dtype=torch.int32, device=device)
    places = torch.empty(num_rows, dtype=torch.int32, device=device)
    blocks = torch.empty(3, num_blocks, dtype=torch.int32, device=device)
    bins = triton.next_power_of_2(num_experts + 1)
    _count_kernel[(chunks,)](
        topk_ids, counts, num_rows, chunks, num_experts, CHUNK=_CHUNK, BLOCK_E=bins
    )
    ends = counts.view(-1).cumsum(0, dtype=torch.int32)
    _place_kernel[(chunks,)](topk_ids, ends, tokens, places, num_rows, chunks, topk, CHUNK=_CHUNK)
    _blocks_kernel[(num_experts + 1,)](
        ends, blocks, chunks, num_experts, num_blocks,
        BLOCK_M=block_rows, BLOCK_E=triton.next_power_of_2(num_experts), STEP=64,
    )  # fmt: skip
    return SortedRows(tokens, places, blocks, block_rows)
