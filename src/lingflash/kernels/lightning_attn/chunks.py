"""A step's tokens cut into chunks for any machine, and what is folded at their ends.

A step sees a window per sequence, from its anchor to its last query token: first the tail, then the
new tokens. Windows are cut into chunks from the anchor on; each chunk folds as many whole anchor
distances as are certain. Chunks stand in a grid, so many rows each, the last of a window in part
empty.

    position   32        48        64        80
    anchor     |                                        tail: 32..36 from earlier steps
    window     t t t t t n n n n n n n n n n n n n      new: 37..49
    after                |                              state folded to 48, tail is now 48, 49
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lingflash.core.anchors import ANCHOR, last_anchor

TailPlaces = tuple[Tensor, Tensor, Tensor]
"""Of some tokens, int64 [n] each: state slot, place in the tail and grid row."""


@dataclass(frozen=True, slots=True)
class ChunkTables:
    """Index maps of one step; G = num_chunks * chunk grid rows.

    Args:
        num_chunks: chunks of all windows together.
        token_rows: int64 [T], grid row of each query token; None if it is simply 0 .. T-1.
        tail: tokens that earlier steps left.
        keep: those that this step leaves.
        fold_anchors: int64 [num_chunks], anchor distances that each chunk folds into the state.
        fold_anchors_host: the same on the host.
        passing: chunks that end in drafts and are followed by more of them: their fold is what the
            next chunk starts from, but is not written to the state.
        sequences: per sequence its state slot and its first chunk.
    """

    num_chunks: int
    token_rows: Tensor | None
    tail: TailPlaces
    keep: TailPlaces
    fold_anchors: Tensor
    fold_anchors_host: list[int]
    passing: frozenset[int]
    sequences: list[tuple[int, int]]


def put_index(values: Sequence[int] | np.ndarray, device: torch.device) -> Tensor:
    """int64 numbers on a device."""
    array = np.asarray(values, dtype=np.int64)
    return torch.from_numpy(array).to(device, non_blocking=True)


def cut_chunks(
    starts: Sequence[int],
    anchors: Sequence[int],
    query_lens: Sequence[int],
    num_certain: Sequence[int],
    state_slots: Sequence[int],
    *,
    chunk: int,
    device: torch.device,
) -> ChunkTables:
    """Cut each sequence's window; see plan_lightning.

    Raises:
        ValueError: a chunk would be folded in part and go on in drafts.
    """

    def put(values: Sequence[int] | np.ndarray) -> Tensor:
        return put_index(values, device)

    def spread(parts: list[tuple[int, int, int]]) -> TailPlaces:
        if not parts:
            return put(()), put(()), put(())
        lengths = [length for _, length, _ in parts]
        slots = np.repeat([slot for slot, _, _ in parts], lengths)
        offsets = np.concatenate([np.arange(length) for length in lengths])
        rows = np.concatenate([np.arange(row, row + length) for _, length, row in parts])
        return put(slots), put(offsets), put(rows)

    token_rows: list[np.ndarray] = []
    tails: list[tuple[int, int, int]] = []  # slot, length, first grid row
    keeps: list[tuple[int, int, int]] = []
    folds_host: list[int] = []
    passing: list[int] = []
    sequences: list[tuple[int, int]] = []
    for start, anchor, length, sure, slot in zip(
        starts, anchors, query_lens, num_certain, state_slots, strict=True
    ):
        first_chunk = len(folds_host)
        row = first_chunk * chunk
        tail_len = start - anchor
        window = tail_len + length
        fold = last_anchor(start + sure) - anchor
        chunks = -(-window // chunk)
        token_rows.append(np.arange(row + tail_len, row + window))
        if tail_len:
            tails.append((slot, tail_len, row))
        if window > fold:
            keeps.append((slot, window - fold, row + fold))
        folds = [min(max(fold - c * chunk, 0), chunk) // ANCHOR for c in range(chunks)]
        for c in range(fold // chunk, chunks - 1):
            if folds[c]:
                raise ValueError(f"drafts follow a chunk of {chunk} that is certain only in part.")
            folds[c] = chunk // ANCHOR
            passing.append(first_chunk + c)
        folds_host += folds
        sequences.append((slot, first_chunk))
    dense = sum(query_lens) == len(folds_host) * chunk
    return ChunkTables(
        num_chunks=len(folds_host),
        token_rows=None if dense else put(np.concatenate(token_rows)),
        tail=spread(tails),
        keep=spread(keeps),
        fold_anchors=put(folds_host),
        fold_anchors_host=folds_host,
        passing=frozenset(passing),
        sequences=sequences,
    )
