"""What a model is run on: the tokens of one step and where their memory lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lingflash.core.anchors import ANCHOR, last_anchor
from lingflash.core.config import ROW_MULTIPLE
from lingflash.kernels.lightning_attn import LightningPlan, plan_lightning
from lingflash.kernels.lightning_attn.chunks import put_index
from lingflash.kernels.mla import MlaPlan, plan_mla
from lingflash.models.config import ModelConfig

# Tokens to a chunk of lightning attention where only the anchors' places matter.
_FAST_CHUNK = 64


def lightning_chunk(batch_invariant: bool) -> int:
    """Tokens per chunk of lightning attention: one anchor distance for batch invariance."""
    return ANCHOR if batch_invariant else _FAST_CHUNK


def upload(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int64 numbers on a device, in the order of its current stream; the host does not wait."""
    found = torch.tensor(numbers, dtype=torch.int64)
    if device.type != "cuda":
        return found.to(device)
    return found.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class CacheTensors:
    """Memory of all sequences; written in place by the model.

    Args:
        latents: [num_mla_layers, num_blocks, block_size, R + P], model dtype; the MTP layer's, if
            it is loaded, come last. Some blocks hold state checkpoints, as bits.
        states: float32 [num_lightning_layers, slots, H, K, V], folded to each sequence's anchor.
        tail_k, tail_v: float32 [num_lightning_layers, slots, H, tail, K or V], (k, v) past the
            anchor; tail is ANCHOR and as many more as there are drafts.
        anchor_hidden: float32 [2, slots, D], only for speculation: hidden states of
            the tokens before the last two anchors, that before position 16 n at place n % 2; the
            MTP layer goes on from them after a checkpoint.
    """

    latents: Tensor
    states: Tensor
    tail_k: Tensor
    tail_v: Tensor
    anchor_hidden: Tensor | None = None

    @classmethod
    def zeros(
        cls,
        config: ModelConfig,
        *,
        num_latent_layers: int,
        num_blocks: int,
        block_size: int,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
        num_drafts: int = 0,
    ) -> CacheTensors:
        """Allocate memory for a model of this shape.

        Args:
            num_latent_layers: MLA layers, and the MTP layer if it is loaded.
            dtype: of latents; all else is float32.
            num_drafts: most drafts of a step; 0 for no speculation.
        """
        layers, heads, d = len(config.lightning_layers), config.num_attention_heads, config.head_dim
        tail = layers, num_slots, heads, ANCHOR + num_drafts, d
        latents = num_latent_layers, num_blocks, block_size, config.latent_dim
        zeros = partial(torch.zeros, dtype=torch.float32, device=device)
        return cls(
            latents=zeros(latents, dtype=dtype),
            states=zeros(layers, num_slots, heads, d, d),
            tail_k=zeros(tail),
            tail_v=zeros(tail),
            anchor_hidden=zeros(2, num_slots, config.hidden_size) if num_drafts else None,
        )

    def forget_slots(self, slots: Sequence[int]) -> None:
        """Zero the states and tails of slots that a new sequence takes over."""
        index = upload(slots, self.states.device)
        for pool in (self.states, self.tail_k, self.tail_v):
            pool.index_fill_(1, index, 0.0)
        if self.anchor_hidden is not None:
            self.anchor_hidden.index_fill_(1, index, 0.0)

    def forget_blocks(self, blocks: Sequence[int]) -> None:
        """Zero blocks that change owner: a NaN in a masked key would spoil the sum over keys."""
        self.latents.index_fill_(1, upload(blocks, self.latents.device), 0.0)


