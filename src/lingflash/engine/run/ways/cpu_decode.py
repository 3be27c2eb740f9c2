"""One token of one sequence on the CPU, by calls in C."""

from __future__ import annotations

from torch import Tensor

from lingflash.core.anchors import ANCHOR
from lingflash.engine.run.ways.general_forward import GeneralForward
from lingflash.engine.schedule.step import PendingStep, SchedulerOutput
from lingflash.models.cpu_decoder import CpuDecoder
from lingflash.models.forward_batch import ForwardBatch


class CpuDecode:
    """See Way. All but the model's layers and its head is the general way's."""

    def __init__(self, decoder: CpuDecoder, general: GeneralForward) -> None:
        self._decoder, self._general = decoder, general

    def can_run(self, output: SchedulerOutput) -> bool:
        if len(output.scheduled) != 1:
            return False
        (item,) = output.scheduled
        # Accepted drafts may have made the tail longer than the decoder takes.
        return item.num_tokens == 1 and item.start - self._general.anchor(item) < ANCHOR

    def launch(self, output: SchedulerOutput) -> PendingStep:
        return self._general.launch_by(self, output)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Hidden states [1, D]."""
        assert self._decoder.can_run(batch)
        return self._decoder.forward(batch)

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        """Of the only row, float32 [1, V]."""
        return self._decoder.logits(hidden)
