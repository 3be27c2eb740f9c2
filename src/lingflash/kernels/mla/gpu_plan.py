"""Who attends to which blocks on the GPU: rows that decode, and tiles of longer runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Queries of a tile of a run.
TILE_ROWS = 128
# A short run over many keys decodes query by query: each reads 1,152 bytes of every key, about
# 0.3 ns of an H200's memory, while making a key's 32 heads, writing and reading them takes 22 ns.
_MOST_DECODING_QUERIES = 64
_LEAST_KEYS_PER_QUERY = 4
# Keys that are expanded at once bound the workspace (16 KiB each for Ling-2.6-flash); a longer
# sequence is expanded alone.
MOST_EXPANDED_KEYS = 131_072
# They take memory in steps of so many: where it is nearly full, an allocation a little larger than
# all before makes the allocator give back what it holds, some 12 ms.
EXPANDED_KEYS = 4096


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs whose keys are expanded together.

    Args:
        blocks: int64 [B], the runs' blocks, one run after the other.
        tiles: int32 [n, 4], see mla_prefill_triton; those with the most keys first.
    """

    blocks: Tensor
    tiles: Tensor


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """Device tables of one step.

    Args:
        rows: int64 [Nd], rows of q that decode; None if that is all rows, in order.
        block_tables: int64 [Nd, max blocks], blocks of each, padded with 0; None if Nd is 0.
        lengths: int64 [Nd], last key of each and one.
        firsts: int64 [Nd], first key of each; None if all are 0.
        max_length: largest of the lengths.
        groups: of the other rows.
        num_rows: T, query tokens.
    """

    rows: Tensor | None
    block_tables: Tensor | None
    lengths: Tensor | None
    firsts: Tensor | None
    max_length: int
    groups: list[RunGroup]
    num_rows: int


def plan_mla_gpu(
    starts: Sequence[int],
    query_lens: Sequence[int],
    block_tables: Sequence[Sequence[int]] | Sequence[np.ndarray],
    *,
    block_size: int,
    device: torch.device,
    first_keys: Sequence[int] | None = None,
) -> GpuPlan:
    """Sort a batch into decoding rows and tiles of runs; arguments as plan_mla's."""

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    firsts = [0] * len(starts) if first_keys is None else first_keys
    decoding: list[tuple[int, int, int, int, np.ndarray]] = []  # row, queries, start, first, blocks
    groups: list[RunGroup] = []
    tiles: list[tuple[int, int, int, int]] = []
    blocks: list[np.ndarray] = []
    num_keys = row = 0

    def close() -> None:
        tiles.sort(key=lambda tile: -tile[1] - tile[3])
        groups.append(RunGroup(put(np.concatenate(blocks)), put(np.array(tiles, dtype=np.int32))))

    for start, length, table, first in zip(starts, query_lens, block_tables, firsts, strict=True):
        total = start + length
        its_blocks = np.asarray(table[: -(-total // block_size)], dtype=np.int64)
        few = length <= _MOST_DECODING_QUERIES and total >= length * _LEAST_KEYS_PER_QUERY
        if few or length == 1:
            skipped = first // block_size  # whole blocks before the first key are not even read
            keys_before = skipped * block_size
            decoding.append(
                (row, length, start - keys_before, first - keys_before, its_blocks[skipped:])
            )
        else:
            if tiles and num_keys + total > MOST_EXPANDED_KEYS:
                close()
                tiles, blocks, num_keys = [], [], 0
            tiles += [
                (row + lo, min(TILE_ROWS, length - lo), num_keys, start + lo)
                for lo in range(0, length, TILE_ROWS)
            ]
            blocks.append(its_blocks)
            num_keys += len(its_blocks) * block_size
        row += length
    if tiles:
        close()
    if not decoding:
        return GpuPlan(None, None, None, None, 0, groups, row)
    counts = [length for _, length, _, _, _ in decoding]
    width = max(len(its_blocks) for *_, its_blocks in decoding)
    tables = np.zeros((len(decoding), width), dtype=np.int64)
    for i, (*_, its_blocks) in enumerate(decoding):
        tables[i, : len(its_blocks)] = its_blocks
    lengths = np.concatenate(
        [np.arange(start + 1, start + n + 1, dtype=np.int64) for _, n, start, _, _ in decoding]
    )
    device_tables = put(tables)
    if len(lengths) > len(decoding):
        owners = np.repeat(np.arange(len(decoding)), counts)
        device_tables = device_tables.index_select(0, put(owners))
    rows = None
    if groups:
        rows = put(np.concatenate([np.arange(r, r + n) for r, n, *_ in decoding]))
    return GpuPlan(
        rows,
        device_tables,
        put(lengths),
        put(np.repeat([f for *_, f, _ in decoding], counts)) if any(firsts) else None,
        int(lengths.max()),
        groups,
        row,
    )