@dataclass(frozen=True, slots=True)
class FinalRows:
    """The rows that the last layer is asked for: past its keys, nothing else of it is ever read.

    Args:
        rows: int64 [R], rows of the flattened tokens: the last one of each sequence that wants
            logits.
        mla: layout of those rows alone, one query token each.
    """

    rows: Tensor
    mla: MlaPlan


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's tokens, sequence after sequence, any number for each.

    T counts tokens; in batch-invariant mode rows are padded to a multiple of ROW_MULTIPLE:
    T_pad >= T.

    Args:
        num_tokens: T.
        token_ids: int64 [T_pad].
        positions: int64 [T_pad], place of each token in its sequence.
        slot_mapping: int64 [T], block * block_size + offset of each token's latent.
        logits_indices: int64 [R], rows whose logits are wanted.
        batch_invariant: bitwise independence of the company (CPU, float32).
        block_table: int64 on the host, blocks of the only sequence, if there is one with one token.
        mla_length: tokens of that sequence with this step.
        final: if set, forward() gives hidden states of these rows only, in their order.
    """

    num_tokens: int
    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    logits_indices: Tensor
    lightning: LightningPlan
    mla: MlaPlan
    batch_invariant: bool
    block_table: np.ndarray | None = None
    mla_length: int = 0
    final: FinalRows | None = None

    @property
    def row_multiple(self) -> int:
        """What row counts of matrix products are padded to."""
        return ROW_MULTIPLE if self.batch_invariant else 1


def make_forward_batch(
    token_ids: Sequence[Sequence[int]],
    starts: Sequence[int],
    block_tables: Sequence[Sequence[int]] | Sequence[np.ndarray],
    state_slots: Sequence[int],
    logits_indices: Sequence[int],
    *,
    block_size: int,
    device: torch.device,
    batch_invariant: bool = False,
    anchors: Sequence[int] | None = None,
    num_certain: Sequence[int] | None = None,
    only_last: Sequence[int] | None = None,
    saves: Sequence[tuple[int, int] | None] | None = None,
) -> ForwardBatch:
    """Build the model's input from one entry per sequence.

    Args:
        token_ids: each sequence's query tokens, at least one.
        starts: position of each first query token.
        block_tables: each sequence's blocks, enough for all its tokens with this step.
        logits_indices: rows of the flattened tokens whose logits are wanted.
        anchors: position that each state is folded to; the last anchor at or before the start by
            default.
        num_certain: query tokens that are no drafts; all by default.
        only_last: sequences whose last token's hidden state is all that is wanted of this step;
            None for every token's.
        saves: see plan_lightning.
    """
    lens = [len(ids) for ids in token_ids]
    num_tokens = sum(lens)
    padded = -(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE if batch_invariant else num_tokens
    flat, positions, slots = _flatten(token_ids, starts, block_tables, block_size, padded)
    chunk = lightning_chunk(batch_invariant)
    if num_certain is not None and max(lens) <= ANCHOR:
        chunk = ANCHOR  # a few drafts each: the smallest chunks leave the least empty
    if anchors is None:
        anchors = [last_anchor(start) for start in starts]
    layout = {"block_size": block_size, "device": device, "fixed_blocks": batch_invariant}
    final = None
    if only_last is not None:
        final = _last_rows(only_last, starts, lens, block_tables, **layout)
    return ForwardBatch(
        num_tokens=num_tokens,
        token_ids=put_index(flat, device),
        positions=put_index(positions, device),
        slot_mapping=put_index(slots, device),
        logits_indices=put_index(logits_indices, device),
        lightning=plan_lightning(
            starts,
            anchors,
            lens,
            state_slots,
            chunk=chunk,
            device=device,
            allow_decode=not batch_invariant,
            num_certain=num_certain,
            saves=saves,
        ),
        mla=plan_mla(starts, lens, block_tables, **layout),
        batch_invariant=batch_invariant,
        block_table=np.asarray(block_tables[0], dtype=np.int64) if lens == [1] else None,
        mla_length=starts[0] + 1 if lens == [1] else 0,
        final=final,
    )


def _last_rows(
    wanted: Sequence[int],
    starts: Sequence[int],
    lens: Sequence[int],
    block_tables: Sequence[Sequence[int]] | Sequence[np.ndarray],
    *,
    device: torch.device,
    **layout: Any,
) -> FinalRows:
    """The last row of each of some sequences; `layout` is plan_mla's."""
    mla = plan_mla(
        [starts[i] + lens[i] - 1 for i in wanted],
        [1] * len(wanted),
        [np.asarray(block_tables[i]) for i in wanted],
        device=device,
        **layout,
    )
    return FinalRows(put_index((np.cumsum(lens) - 1)[list(wanted)], device), mla)


