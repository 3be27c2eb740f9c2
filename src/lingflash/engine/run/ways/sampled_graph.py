"""A decode step as a graph whose logits are sampled by the host's rules."""

from __future__ import annotations

import torch

from lingflash.engine.run.cuda_graphs import DecodeGraphs
from lingflash.engine.run.step_sampling import StepSampling, wants_prompt_logprobs
from lingflash.engine.schedule.step import PendingStep, SchedulerOutput


class SampledGraph:
    """See Way."""

    def __init__(self, graphs: DecodeGraphs, vocab_size: int) -> None:
        self._graphs, self._vocab_size = graphs, vocab_size

    def can_run(self, output: SchedulerOutput) -> bool:
        return self._graphs.can_run(output) and not any(
            map(wants_prompt_logprobs, output.scheduled)
        )

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput) -> PendingStep:
        """See Way; masks are made while the graph computes."""
        logits = self._graphs.run(output.scheduled)
        with StepSampling(output.scheduled, self._vocab_size) as sampling:
            return PendingStep.done(sampling.results(logits))
