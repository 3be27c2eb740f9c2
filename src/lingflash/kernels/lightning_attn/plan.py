"""Which form of lightning attention a step takes, laid out once and used by every layer.

A sequence's state is folded at anchors, absolute positions that are multiples of ANCHOR; the (k, v)
of the tokens past the anchor are its tail. Where every sequence has one token, the step decodes;
else its tokens are cut into chunks (chunks.py), or on a GPU into segments (segments.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lingflash.core.anchors import ANCHOR, last_anchor
from lingflash.kernels.lightning_attn.chunks import ChunkTables, cut_chunks, put_index
from lingflash.kernels.lightning_attn.segments import SegmentTables, cut_segments


@dataclass(frozen=True, slots=True)
class LightningPlan:
    """Where the tokens of one step stand; one of decode_slots, chunks and segments is set.

    Args:
        chunk: tokens per chunk, a multiple of ANCHOR.
        for_gpu: this plan is for Triton's kernels.
        decode_slots, decode_offsets: int64 [N], set when every sequence has one query token: its
            state slot and its place in the tail.
        decode_folds: rows among the N whose tail is full after this token.
        decode_one: the only sequence's slot and place in the tail, if N is 1: views instead of
            copies.
        chunks: for any other step on the CPU.
        segments: for any other step on a GPU.
    """

    chunk: int
    num_tokens: int
    for_gpu: bool
    decode_slots: Tensor | None = None
    decode_offsets: Tensor | None = None
    decode_folds: Tensor | None = None
    decode_one: tuple[int, int] | None = None
    chunks: ChunkTables | None = None
    segments: SegmentTables | None = None


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
    saves: Sequence[tuple[int, int] | None] | None = None,
    for_gpu: bool | None = None,
) -> LightningPlan:
    """Lay a batch out for decoding, in chunks, or in segments for the GPU.

    Args:
        starts: position of each sequence's first query token.
        anchors: position that each state is folded to, at most `starts`.
        query_lens: query tokens of each, at least 1.
        chunk: tokens per chunk, a multiple of ANCHOR.
        allow_decode: plan the cheaper single-token form when every sequence has one query token.
        num_certain: query tokens of each that may be folded, the rest being drafts; all by default.
        saves: anchor within each sequence's query tokens whose states are left in a slot, too, and
            that slot; only for a GPU. None for none.
        for_gpu: lay out for Triton's kernels; by default if `device` is a GPU.

    Raises:
        ValueError: chunk is no multiple of ANCHOR, the lengths differ, or (in chunks) a chunk would
            be folded in part and go on in drafts, or states are to be saved.
    """
    if chunk % ANCHOR or chunk <= 0:
        raise ValueError(f"chunk is {chunk}; a positive multiple of {ANCHOR} is needed.")
    if not len(starts) == len(anchors) == len(query_lens) == len(state_slots):
        raise ValueError("starts, anchors, query_lens and state_slots differ in length.")
    if for_gpu is None:
        for_gpu = device.type == "cuda"
    num_tokens = sum(query_lens)
    tails = [start - anchor for start, anchor in zip(starts, anchors, strict=True)]
    if (
        allow_decode
        and num_certain is None
        and all(length == 1 for length in query_lens)
        and max(tails, default=0) < ANCHOR
    ):
        folds = [i for i, tail in enumerate(tails) if tail == ANCHOR - 1]
        return LightningPlan(
            chunk,
            num_tokens,
            for_gpu,
            decode_slots=put_index(state_slots, device),
            decode_offsets=put_index(tails, device),
            decode_folds=put_index(folds, device) if folds else None,
            decode_one=(state_slots[0], tails[0]) if len(starts) == 1 else None,
        )
    certain = query_lens if num_certain is None else num_certain
    if not for_gpu:
        if saves is not None and any(saves):
            raise ValueError("states are saved within a step by the GPU's kernels alone.")
        chunks = cut_chunks(
            starts, anchors, query_lens, certain, state_slots, chunk=chunk, device=device
        )
        return LightningPlan(chunk, num_tokens, for_gpu, chunks=chunks)
    folds = [
        max(last_anchor(start + sure) - anchor, 0)
        for start, sure, anchor in zip(starts, certain, anchors, strict=True)
    ]
    if saves is not None:
        saves = [s and (s[0] - start, s[1]) for s, start in zip(saves, starts, strict=True)]
    segments = cut_segments(tails, query_lens, folds, state_slots, device=device, saves=saves)
    return LightningPlan(chunk, num_tokens, for_gpu, segments=segments)