def _flatten(
    token_ids: Sequence[Sequence[int]],
    starts: Sequence[int],
    block_tables: Sequence[Sequence[int]] | Sequence[np.ndarray],
    block_size: int,
    padded: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids and positions [padded] and slots [T] of all sequences' tokens, in order."""
    flat = np.zeros(padded, dtype=np.int64)
    positions = np.zeros(padded, dtype=np.int64)
    slots = np.empty(sum(map(len, token_ids)), dtype=np.int64)
    row = 0
    for ids, start, table in zip(token_ids, starts, block_tables, strict=True):
        length = len(ids)
        flat[row : row + length] = ids
        if length == 1:  # decoding is the common case and numpy's calls are not free
            positions[row] = start
            slots[row] = table[start // block_size] * block_size + start % block_size
        else:
            where = np.arange(start, start + length)
            positions[row : row + length] = where
            blocks = np.asarray(table, dtype=np.int64)
            slots[row : row + length] = (
                blocks[where // block_size] * block_size + where % block_size
            )
        row += length
    return flat, positions, slots


def make_mtp_batch(
    token_ids: Sequence[Sequence[int]],
    starts: Sequence[int],
    first_rows: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    asked: Sequence[int],
    *,
    block_size: int,
    device: torch.device,
) -> ForwardBatch:
    """Build the MTP layer's input, where row p is made of token p and the hidden state before it.

    All rows' latents are written; the layer's output is computed for some sequences' last rows.

    Args:
        token_ids: tokens of each sequence's rows, at least one.
        starts: position of each first row.
        first_rows: position of the first row of each sequence that has a latent; it and those
            after it are attended to.
        block_tables: each sequence's blocks, enough for all its rows.
        asked: sequences whose last row's output is wanted.
    """
    lens = [len(ids) for ids in token_ids]
    num_rows = sum(lens)
    flat, positions, slots = _flatten(token_ids, starts, block_tables, block_size, num_rows)
    last = _last_rows(
        asked,
        starts,
        lens,
        block_tables,
        block_size=block_size,
        device=device,
        fixed_blocks=False,
        first_keys=[first_rows[i] for i in asked],
    )
    return ForwardBatch(
        num_tokens=num_rows,
        token_ids=put_index(flat, device),
        positions=put_index(positions, device),
        slot_mapping=put_index(slots, device),
        logits_indices=last.rows,
        lightning=_no_lightning(device),
        mla=last.mla,
        batch_invariant=False,
        final=None if len(asked) == num_rows else last,
    )


@cache
def _no_lightning(device: torch.device) -> LightningPlan:
    return plan_lightning([], [], [], [], chunk=ANCHOR, device=device, allow_decode=False)


@dataclass(slots=True)
class Trace:
    """Looks inside a forward pass: tensors by name, and a routing to force.

    Args:
        tensors: filled with "layer{i}.hidden", "layer{i}.attn_out", "layer{i}.mlp_out",
            "layer{i}.topk_idx", "layer{i}.topk_w", "embed" and "final_norm".
        forced_routing: layer to (topk_ids, topk_weights), used instead of the router's choice.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    forced_routing: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def record(self, name: str, value: Tensor) -> None:
        """Keep a copy of a tensor."""
        self.tensors[name] = value.detach().clone()


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Append zero rows up to `rows`; x itself if it has them."""
    missing = rows - x.shape[0]
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x
