"""A step of up to 2,048 tokens, prompts among them, whose layers are graphs."""

from __future__ import annotations

from torch import Tensor

from lingflash.engine.run.prompt_graphs import PromptGraphs
from lingflash.engine.run.step_sampling import wants_prompt_logprobs
from lingflash.engine.run.ways.general_forward import GeneralForward
from lingflash.engine.schedule.step import PendingStep, SchedulerOutput
from lingflash.models.forward_batch import ForwardBatch


class PromptGraph:
    """See Way. All but the model's layers is the general way's."""

    def __init__(self, graphs: PromptGraphs, general: GeneralForward) -> None:
        self._graphs, self._general = graphs, general

    def can_run(self, output: SchedulerOutput) -> bool:
        # All rows' hidden states are wanted then, and the last layer gives some.
        if any(map(wants_prompt_logprobs, output.scheduled)):
            return False
        return self._graphs.can_run(output)

    def launch(self, output: SchedulerOutput) -> PendingStep:
        return self._general.launch_by(self, output)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Hidden states of batch.final's rows."""
        return self._graphs.forward(batch)

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        """Of these rows, float32 [R, V]."""
        return self._general.logits(hidden, batch)
