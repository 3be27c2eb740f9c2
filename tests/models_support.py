"""Helpers for tests that run a model by hand: memory for a few sequences, prompts fed in pieces."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.forward_batch import CacheTensors, make_forward_batch
from lingflash.models.loader import load_model

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "checkpoint"
CPU = torch.device("cpu")
BLOCK = 16


def load(folder: Path = CHECKPOINT, **changes) -> BailingHybrid:
    options = {"dtype": torch.float32, "device": CPU, "max_model_len": 4096} | changes
    return load_model(folder, **options)


def new_cache(
    model: BailingHybrid, slots: int = 4, blocks: int = 64, drafts: int = 0
) -> CacheTensors:
    return CacheTensors.zeros(
        model.config,
        num_latent_layers=model.num_latent_layers,
        num_blocks=blocks,
        block_size=BLOCK,
        num_slots=slots,
        dtype=model.dtype,
        device=model.device,
        num_drafts=drafts,
    )


def feed(
    model: BailingHybrid,
    cache: CacheTensors,
    token_ids: list[int],
    *,
    start: int = 0,
    blocks: list[int] | None = None,
    slot: int = 1,
    batch_invariant: bool = False,
    trace=None,
) -> Tensor:
    """Run one sequence's tokens in one step; returns float32 logits [n, V]."""
    batch = make_forward_batch(
        [token_ids],
        [start],
        [blocks or list(range(3, 60))],
        [slot],
        [],
        block_size=BLOCK,
        device=CPU,
        batch_invariant=batch_invariant,
    )
    hidden = model.forward(batch, cache, trace)
    return model.logits(hidden, batch.row_multiple)[: len(token_ids)]


def feed_in_chunks(
    model: BailingHybrid, token_ids: list[int], size: int, *, batch_invariant: bool = False
) -> tuple[Tensor, CacheTensors]:
    """Run a prompt in steps of `size` tokens; returns all logits and the memory afterwards."""
    cache = new_cache(model)
    logits = [
        feed(
            model,
            cache,
            token_ids[lo : lo + size],
            start=lo,
            batch_invariant=batch_invariant,
        )
        for lo in range(0, len(token_ids), size)
    ]
    return torch.cat(logits), cache
