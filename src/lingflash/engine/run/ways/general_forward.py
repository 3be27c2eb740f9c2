"""A step of any kind, by the model's own forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lingflash.core.anchors import last_anchor
from lingflash.core.types import TokenLogprob
from lingflash.engine.memory.cache_memory import blocks_written
from lingflash.engine.run.sampler import PROMPT_LOGPROB_ROWS, token_logprobs
from lingflash.engine.run.speculation import Speculator
from lingflash.engine.run.step_sampling import StepSampling, wants_prompt_logprobs
from lingflash.engine.schedule.step import (
    PendingStep,
    ScheduledSequence,
    SchedulerOutput,
    StepResult,
)
from lingflash.kernels.cpu.mla_run import can_attend_on_tiles
from lingflash.kernels.cpu.mla_vectors import can_attend_in_vectors
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.config import ModelConfig
from lingflash.models.forward_batch import CacheTensors, ForwardBatch, make_forward_batch

# Work of a step from which more than one CPU thread pays: tokens of ling-nano, and keys that they
# attend to. A thread that waits for its share of a small operation sleeps, with
# OMP_WAIT_POLICY=PASSIVE, and on an idle virtual machine waking it costs more than the operation.
_THREADS_FROM = 768
_KEYS_LIKE_A_TOKEN = 512
_LIKE_A_TOKEN = 3_342_336  # multiplications, by _multiplications


def _multiplications(config: ModelConfig) -> int:
    """About those of a token with the layers' weights."""
    c = config
    experts = c.num_experts_per_tok + c.num_shared_experts
    a_layer = c.hidden_size * (4 * c.hidden_size + 3 * c.moe_intermediate_size * experts)
    return c.num_hidden_layers * a_layer


class Layers(Protocol):
    """What computes a batch; GeneralForward itself, or something faster for a few shapes."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Hidden states [T_pad, D], or those of batch.final's rows."""
        ...

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        """Float32 [R, V] of the rows whose logits a batch wants."""
        ...


