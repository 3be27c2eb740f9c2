"""A step's tokens cut into segments that a GPU takes in parallel, and what happens at their ends.

Unlike the windows of plan.py, segments hold query tokens only: the tail that earlier steps left
is folded into the state from which the first segment starts. A segment ends where the state is to
be written, so that nothing inside one has to care:

    position   32        48        64        80
    anchor     |                                        tail: 32..36 from earlier steps
    tokens               n n n n n n n n n n n n n      new: 37..81, drafts: none
    segments             |         |       |   |        37..58, 59..79 folded; 80, 81 kept as tail
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

# Segments are whole tiles of tokens but for the last before a fold.
_TILE = 64
# Enough segments to fill a GPU with 32 heads of them, and as few states through memory as that
# allows.
_SEGMENTS_WANTED = 4
_LEAST_TOKENS, _MOST_TOKENS = 256, 8192
# Columns of the tables, see SegmentTables.
SEGMENT_WIDTH, SEQUENCE_WIDTH = 3, 11


@dataclass(frozen=True, slots=True)
class SegmentTables:
    """Device tables of the segments of one step; one upload.

    Args:
        segments: int32 [S, 3]: first row, row after the last, sequence.
        sequences: int32 [N, 11]: state slot, tail tokens, tail tokens that are folded, first
            segment, the segment after the last folded one, segment after the last, first row,
            query tokens before the first that stays in the tail (negative: old tail tokens stay
            too), query tokens, the segment after the one whose state is left in another slot, too
            (0: none), that slot.
        num_rows: T, query tokens.
        longest: most query tokens of a sequence.
        has_gaps: rows may be no sequence's, and segments without rows; such rows give 0.
    """

    segments: Tensor
    sequences: Tensor
    num_rows: int
    longest: int
    has_gaps: bool = False

    @property
    def num_segments(self) -> int:
        """S."""
        return self.segments.shape[0]

    @property
    def num_sequences(self) -> int:
        """N."""
        return self.sequences.shape[0]


def segment_tokens(num_rows: int) -> int:
    """Most tokens of a segment in a step of this many."""
    wanted = -(-num_rows // (_SEGMENTS_WANTED * _TILE)) * _TILE
    return min(max(wanted, _LEAST_TOKENS), _MOST_TOKENS)


def cut_segments(
    tail_lens: Sequence[int],
    query_lens: Sequence[int],
    folds: Sequence[int],
    state_slots: Sequence[int],
    *,
    device: torch.device,
    saves: Sequence[tuple[int, int] | None] | None = None,
    most_tokens: int | None = None,
) -> SegmentTables:
    """Cut each sequence's query tokens at its fold, and what lies before it evenly.

    Args:
        tail_lens: tokens of each between its anchor and its first query token.
        query_lens: query tokens of each, at least 1.
        folds: tokens past the anchor that are folded into the state, a multiple of ANCHOR.
        saves: query tokens of each after which its state is left in a slot, and that slot; at an
            anchor, before the fold. None for none.
        most_tokens: of a segment; by the size of the step if None.
    """
    most = segment_tokens(sum(query_lens)) if most_tokens is None else most_tokens
    segments: list[tuple[int, int, int]] = []
    sequences: list[tuple[int, ...]] = []
    row = 0
    if saves is None:
        saves = [None] * len(tail_lens)
    for index, (tail, length, fold, slot, save) in enumerate(
        zip(tail_lens, query_lens, folds, state_slots, saves, strict=True)
    ):
        split = fold - tail  # query tokens that are folded, if positive
        first = len(segments)
        edges, saved, save_slot = [0], 0, 0
        if save is not None:
            place, save_slot = save
            assert 0 < place < split
            edges = _edges(0, place, most)
            saved = first + len(edges) - 1
        edges += _edges(edges[-1], max(split, 0), most)[1:]
        folded = first + len(edges) - 1
        edges += _edges(max(split, 0), length, most)[1:]
        segments += [(row + lo, row + hi, index) for lo, hi in pairwise(edges)]
        end = len(segments)
        sequences.append(
            (slot, tail, min(fold, tail), first, folded, end, row, split, length, saved, save_slot)
        )
        row += length
    flat = np.array([x for part in (segments, sequences) for line in part for x in line], np.int32)
    tables = torch.from_numpy(flat).to(device, non_blocking=True)
    return SegmentTables(
        tables[: 3 * len(segments)].view(-1, 3),
        tables[3 * len(segments) :].view(-1, SEQUENCE_WIDTH),
        row,
        max(query_lens, default=0),
    )


def _edges(lo: int, hi: int, most: int) -> list[int]:
    """`lo`, edges of even pieces of whole tiles and at most `most` tokens, `hi`."""
    if hi <= lo:
        return [lo]
    pieces = -(-(hi - lo) // most)
    step = -(-(hi - lo) // (pieces * _TILE)) * _TILE
    return [*range(lo, hi, step), hi]
