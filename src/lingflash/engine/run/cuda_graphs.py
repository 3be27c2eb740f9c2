"""Decode steps on the GPU as CUDA graphs: one for each number of rows, inputs in one copy.

A step of n sequences runs the graph of the next larger size; the rows beyond n are padding that
decodes into a slot and a block of its own. Block tables lie on the device and get only what is new.

A step may be launched before the tokens that it takes are known here (`launch`): each slot's last
token stays on the device, where the graph finds it. The host then works one step ahead, so what it
writes for a step and reads of it lies in one of two buffers, in turn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lingflash.cache.lease import Lease
from lingflash.core.anchors import ANCHOR
from lingflash.engine.memory.tensors import graph_sizes
from lingflash.engine.schedule.step import ScheduledSequence, SchedulerOutput
from lingflash.kernels.graph_capture import capture_graph
from lingflash.kernels.sampling import noise_key
from lingflash.models.cuda_decoder import CudaDecoder, DecodeInputs
from lingflash.models.forward_batch import CacheTensors, upload

log = logging.getLogger(__name__)

# Numbers per row that a step needs besides its block table: six that the model reads, then the key
# of the noise and the temperature of the draw.
_FIELDS = 8
# Stands for a token that is on the device alone, and for none where logits were not finite.
_IN_FLIGHT = NOT_FINITE = -1


class DecodeGraphs:
    """Runs steps in which every sequence has one query token.

    Args:
        cache: the memory they run on; its last slot and last block are for padding.
        max_num_seqs: most sequences of a step, also the number of slots that sequences use.
        use_graphs: False launches one by one, which is how this is tested without a GPU.
    """

    def __init__(
        self,
        decoder: CudaDecoder,
        cache: CacheTensors,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        use_graphs: bool = True,
    ) -> None:
        self._decoder, self._block_size, self._use_graphs = decoder, block_size, use_graphs
        self._device = cache.states.device
        self._sizes = graph_sizes(max_num_seqs)
        self._spare_slot, self._spare_block = cache.states.shape[1] - 1, cache.latents.shape[1] - 1
        self._max_length = max_model_len
        width = -(-max_model_len // block_size)
        # One row per state slot, the padding's last.
        self._tables = torch.full(
            (cache.states.shape[1], width), self._spare_block, dtype=torch.int64,
            device=self._device,
        )  # fmt: skip
        # What is known of each slot on the device: whose table, and how many blocks of it.
        self._known: dict[int, tuple[Lease, int]] = {}
        most = self._sizes[-1]
        self._packed = torch.zeros(_FIELDS * most, dtype=torch.int64, device=self._device)
        pinned = self._device.type == "cuda"
        self._buffers = [
            torch.zeros(2, _FIELDS * most, dtype=torch.int64, pin_memory=pinned) for _ in range(2)
        ]
        # The token that was drawn last in each slot, the padding's too.
        self._last_tokens = torch.zeros(
            cache.states.shape[1], dtype=torch.int64, device=self._device
        )
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        # The graphs' memory; they run one after the other.
        self.pool: Any = None

    def capture_all(self) -> None:
        """Make every graph, the largest first, so that the others use its memory."""
        if not self._use_graphs:
            return
        start = time.monotonic()
        for rows in reversed(self._sizes):
            self._capture(rows)
        log.info(
            "captured %d graphs for 1 to %d sequences in %.1f s", len(self._graphs),
            self._sizes[-1], time.monotonic() - start,
        )  # fmt: skip

    def can_run(self, output: SchedulerOutput) -> bool:
        """Whether a step is one query token of each of few enough sequences."""
        scheduled = output.scheduled
        return (
            0 < len(scheduled) <= self._sizes[-1]
            and output.num_tokens == len(scheduled)
            and not output.has_drafts
        )

    @torch.inference_mode()
    def run(self, scheduled: Seq[ScheduledSequence]) -> Tensor:
        """Logits of the next token of each: float32 [n, V], overwritten by the next call."""
        logits, _ = self._compute(self.stage(scheduled))
        return logits[: len(scheduled)]

    @torch.inference_mode()
    def launch(self, scheduled: Seq[ScheduledSequence]) -> Callable[[], list[int]]:
        """Begin a step and draw each sequence's token by its temperature and seed alone.

        Tokens that it takes may be those of the step before, not known yet. Between this call and
        the one after the next, the returned function must have been called.

        Returns:
            Waits for this step's tokens; NOT_FINITE where logits are NaN or infinite.
        """
        _, tokens = self._compute(self.stage(scheduled, draws=True))
        drawn = self._buffers[0][1, : len(scheduled)]
        drawn.copy_(tokens[: len(scheduled)], non_blocking=True)
        if self._device.type != "cuda":
            return drawn.tolist
        done = torch.cuda.Event()
        done.record()

        def wait() -> list[int]:
            done.synchronize()
            return drawn.tolist()

        return wait

    def _compute(self, rows: int) -> tuple[Tensor, Tensor]:
        if not self._use_graphs:
            return self._forward(rows)
        if rows not in self._graphs:
            self._capture(rows)
        graph, *outputs = self._graphs[rows]
        graph.replay()
        return outputs[0], outputs[1]

    def _fields(self, rows: int) -> Tensor:
        """The inputs of a graph on the device, int64 [_FIELDS, rows]."""
        return self._packed[: _FIELDS * rows].view(_FIELDS, rows)

    def stage(self, scheduled: Seq[ScheduledSequence], *, draws: bool = False) -> int:
        """Bring a step's inputs to the device; the rows of its graph.

        Args:
            draws: bring what their tokens are drawn by; else what the graph draws means nothing.
        """
        count = len(scheduled)
        rows = next(n for n in self._sizes if n >= count)
        self._buffers.reverse()  # the step before may not have read its own yet
        staged = self._buffers[0][0, : _FIELDS * rows]
        fields = staged.numpy().reshape(_FIELDS, rows)
        token_ids, positions, slots, offsets, lengths, mapping, keys, temperatures = fields
        fields[:, count:] = 0
        slots[count:] = self._spare_slot
        lengths[count:] = 1
        mapping[count:] = self._spare_block * self._block_size
        places: list[int] = []
        blocks: list[int] = []
        width = self._tables.shape[1]
        for row, item in enumerate(scheduled):
            lease = item.sequence.lease
            assert lease is not None
            slot, start = lease.state_slot, item.start
            token = item.sequence.tokens(start, 1)
            token_ids[row] = token[0] if token else _IN_FLIGHT
            positions[row], slots[row] = start, slot
            block = lease.blocks[start // self._block_size]
            mapping[row] = block * self._block_size + start % self._block_size
            owner, known = self._known.get(slot, (None, 0))
            if owner is not lease:
                known = 0
            if known < len(lease.blocks):
                places += range(slot * width + known, slot * width + len(lease.blocks))
                blocks += lease.blocks[known:]
                self._known[slot] = lease, len(lease.blocks)
        fields[6:, :count] = 0
        if draws:
            params = [item.sequence.sampling for item in scheduled]
            temperatures.view(np.float32)[:count] = [p.temperature for p in params]
            keys[:count] = [
                noise_key(p.seed or 0, item.sequence.choice, item.start + 1) if p.temperature else 0
                for item, p in zip(scheduled, params, strict=True)
            ]
        np.remainder(positions, ANCHOR, out=offsets)
        np.add(positions[:count], 1, out=lengths[:count])
        self._bring(staged, places, blocks)
        return rows

    @staticmethod
    def rows_of(staged: Tensor) -> int:
        """Rows of the graph that takes these numbers."""
        return len(staged) // _FIELDS

    def _bring(self, staged: Tensor, places: list[int], blocks: list[int]) -> None:
        """Copy a step's numbers to the device, and new blocks to their places in the tables."""
        self._packed[: len(staged)].copy_(staged, non_blocking=True)
        if places:
            index = upload(places, self._device)
            self._tables.view(-1).index_copy_(0, index, upload(blocks, self._device))

    def forget_tables(self) -> None:
        """Bring every block table anew: one may not have arrived with a step that failed."""
        self._known.clear()

    def _forward(self, rows: int) -> tuple[Tensor, Tensor]:
        """Logits of the first `rows` rows of the inputs, and the tokens drawn from them.

        Tokens are drawn in every step, for a few microseconds, so that there is one kind of graph.
        """
        from lingflash.kernels.sampling.triton_sample import sample_tokens_triton

        token_ids, positions, slots, offsets, lengths, mapping, keys, words = self._fields(rows)
        last_tokens = self._last_tokens.index_select(0, slots)
        inputs = DecodeInputs(
            token_ids=torch.where(token_ids == _IN_FLIGHT, last_tokens, token_ids),
            positions=positions,
            slot_mapping=mapping,
            state_slots=slots,
            tail_offsets=offsets,
            lengths=lengths,
            block_tables=self._tables.index_select(0, slots),
            max_length=self._max_length,
        )
        logits = self._decoder.logits(self._decoder.forward(inputs))
        tokens = sample_tokens_triton(logits, words.view(torch.float32)[:rows], keys)
        self._last_tokens.index_copy_(0, slots, tokens)
        return logits, tokens.masked_fill(~torch.isfinite(logits.sum(-1)), NOT_FINITE)

    @torch.inference_mode()
    def _capture(self, rows: int) -> None:
        """Make the graph of so many rows; all of them padding while it is tried once."""
        inputs = self._packed.clone()
        self._fill_with_padding(rows)
        graph, outputs = capture_graph(partial(self._forward, rows), self.pool)
        self.pool = graph.pool()
        self._graphs[rows] = graph, *outputs
        self._packed.copy_(inputs)

    def _fill_with_padding(self, rows: int) -> None:
        fields = self._fields(rows)
        fields.zero_()
        fields[2].fill_(self._spare_slot)
        fields[4].fill_(1)
        fields[5].fill_(self._spare_block * self._block_size)
