"""A runner whose decode steps run behind the host, as on a GPU, but with the model on the CPU."""

from __future__ import annotations

import copy
import random
from collections import deque
from dataclasses import dataclass, replace

from lingflash.engine.run.model_runner import ModelRunner
from lingflash.engine.run.ways.drawn_graph import draws_all
from lingflash.engine.schedule.step import PendingStep, SchedulerOutput, StepResult


@dataclass(eq=False)
class _Work:
    output: SchedulerOutput
    results: list[StepResult] | None = None
    error: Exception | None = None


class DeferredRunner(ModelRunner):
    """Launched steps wait in a queue, the device's stream, and are computed at random times.

    As on the GPU all of a step but its tokens is fixed when it is launched: it sees nothing of what
    the host decides later. A token that was not known then is the last one drawn in that slot.
    """

    # Set by a test: called with each step just before it is computed, and may raise.
    before_step = staticmethod(lambda output: None)

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.can_overlap = True
        self.random = random.Random(0)
        self.num_ahead = 0  # steps that were launched while another was under way
        self._stream: deque[_Work] = deque()
        self._last_tokens: dict[int, int] = {}
        self._num_unread = 0

    def launch(self, output: SchedulerOutput) -> PendingStep:
        is_decode = all(item.num_tokens == 1 for item in output.scheduled)
        if not is_decode or output.has_drafts or not draws_all(output):
            self._run_until(None)
            return super().launch(output)
        items = []
        for item in output.scheduled:
            sequence = copy.copy(item.sequence)
            sequence.output_token_ids = list(sequence.output_token_ids)
            sequence.lease = copy.copy(sequence.lease)
            sequence.lease.blocks = list(sequence.lease.blocks)
            items.append(replace(item, sequence=sequence))
        work = _Work(replace(output, scheduled=items))
        output.memory_ops = []  # they are on their way
        self.num_ahead += self._num_unread > 0
        self._num_unread += 1
        self._stream.append(work)
        if self.random.random() < 0.5:  # the device is fast: the host asks after it is done
            self._run_until(work)
        return PendingStep(lambda: self._results(work), is_under_way=True)

    def _results(self, work: _Work) -> list[StepResult]:
        self._num_unread -= 1
        self._run_until(work)
        if work.error is not None:
            raise work.error
        assert work.results is not None
        return work.results

    def _run_until(self, last: _Work | None) -> None:
        """Compute what was launched, in order, up to a step or all of it."""
        while self._stream and (last is None or last in self._stream):
            work = self._stream.popleft()
            try:
                self._run_work(work)
            except RuntimeError as error:
                work.error = error

    def _run_work(self, work: _Work) -> None:
        self.memory.run(work.output.memory_ops)
        self.before_step(work.output)
        for item in work.output.scheduled:
            sequence = item.sequence
            if sequence.num_tokens == item.start:
                sequence.output_token_ids.append(self._last_tokens[sequence.lease.state_slot])
            assert sequence.num_tokens == item.start + 1
        work.results = self.way_of(work.output).launch(work.output).results()
        for item, result in zip(work.output.scheduled, work.results, strict=True):
            self._last_tokens[item.sequence.lease.state_slot] = result.token_id or 0
