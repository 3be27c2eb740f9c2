"""What follows a step that raised: its sequences run again, and the guilty one ends alone.

    step of a b c d fails
      a b     succeeds, as if it had been a step of its own
      c d     fails
        c     fails alone: ended with an error
        d     succeeds

Only what is idempotent is repeated so: latents and tails are written again in the same places. A
sequence whose states the step may have folded is computed anew instead (Scheduler.take_back).
"""

from __future__ import annotations

import contextlib
import logging

from lingflash.core.errors import EngineDeadError, EngineError
from lingflash.core.panics import is_panic
from lingflash.core.types import TokenEvent
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.engine.schedule.scheduler import Scheduler
from lingflash.engine.schedule.step import PendingStep, SchedulerOutput

log = logging.getLogger(__name__)

# Sequences that failed alone, one after the other, before the engine itself is doubted.
_MAX_IN_A_ROW = 3


class Recovery:
    """Runs a failed step's sequences again.

    Args:
        runner: the loaded model.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._num_in_a_row = 0

    def succeeded(self) -> None:
        """A step was made."""
        self._num_in_a_row = 0

    def recover(
        self,
        scheduler: Scheduler,
        output: SchedulerOutput,
        ahead: tuple[SchedulerOutput, PendingStep | None] | None,
        error: BaseException,
    ) -> list[TokenEvent]:
        """Run a step again that has failed; the device must be done with it.

        Args:
            scheduler: that chose it.
            output: the step.
            ahead: one that was launched behind it, or was to be.
            error: why it failed.

        Raises:
            EngineError: the device is in doubt, a rank is gone, or nothing succeeds any more.
        """
        log.error("step failed with %d sequences", len(output.scheduled), exc_info=error)
        if ahead is not None:
            if ahead[1] is not None:
                with contextlib.suppress(Exception):
                    ahead[1].results()  # the device must be done with it
            self._require_sound(error)
            scheduler.take_back(ahead[0])
        else:
            self._require_sound(error)
        events = self._again(scheduler, output, error)
        if self._num_in_a_row >= _MAX_IN_A_ROW:
            self._probe(scheduler, error)
        return events

    def _again(
        self, scheduler: Scheduler, output: SchedulerOutput, error: BaseException
    ) -> list[TokenEvent]:
        """Run the sequences of a failed step again, in halves."""
        if len(output.scheduled) == 1:
            self._num_in_a_row += 1
            request_id = output.scheduled[0].sequence.request_id
            log.error("request %s made the step fail and is ended: %s", request_id, error)
            failure = EngineError(f"The step failed: {type(error).__name__}. See the server's log.")
            return scheduler.step_failed(output, failure)
        items = scheduler.take_back(output)
        middle = (len(items) + 1) // 2
        events: list[TokenEvent] = []
        for half in filter(None, (items[:middle], items[middle:])):
            part = scheduler.again(half, output.num_draft_tokens)
            try:
                results = self._runner.launch(part).results()
            except BaseException as again:
                if not isinstance(again, Exception) and not is_panic(again):
                    raise
                self._require_sound(again)
                events += self._again(scheduler, part, again)
            else:
                self.succeeded()
                events += scheduler.commit(part, results)
        return events

    def _require_sound(self, error: BaseException) -> None:
        """Only a device that still computes can be given the same work again."""
        if isinstance(error, EngineDeadError) or not self._runner.is_sound():
            raise EngineError(f"the device is in doubt after: {error}") from error

    def _probe(self, scheduler: Scheduler, error: BaseException) -> None:
        """Make a step of one plain token that no client asked for: is it the requests, or we?"""
        output = scheduler.schedule_probe()
        if not output.scheduled:
            return  # no memory is free: the next failure asks again
        try:
            results = self._runner.launch(output).results()
        except Exception:
            raise EngineError(
                f"{self._num_in_a_row} steps failed in a row, and so does one of our own; the "
                f"last: {error}"
            ) from error
        scheduler.commit(output, results)
        self.succeeded()
