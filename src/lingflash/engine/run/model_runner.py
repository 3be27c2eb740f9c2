"""Runs the scheduled tokens through the model: memory, batch, forward, logits, samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lingflash.core.config import EngineConfig
from lingflash.core.hub import resolve_model
from lingflash.core.types import TokenLogprob
from lingflash.engine.memory.cache_memory import CacheMemory, blocks_written
from lingflash.engine.memory.plan import MemoryPlan
from lingflash.engine.memory.planning import plan_memory
from lingflash.engine.memory.tensors import allocate_cache
from lingflash.engine.run.batch_invariance import check_batch_invariance
from lingflash.engine.run.cuda_graphs import NOT_FINITE, DecodeGraphs
from lingflash.engine.run.ranks import LeadMemory, LeadModel, Ranks, connect
from lingflash.engine.run.sampler import (
    PROMPT_LOGPROB_ROWS,
    Sampled,
    is_plain,
    not_finite,
    sample,
    token_logprobs,
)
from lingflash.engine.run.speculation import Speculator, accept_drafts
from lingflash.engine.run.step_masks import StepMasks
from lingflash.engine.schedule.sequence import DraftedSequence, Sequence
from lingflash.engine.schedule.step import (
    PendingStep,
    ScheduledSequence,
    SchedulerOutput,
    StepResult,
)
from lingflash.kernels.cpu.allocator import keep_freed_memory
from lingflash.kernels.cpu.mla_run import can_attend_on_tiles
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.cpu_decoder import CpuDecoder
from lingflash.models.cuda_decoder import CudaDecoder
from lingflash.models.forward_batch import ForwardBatch, make_forward_batch
from lingflash.models.loader import load_model, load_stop_token_ids
from lingflash.parallel.mesh import Mesh
from lingflash.parallel.shard import Shard

log = logging.getLogger(__name__)

# Work of a step from which more than one CPU thread pays: tokens, and keys that they attend to. A
# thread that waits for its share of a small operation sleeps (OMP_WAIT_POLICY=PASSIVE), and on an
# idle virtual machine waking it costs more than the operation.
_THREADS_FROM = 768
_KEYS_LIKE_A_TOKEN = 512


class ModelRunner:
    """A loaded model and the memory of its sequences.

    Args:
        model: the model, weights filled.
        plan: sizes of the memory.
        batch_invariant: run so that a sequence's logits are bitwise independent of its company.
        stop_token_ids: the model's own.
        folder: of the checkpoint, where the tokenizer lies; None has none.
        ranks: the other processes of a split model, of which `model` is rank 0's part.
    """

    def __init__(
        self,
        model: BailingHybrid,
        plan: MemoryPlan,
        *,
        batch_invariant: bool,
        stop_token_ids: list[int],
        folder: Path | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.plan = model, plan
        self.batch_invariant = batch_invariant
        self.stop_token_ids = stop_token_ids
        self.folder = folder
        if model.device.type == "cpu":
            keep_freed_memory()
        self.cache = allocate_cache(model, plan)
        self._has_tiles = can_attend_on_tiles(self.cache.latents[0], model.config.kv_lora_rank)
        if ranks is None:
            self.memory = CacheMemory(self.cache, plan.num_host_blocks)
        else:
            self.model, self.memory = LeadModel(model, ranks), LeadMemory(self.cache, ranks)
        self.speculator: Speculator | None = None
        if plan.num_speculative_tokens:
            self.speculator = Speculator(model, self.cache, plan.num_blocks)
        self.cpu_decoder = CpuDecoder.create(model, self.cache) if not batch_invariant else None
        self.graphs = self._decode_graphs(model) if ranks is None else None
        if batch_invariant:
            check_batch_invariance(
                model,
                lambda num_seqs, num_blocks: allocate_cache(
                    model,
                    replace(
                        plan, num_state_slots=num_seqs, num_blocks=num_blocks, checkpoint_blocks=0
                    ),
                ),
                plan.block_size,
            )

    def _decode_graphs(self, model: BailingHybrid) -> DecodeGraphs | None:
        """The GPU's way to decode, if there is a GPU and it has kernels for this model."""
        # Drafts are verified, and tails run longer, by the general path.
        decoder = None if self.speculator is not None else CudaDecoder.create(model, self.cache)
        if decoder is None:
            return None
        graphs = DecodeGraphs(
            decoder,
            self.cache,
            max_num_seqs=self.plan.num_state_slots,
            max_model_len=self.plan.max_model_len,
            block_size=self.plan.block_size,
        )
        graphs.capture_all()
        return graphs

    @classmethod
    def from_config(
        cls, config: EngineConfig, progress: Callable[[int, int], None] | None = None
    ) -> ModelRunner:
        """Plan, load and allocate; the plan's errors come before anything is read.

        Raises:
            LingflashError: the model cannot be loaded or does not fit.
        """
        plan = plan_memory(config)
        folder = resolve_model(config.model)
        device = torch.device(plan.device)
        mesh, ranks = Mesh(Shard(0, config.tensor_parallel_size)), None
        if mesh.shard.size > 1:
            ranks = Ranks(config, plan, folder)
        model = load_model(
            folder,
            dtype=plan.dtype,
            device=device,
            max_model_len=plan.max_model_len,
            rope_scaling=config.rope_scaling,
            progress=progress,
            mesh=mesh,
        )
        if ranks is not None:
            connect(mesh, ranks, device)
        return cls(
            model,
            plan,
            batch_invariant=config.batch_invariant,
            stop_token_ids=load_stop_token_ids(folder, model.config),
            folder=folder,
            ranks=ranks,
        )

    @property
    def can_overlap(self) -> bool:
        """Whether some steps run behind the host, so that it pays to schedule ahead of them."""
        return self.graphs is not None

    def run(self, output: SchedulerOutput) -> list[StepResult]:
        """Compute one step; one result per scheduled sequence, in order."""
        return self.launch(output).results()

    def launch(self, output: SchedulerOutput) -> PendingStep:
        """Begin to compute one step; one that cannot run behind the host is computed here.

        Two may be under way. Both, and all that is done to the memory for them, run in the order
        of their launches: on the GPU in that of one stream.
        """
        self.memory.run(output.memory_ops)
        graphs = self.graphs
        if graphs is not None and graphs.can_run(output) and _is_plain_decode(output):
            wait = graphs.launch(output.scheduled)
            return PendingStep(lambda: [_drawn(token) for token in wait()], is_under_way=True)
        results = self._run_now(output)
        return PendingStep(lambda: results, is_under_way=False)

    def _run_now(self, output: SchedulerOutput) -> list[StepResult]:
        if self.speculator is not None:
            self.speculator.forget_blocks(blocks_written(output.memory_ops))
        if (
            self.graphs is not None
            and self.graphs.can_run(output)
            and not any(map(_wants_prompt_logprobs, output.scheduled))
        ):
            return self._run_graph(self.graphs, output)
        # Threads that meet at every small operation cost more than they compute: with two, decoding
        # a batch of 8 was half as fast as with one. A batch-invariant step keeps their number, on
        # which the order of sums may depend.
        many = torch.get_num_threads()
        batch, wanting = self.build_batch(output)  # whose plan may use all threads
        if many > 1 and not self.batch_invariant and self._work(output) < _THREADS_FROM:
            torch.set_num_threads(1)
        try:
            return self._run(output, batch, wanting)
        finally:
            if many > 1:
                torch.set_num_threads(many)

    def _work(self, output: SchedulerOutput) -> int:
        """A step's work in tokens: a few over a long prefix take as long as many without.

        Not where attention to a prefix has threads of its own.
        """
        work = output.num_tokens
        if self._has_tiles:
            return work
        for item in output.scheduled:
            if item.num_tokens > 1:
                work += item.num_tokens * (item.start + item.num_tokens) // _KEYS_LIKE_A_TOKEN
        return work

    def _run(
        self, output: SchedulerOutput, batch: ForwardBatch, wanting: list[int]
    ) -> list[StepResult]:
        rows, groups = logit_rows([output.scheduled[i] for i in wanting], output.has_drafts)
        masks = StepMasks.start(groups, self.model.config.vocab_size)
        decoder = self.cpu_decoder
        if decoder is not None and not decoder.can_run(batch):
            decoder = None
        if decoder is None:
            hidden = self.model.forward(batch, self.cache)
        else:
            hidden = decoder.forward(batch)
        with torch.inference_mode():
            results = [StepResult() for _ in output.scheduled]
            if wanting:
                if decoder is None:
                    last = hidden
                    if batch.final is None:
                        last = hidden.index_select(0, batch.logits_indices)
                    logits = self.model.logits(last, batch.row_multiple)
                else:
                    logits = decoder.logits(hidden)
                sampled = _sample(logits, rows, masks)
                if masks is None and not output.has_drafts:
                    for i, result in zip(wanting, sampled, strict=True):
                        results[i] = result
                else:
                    for i, group in zip(wanting, groups, strict=True):
                        results[i] = accept_drafts(sampled, group, masks)
            if output.num_draft_tokens and self.speculator is not None:
                self.speculator.advance(output, hidden, results)
            row = 0
            for i, item in enumerate(output.scheduled):
                if _wants_prompt_logprobs(item) and results[i].error is None:
                    found = self._prompt_logprobs(hidden[row : row + item.num_tokens], item, batch)
                    results[i] = replace(results[i], prompt_logprobs=found)
                row += item.num_tokens
        return results

    @torch.inference_mode()
    def _run_graph(self, graphs: DecodeGraphs, output: SchedulerOutput) -> list[StepResult]:
        """One query token of each sequence, on the GPU; masks are made while it computes."""
        logits = graphs.run(output.scheduled)
        rows, groups = logit_rows(output.scheduled, has_drafts=False)
        masks = StepMasks.start(groups, self.model.config.vocab_size)
        sampled = _sample(logits, rows, masks)
        if masks is None:
            return sampled
        return [accept_drafts(sampled, group, masks) for group in groups]

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
            and not self.batch_invariant
            and not output.num_draft_tokens
            and not any(map(_wants_prompt_logprobs, scheduled))
        ):
            only_last = wanting
        leases = [item.sequence.lease for item in scheduled]
        num_certain = anchors = None
        token_ids = [item.sequence.tokens(item.start, item.num_tokens) for item in scheduled]
        if self.speculator is not None:
            anchors = [item.sequence.anchor for item in scheduled]
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
            block_size=self.plan.block_size,
            device=self.model.device,
            batch_invariant=self.batch_invariant,
            anchors=anchors,
            num_certain=num_certain,
            only_last=only_last,
        )
        return batch, wanting

    def _prompt_logprobs(
        self, hidden: Tensor, item: ScheduledSequence, batch: ForwardBatch
    ) -> list[TokenLogprob]:
        """Of the prompt tokens that these rows predict, a few rows' logits at a time."""
        sequence = item.sequence
        targets = sequence.prompt_token_ids[item.start + 1 : item.start + item.num_tokens + 1]
        num_top = sequence.sampling.prompt_logprobs or 0
        found: list[TokenLogprob] = []
        for lo in range(0, len(targets), PROMPT_LOGPROB_ROWS):
            part = targets[lo : lo + PROMPT_LOGPROB_ROWS]
            logits = self.model.logits(hidden[lo : lo + len(part)], batch.row_multiple)
            found += token_logprobs(logits, part, num_top)
        return found


