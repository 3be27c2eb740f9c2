"""The loaded model and its memory: carries out what a step's memory needs, then runs the step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from lingflash.core.config import EngineConfig
from lingflash.core.hub import resolve_model
from lingflash.engine.memory.cache_memory import CacheMemory
from lingflash.engine.memory.plan import MemoryPlan
from lingflash.engine.memory.planning import plan_memory
from lingflash.engine.memory.tensors import allocate_cache, graph_sizes
from lingflash.engine.run.batch_invariance import check_batch_invariance
from lingflash.engine.run.cuda_graphs import DecodeGraphs
from lingflash.engine.run.prompt_graphs import PromptGraphs
from lingflash.engine.run.ranks import LeadMemory, LeadModel, Ranks, connect
from lingflash.engine.run.speculation import Speculator
from lingflash.engine.run.split_graphs import LeadGraphs
from lingflash.engine.run.ways import Way
from lingflash.engine.run.ways.cpu_decode import CpuDecode
from lingflash.engine.run.ways.drawn_graph import DrawnGraph
from lingflash.engine.run.ways.general_forward import GeneralForward
from lingflash.engine.run.ways.prompt_graph import PromptGraph
from lingflash.engine.run.ways.sampled_graph import SampledGraph
from lingflash.engine.schedule.step import PendingStep, SchedulerOutput
from lingflash.kernels.cpu.allocator import keep_freed_memory
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.cpu_decoder import CpuDecoder
from lingflash.models.cuda_decoder import CudaDecoder
from lingflash.models.cuda_prompt import can_capture_prompts
from lingflash.models.loader import load_model, load_stop_token_ids
from lingflash.parallel.mesh import Mesh
from lingflash.parallel.shard import Shard

log = logging.getLogger(__name__)


class ModelRunner:
    """A loaded model and the memory of its sequences.

    Args:
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
        self.stop_token_ids = stop_token_ids
        self.folder = folder
        if model.device.type == "cpu":
            keep_freed_memory()
        self.cache = allocate_cache(model, plan)
        if ranks is None:
            self.memory = CacheMemory(self.cache, plan.num_host_blocks)
        else:
            self.model, self.memory = LeadModel(model, ranks), LeadMemory(self.cache, ranks)
        # A slot in which a step can leave one sequence's states as they were within its tokens: the
        # GPU's kernels can. The MTP layer would need hidden states from there, too.
        self.save_slot: int | None = None
        if model.device.type == "cuda" and not plan.num_speculative_tokens:
            self.save_slot = plan.num_state_slots
        self.speculator: Speculator | None = None
        if plan.num_speculative_tokens:
            self.speculator = Speculator(model, self.cache, plan.num_blocks)
        self.general = GeneralForward(
            self.model,
            self.cache,
            block_size=plan.block_size,
            batch_invariant=batch_invariant,
            speculator=self.speculator,
        )
        self.ways: list[Way] = [self.general]
        cpu_decoder = None if batch_invariant else CpuDecoder.create(model, self.cache)
        if cpu_decoder is not None:
            self.ways.insert(0, CpuDecode(cpu_decoder, self.general))
        self._ranks = ranks
        self._graphs = graphs = self._decode_graphs(model)
        if graphs is not None:
            self.ways[:0] = DrawnGraph(graphs), SampledGraph(graphs, model.config.vocab_size)
            if ranks is None and can_capture_prompts(model):
                prompt_graphs = PromptGraphs(model, self.cache)
                prompt_graphs.capture_all(graphs.pool)
                self.ways.insert(-1, PromptGraph(prompt_graphs, self.general))
        # Whether some steps run behind the host, so that it pays to schedule ahead of them.
        self.can_overlap = graphs is not None
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
        make = DecodeGraphs if self._ranks is None else partial(LeadGraphs, self._ranks)
        graphs = make(
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
            rows = graph_sizes(plan.num_state_slots)[-1]
            connect(mesh, ranks, device, rows * model.config.hidden_size)
        return cls(
            model,
            plan,
            batch_invariant=config.batch_invariant,
            stop_token_ids=load_stop_token_ids(folder, model.config),
            folder=folder,
            ranks=ranks,
        )

    def launch(self, output: SchedulerOutput) -> PendingStep:
        """Begin to compute one step; one that cannot run behind the host is computed here.

        Two may be under way. Both, and all that is done to the memory for them, run in the order
        of their launches: on the GPU in that of one stream.
        """
        if self._ranks is None:
            return self._launch(output)
        return self._ranks.guard(partial(self._launch, output))

    def _launch(self, output: SchedulerOutput) -> PendingStep:
        self.memory.run(output.memory_ops)
        output.memory_ops = []  # done, whatever becomes of the rest
        return self.way_of(output).launch(output)

    def is_sound(self) -> bool:
        """Whether the device still computes after a step that failed, and knows what it must."""
        if self._graphs is not None:
            self._graphs.forget_tables()
        try:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)
            return torch.ones(2, device=self.model.device).sum().item() == 2.0
        except Exception as error:
            log.error("the device computes no more: %s", error)
            return False

    def hang_up(self) -> None:
        """End the other ranks, if there are any; this process has to end, too."""
        if self._ranks is not None:
            self._ranks.hang_up()

    def way_of(self, output: SchedulerOutput) -> Way:
        """How a step runs: the first of `ways` that can run it."""
        return next(way for way in self.ways if way.can_run(output))
