"""Where each token of a batch stands in the grid of chunks: computed once per step, used by every
layer.

A sequence's state is folded at anchors, absolute positions that are multiples of ANCHOR; the (k,
v) of the tokens past the anchor are its tail. A step sees a window per sequence, from its anchor
to its last query
token: first the tail, then the new tokens. Windows are cut into chunks from the anchor on; each
chunk folds as many whole anchor distances as are certain.

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
from lingflash.kernels.lightning_attn.segments import SegmentTables, cut_segments


@dataclass(frozen=True, slots=True)
class LightningPlan:
    """Index maps of one step; `chunk` tokens to a chunk, G = num_chunks * chunk grid rows.

    Args:
        chunk: tokens per chunk, a multiple of ANCHOR.
        num_tokens: T, query tokens.
        num_chunks: chunks of all windows together.
        token_rows: int64 [T], grid row of each query token; None if it is simply 0 .. T-1.
        tail_slots, tail_offsets, tail_rows: int64 [n], state slot, place in the tail and grid row
            of the tokens that earlier steps left.
        keep_slots, keep_offsets, keep_rows: the same for the tail after this step.
        fold_anchors: int64 [num_chunks], anchor distances that each chunk folds into the state.
        fold_anchors_host: the same on the host.
        passing: chunks that end in drafts and are followed by more of them: their fold is what the
            next chunk starts from, but is not written to the state.
        sequence_chunks: per sequence its state slot, first chunk and chunk after its last.
        decode_slots, decode_offsets: int64 [N], set when every sequence has one query token: its
            state slot and its place in the tail.
        decode_folds: rows among the N whose tail is full after this token.
        decode_one: the only sequence's slot and place in the tail, if N is 1: views instead of
            copies.
        segments: for Triton's kernels, instead of all the above that speaks of chunks and grid
            rows, which is left empty.
        for_gpu: this plan is for Triton's kernels.
    """

    chunk: int
    num_tokens: int
    num_chunks: int
    token_rows: Tensor | None
    tail_slots: Tensor
    tail_offsets: Tensor
    tail_rows: Tensor
    keep_slots: Tensor
    keep_offsets: Tensor
    keep_rows: Tensor
    fold_anchors: Tensor
    fold_anchors_host: list[int]
    sequence_chunks: list[tuple[int, int, int]]
    passing: frozenset[int] = frozenset()
    decode_slots: Tensor | None = None
    decode_offsets: Tensor | None = None
    decode_folds: Tensor | None = None
    decode_one: tuple[int, int] | None = None
    segments: SegmentTables | None = None
    for_gpu: bool = False


def plan_lightning(
    starts: Sequence[int],
    anchors: Sequence[int],
    query_lens: Sequence[int],
    state_slots: Sequence[int],
    *,
    chunk: int,
    device: torch.device,
    allow_decode: bool,
    num_certain: Sequence[int] | None = None,
    for_gpu: bool | None = None,
) -> LightningPlan:
    """Lay a batch out in chunks, or in segments for the GPU.

    Args:
        starts: position of each sequence's first query token.
        anchors: position that each state is folded to, at most `starts`.
        query_lens: query tokens of each, at least 1.
        state_slots: slot of each.
        chunk: tokens per chunk, a multiple of ANCHOR.
        device: where the index tensors go.
        allow_decode: plan the cheaper single-token form when every sequence has one query token.
        num_certain: query tokens of each that may be folded, the rest being drafts; all by default.
        for_gpu: lay out for Triton's kernels; by default if `device` is a GPU.

    Raises:
        ValueError: chunk is no multiple of ANCHOR, the lengths differ, or (in chunks) a chunk would
            be folded in part and go on in drafts.
    """
    if chunk % ANCHOR or chunk <= 0:
        raise ValueError(f"chunk is {chunk}; a positive multiple of {ANCHOR} is needed.")
    num_seqs = len(starts)
    if not num_seqs == len(anchors) == len(query_lens) == len(state_slots):
        raise ValueError("starts, anchors, query_lens and state_slots differ in length.")
    certain = query_lens if num_certain is None else num_certain
    if for_gpu is None:
        for_gpu = device.type == "cuda"

    def put(values: Sequence[int] | np.ndarray) -> Tensor:
        array = np.asarray(values, dtype=np.int64)
        return torch.from_numpy(array).to(device, non_blocking=True)

    empty = put(())
    if allow_decode and all(length == 1 for length in query_lens) and num_certain is None:
        offsets = [start - anchor for start, anchor in zip(starts, anchors, strict=True)]
        folds = [i for i, offset in enumerate(offsets) if offset == ANCHOR - 1]
        if max(offsets, default=0) < ANCHOR:
            return LightningPlan(
                chunk, num_seqs, 0, None, empty, empty, empty, empty, empty, empty, empty, [], [],
                frozenset(), put(state_slots), put(offsets), put(folds) if folds else None,
                (state_slots[0], offsets[0]) if num_seqs == 1 else None, for_gpu=for_gpu,
            )  # fmt: skip
    if for_gpu:
        ends = [last_anchor(start + sure) for start, sure in zip(starts, certain, strict=True)]
        cut = cut_segments(
            [start - anchor for start, anchor in zip(starts, anchors, strict=True)],
            query_lens,
            [max(end - anchor, 0) for end, anchor in zip(ends, anchors, strict=True)],
            state_slots,
            device=device,
        )
        return LightningPlan(
            chunk, cut.num_rows, 0, None, empty, empty, empty, empty, empty, empty, empty, [], [],
            segments=cut, for_gpu=True,
        )  # fmt: skip
    token_rows: list[np.ndarray] = []
    tails: list[tuple[int, int, int]] = []  # slot, length, first grid row
    keeps: list[tuple[int, int, int]] = []
    folds_host: list[int] = []
    passing: list[int] = []
    ranges: list[tuple[int, int, int]] = []
    first_chunk = 0
    for start, anchor, length, sure, slot in zip(
        starts, anchors, query_lens, certain, state_slots, strict=True
    ):
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
        ranges.append((slot, first_chunk, first_chunk + chunks))
        first_chunk += chunks

    def spread(parts: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        if not parts:
            return empty, empty, empty
        lengths = [length for _, length, _ in parts]
        slots = np.repeat([slot for slot, _, _ in parts], lengths)
        offsets = np.concatenate([np.arange(length) for length in lengths])
        rows = np.concatenate([np.arange(row, row + length) for _, length, row in parts])
        return put(slots), put(offsets), put(rows)

    num_tokens = sum(query_lens)
    dense = num_tokens == first_chunk * chunk
    return LightningPlan(
        chunk,
        num_tokens,
        first_chunk,
        None if dense else put(np.concatenate(token_rows)),
        *spread(tails),
        *spread(keeps),
        put(folds_host),
        folds_host,
        ranges,
        frozenset(passing),
    )
