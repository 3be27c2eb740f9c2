"""The engine's inner cycle: take requests in, run one step, hand events out; never wait."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, replace

from lingflash.cache.manager import CacheManager
from lingflash.core.config import EngineConfig
from lingflash.core.errors import EngineDeadError
from lingflash.core.panics import is_panic
from lingflash.core.types import EngineInfo, EngineRequest, EngineStats, TokenEvent
from lingflash.engine.recovery import Recovery
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.engine.schedule.scheduler import Scheduler
from lingflash.engine.schedule.speculation_gain import SpeculationGain
from lingflash.engine.schedule.step import PendingStep, SchedulerOutput
from lingflash.engine.vocabulary import load_vocabulary
from lingflash.structured.grammar import GrammarCompiler
from lingflash.structured.masks import TokenMatcher

log = logging.getLogger(__name__)

_MASK_POLL_S = 0.001


class EngineLoop:
    """Scheduler and model runner together."""

    def __init__(self, config: EngineConfig, runner: ModelRunner) -> None:
        plan = runner.plan
        self.runner = runner
        self.config = config
        self.scheduler = self._new_scheduler(plan.checkpoint_blocks)
        # None never speculates; is_adaptive=False always does.
        self.speculation: SpeculationGain | None = None
        if plan.num_speculative_tokens:
            self.speculation = SpeculationGain(plan.num_speculative_tokens)
        self.info = EngineInfo(
            model=config.model,
            max_model_len=plan.max_model_len,
            vocab_size=runner.model.config.vocab_size,
            stop_token_ids=runner.stop_token_ids,
            max_num_seqs=config.max_num_seqs,
            max_num_waiting=config.max_num_waiting,
            num_blocks=plan.num_blocks,
            block_size=plan.block_size,
            device=str(runner.model.device),
            dtype=str(runner.model.dtype).removeprefix("torch."),
            batch_invariant=config.batch_invariant,
            num_speculative_tokens=plan.num_speculative_tokens,
            memory_plan=plan.as_dict(),
            prefix_cache="untested" if plan.checkpoint_blocks else "off",
        )
        self.grammars = GrammarCompiler(
            lambda: load_vocabulary(
                runner.folder, runner.model.config.vocab_size, runner.stop_token_ids
            )
        )
        # Whether the next step is launched while one runs; to be changed only without work.
        self.overlaps = runner.can_overlap
        self._in_flight: _Step | None = None  # launched ahead, while no call of step() runs
        self._next_seed = config.seed
        self.recovery = Recovery(runner)

    def _new_scheduler(self, checkpoint_blocks: int) -> Scheduler:
        config, plan, model = self.config, self.runner.plan, self.runner.model
        cache = CacheManager(
            plan.num_blocks,
            plan.block_size,
            plan.num_state_slots,
            checkpoint_blocks,
            plan.num_host_blocks,
            end_blocks=plan.end_blocks,
            block_bytes=plan.block_bytes,
            slot_bytes=plan.state_bytes_per_seq,
        )
        return Scheduler(
            cache,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_shared_tokens=config.shared_tokens_on(model.device.type),
            max_num_waiting=config.max_num_waiting,
            max_model_len=plan.max_model_len,
            vocab_size=model.config.vocab_size,
            stop_token_ids=self.runner.stop_token_ids,
            save_slot=self.runner.save_slot,
        )

    def start_afresh(self, prefix_cache: str) -> None:
        """Forget and count nothing of what was done so far; the engine is idle.

        Args:
            prefix_cache: what is now known of it, see EngineInfo; if it failed, it is switched off.
        """
        self.runner.memory.drain()  # of copies that the next scheduler knows nothing of
        self.recovery.succeeded()
        self.info = replace(self.info, prefix_cache=prefix_cache)
        is_usable = not prefix_cache.startswith("failed")
        self.scheduler = self._new_scheduler(self.runner.plan.checkpoint_blocks * is_usable)

    def reset_prefix_cache(self) -> tuple[int, int]:
        """Forget every prefix; blocks and state checkpoints that were forgotten."""
        return self.scheduler.prefixes.reset()

    @property
    def has_work(self) -> bool:
        """Whether step() would do anything."""
        return self.scheduler.has_work or self._in_flight is not None

    def stats(self) -> EngineStats:
        """Gauges and counters as of now."""
        is_live = self.info.prefix_cache == "live"
        return replace(self.scheduler.stats(), prefix_cache_live=is_live)

    def add(self, request: EngineRequest, matcher: TokenMatcher | None = None) -> None:
        """Queue a request; one without a seed gets one, so that preemption repeats its samples.

        Args:
            matcher: of its grammar, if that was compiled elsewhere; else it is compiled here.

        Raises:
            InvalidRequestError: it can never be served.
            QueueFullError: too many wait already.
        """
        if request.grammar is not None and matcher is None:
            self.scheduler.validate(request)
            matcher = self.grammars.compile(request.grammar, request.cache_salt)
        if request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=self._new_seed()))
        self.scheduler.add(request, time.monotonic(), matcher)

    def _new_seed(self) -> int:
        if self._next_seed is None:
            return secrets.randbits(63)
        self._next_seed += 1
        return self._next_seed - 1

    def abort(self, request_id: str) -> list[TokenEvent]:
        """End a request; its events say "aborted"."""
        return self.scheduler.abort(request_id)

    def step(self) -> list[TokenEvent]:
        """Run one step; returns what happened to each sequence in it.

        Where steps overlap, the one after it is launched first, so that the device has work while
        its tokens are read and committed here, events are sent and requests are taken in. Nothing
        else differs: what a token is does not depend on when it was launched.

        The sequences of a step that fails are run again, and the guilty one ends with an error.

        Raises:
            EngineError: the device is in doubt, or a rank is gone; it is of no more use.
        """
        start_s = time.monotonic()
        for copy, succeeded in self.runner.memory.poll():
            self.scheduler.cache.host_copied(copy, succeeded=succeeded)
        events = self.scheduler.expire(start_s)
        step, self._in_flight = self._in_flight, None
        if step is not None and step.pending is None:  # it could not be launched ahead
            self.scheduler.take_back(step.output)
            step = None
        if step is None:
            if self.speculation is not None:
                self.scheduler.num_draft_tokens = self.speculation.num_draft_tokens(
                    self.scheduler.num_running
                )
            step = _Step(self.scheduler.schedule())
            if not step.output.scheduled:
                if self.scheduler.has_work:  # but all of it waits for masks
                    time.sleep(_MASK_POLL_S)
                return events
        try:
            if step.pending is None:
                step.pending = self.runner.launch(step.output)
            if self.overlaps and step.pending.is_under_way:
                self._launch_ahead(step.output)
            results = step.pending.results()
        except BaseException as error:  # whatever it is, it must not take other requests along
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            ahead, self._in_flight = self._in_flight, None
            behind = None if ahead is None else (ahead.output, ahead.pending)
            return events + self.recovery.recover(self.scheduler, step.output, behind, error)
        self.recovery.succeeded()
        committed = self.scheduler.commit(step.output, results)
        if self.speculation is not None:
            self._measure(step.output, committed, time.monotonic() - start_s)
        return events + committed

    def _launch_ahead(self, output: SchedulerOutput) -> None:
        """Launch the step after one that is under way, if it can be known already."""
        ahead = self.scheduler.schedule_ahead(output)
        if ahead is None:
            return
        self._in_flight = _Step(ahead)
        try:
            self._in_flight.pending = self.runner.launch(ahead)
        except EngineDeadError:
            raise
        except Exception as error:  # the step under way must not suffer from it
            log.error("a step could not be launched behind another: %s", error)

    def _measure(self, output: SchedulerOutput, events: list[TokenEvent], seconds: float) -> None:
        """Tell the gain's judge about a step in which all sequences decode."""
        assert self.speculation is not None
        if all(item.num_certain == 1 for item in output.scheduled):
            num_tokens = sum(len(event.token_ids) for event in events)
            self.speculation.observe(len(output.scheduled), num_tokens, seconds)


@dataclass(slots=True)
class _Step:
    """A step's work and, once it is launched, what will come of it."""

    output: SchedulerOutput
    pending: PendingStep | None = None