def _sample(logits: Tensor, rows: list[Sampled], masks: StepMasks | None) -> list[StepResult]:
    """One result per row of logits, under the grammars' masks if there are any."""
    if masks is None:
        return sample(logits, rows)
    return sample(logits, rows, masks.forbidden(logits.device))


def _is_plain_decode(output: SchedulerOutput) -> bool:
    """Whether every sequence of a step wants a token that the device can draw by itself."""
    return all(item.wants_token and is_plain(item.sequence) for item in output.scheduled)


def _drawn(token: int) -> StepResult:
    return not_finite() if token == NOT_FINITE else StepResult(token_id=token)


def logit_rows(
    items: list[ScheduledSequence], has_drafts: bool
) -> tuple[list[Sampled], list[tuple[int, Sequence, Seq[int]]]]:
    """What each row of logits is of: a sequence, then it with its first draft, first two, ...

    Returns:
        The rows, and for each sequence its first row, itself and its drafts.
    """
    if not has_drafts:
        return (
            [item.sequence for item in items],
            [(i, item.sequence, ()) for i, item in enumerate(items)],
        )
    rows: list[Sampled] = []
    groups: list[tuple[int, Sequence, Seq[int]]] = []
    for item in items:
        groups.append((len(rows), item.sequence, item.draft_tokens))
        rows.append(item.sequence)
        for i in range(len(item.draft_tokens)):
            rows.append(DraftedSequence(item.sequence, [*item.draft_tokens[: i + 1]]))
    return rows, groups


def _wants_prompt_logprobs(item: ScheduledSequence) -> bool:
    sequence = item.sequence
    return (
        sequence.sampling.prompt_logprobs is not None
        and sequence.choice == 0
        and not sequence.output_token_ids
    )
