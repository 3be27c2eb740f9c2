"""A decode step as a graph that draws the tokens, too: the host need not wait for them."""

from __future__ import annotations

from lingflash.engine.run.cuda_graphs import NOT_FINITE, DecodeGraphs
from lingflash.engine.run.sampler import is_plain, not_finite
from lingflash.engine.schedule.step import PendingStep, SchedulerOutput, StepResult


def draws_all(output: SchedulerOutput) -> bool:
    """Whether every sequence of a step wants a token, and one that the device can draw alone."""
    return all(item.wants_token and is_plain(item.sequence) for item in output.scheduled)


class DrawnGraph:
    """See Way; two of its steps may be under way."""

    def __init__(self, graphs: DecodeGraphs) -> None:
        self._graphs = graphs

    def can_run(self, output: SchedulerOutput) -> bool:
        return self._graphs.can_run(output) and draws_all(output)

    def launch(self, output: SchedulerOutput) -> PendingStep:
        wait = self._graphs.launch(output.scheduled)
        return PendingStep(lambda: [_drawn(token) for token in wait()], is_under_way=True)


def _drawn(token: int) -> StepResult:
    return not_finite() if token == NOT_FINITE else StepResult(token_id=token)