class GeneralForward:
    """See Way.

    Args:
        model: all ranks of it.
        batch_invariant: run so that a sequence's logits are bitwise independent of its company.
        speculator: makes the drafts, if there are any.
    """

    def __init__(
        self,
        model: BailingHybrid,
        cache: CacheTensors,
        *,
        block_size: int,
        batch_invariant: bool,
        speculator: Speculator | None,
    ) -> None:
        self.model, self._cache, self._block_size = model, cache, block_size
        self._batch_invariant, self._speculator = batch_invariant, speculator
        latents, rank = cache.latents[0], model.config.kv_lora_rank
        self._has_threads = can_attend_on_tiles(latents, rank) or can_attend_in_vectors(latents)
        self._token_work = max(_multiplications(model.config) // _LIKE_A_TOKEN, 1)

    def can_run(self, output: SchedulerOutput) -> bool:
        """See Way: any."""
        return True

    def launch(self, output: SchedulerOutput) -> PendingStep:
        return self.launch_by(self, output)

    def launch_by(self, layers: Layers, output: SchedulerOutput) -> PendingStep:
        """Compute a step by these layers."""
        if self._speculator is not None:
            self._speculator.forget_blocks(blocks_written(output.memory_ops))
        # Threads that meet at every small operation cost more than they compute: with two, decoding
        # a batch of 8 was half as fast as with one. A batch-invariant step keeps their number, on
        # which the order of sums may depend.
        many = torch.get_num_threads()
        batch, wanting = self.build_batch(output)  # whose plan may use all threads
        if many > 1 and not self._batch_invariant and self._work(output) < _THREADS_FROM:
            torch.set_num_threads(1)
        try:
            return PendingStep.done(self._run(layers, output, batch, wanting))
        finally:
            if many > 1:
                torch.set_num_threads(many)

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.model.forward(batch, self._cache)

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        if batch.final is None:
            hidden = hidden.index_select(0, batch.logits_indices)
        return self.model.logits(hidden, batch.row_multiple)

    def anchor(self, item: ScheduledSequence) -> int:
        """Position that the state is folded to before an item runs."""
        # Accepted drafts make the tail longer; only a step folds.
        return last_anchor(item.start) if self._speculator is None else item.sequence.anchor

    def _work(self, output: SchedulerOutput) -> int:
        """A step's work in tokens of ling-nano.

        A few over a long prefix take as long as many without; not where attention to a prefix has
        threads of its own.
        """
        work = output.num_tokens * self._token_work
        if self._has_threads:
            return work
        for item in output.scheduled:
            if item.num_tokens > 1:
                work += item.num_tokens * (item.start + item.num_tokens) // _KEYS_LIKE_A_TOKEN
        return work

    def _run(
        self, layers: Layers, output: SchedulerOutput, batch: ForwardBatch, wanting: list[int]
    ) -> list[StepResult]:
        """One result per scheduled sequence; `wanting` are those that want a token."""
        items = [output.scheduled[i] for i in wanting]
        vocab_size = self.model.config.vocab_size
        sampling = StepSampling(items, vocab_size, has_drafts=output.has_drafts)
        with sampling, torch.inference_mode():
            hidden = layers.forward(batch)
            logits = layers.logits(hidden, batch) if wanting else None
            results = [StepResult() for _ in output.scheduled]
            if logits is not None:
                found = sampling.results(logits)
                for i, result in zip(wanting, found, strict=True):
                    results[i] = result
            if output.num_draft_tokens and self._speculator is not None:
                self._speculator.advance(output, hidden, results)
            row = 0
            for i, item in enumerate(output.scheduled):
                if wants_prompt_logprobs(item) and results[i].error is None:
                    rows = hidden[row : row + item.num_tokens]
                    scores = self._prompt_logprobs(rows, item, batch.row_multiple)
                    results[i] = replace(results[i], prompt_logprobs=scores)
                row += item.num_tokens
        return results

    def build_batch(self, output: SchedulerOutput) -> tuple[ForwardBatch, list[int]]:
        """The model's input, and the places among the scheduled that want a token."""
        scheduled = output.scheduled
        wanting, rows, row = [], [], -1
        for i, item in enumerate(scheduled):
            row += item.num_tokens
            if item.wants_token:
                wanting.append(i)
                if item.draft_tokens:
                    rows += range(row - len(item.draft_tokens), row)
                rows.append(row)
        # Of a prompt only the last token's hidden state is read, unless all are to be scored.
        only_last = None
        has_prompt = output.num_tokens > len(scheduled)
        if (
            has_prompt
            and not self._batch_invariant
            and not output.num_draft_tokens
            and not any(map(wants_prompt_logprobs, scheduled))
        ):
            only_last = wanting
        saves = None
        if any(item.save for item in scheduled):
            saves = [item.save for item in scheduled]
        leases = [item.sequence.lease for item in scheduled]
        num_certain = anchors = None
        if self._speculator is not None:
            anchors = [self.anchor(item) for item in scheduled]
        token_ids = [item.sequence.tokens(item.start, item.num_tokens) for item in scheduled]
        if output.has_drafts:
            num_certain = [item.num_certain for item in scheduled]
            for tokens, item in zip(token_ids, scheduled, strict=True):
                tokens += item.draft_tokens
        batch = make_forward_batch(
            token_ids,
            [item.start for item in scheduled],
            # Once, for each of those that read it.
            [np.asarray(lease.blocks) for lease in leases if lease is not None],
            [lease.state_slot for lease in leases if lease is not None],
            rows,
            block_size=self._block_size,
            device=self.model.device,
            batch_invariant=self._batch_invariant,
            anchors=anchors,
            num_certain=num_certain,
            only_last=only_last,
            saves=saves,
        )
        return batch, wanting

    def _prompt_logprobs(
        self, hidden: Tensor, item: ScheduledSequence, row_multiple: int
    ) -> list[TokenLogprob]:
        """Of the prompt tokens that these rows predict, a few rows' logits at a time."""
        sequence = item.sequence
        targets = sequence.prompt_token_ids[item.start + 1 : item.start + item.num_tokens + 1]
        num_top = sequence.sampling.prompt_logprobs or 0
        found: list[TokenLogprob] = []
        for lo in range(0, len(targets), PROMPT_LOGPROB_ROWS):
            part = targets[lo : lo + PROMPT_LOGPROB_ROWS]
            logits = self.model.logits(hidden[lo : lo + len(part)], row_multiple)
            found += token_logprobs(logits, part, num_top)
        return found
