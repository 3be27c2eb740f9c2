"""The engine's inner cycle: take requests in, run one step, hand events out; never wait."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import replace

from lingflash.cache.manager import CacheManager
from lingflash.core.config import EngineConfig
from lingflash.core.errors import EngineDeadError, EngineError
from lingflash.core.types import EngineInfo, EngineRequest, EngineStats, TokenEvent
from lingflash.engine.constrained import load_vocabulary
from lingflash.engine.model_runner import ModelRunner
from lingflash.engine.scheduler import Scheduler
from lingflash.structured.grammar import GrammarCompiler
from lingflash.structured.masks import TokenMatcher

log = logging.getLogger(__name__)

# Steps that fail one after the other before the engine gives up instead of failing every request.
_MAX_FAILED_STEPS = 3


class EngineLoop:
    """Scheduler and model runner together.

    Args:
        config: settings.
        runner: the loaded model.
    """

    def __init__(self, config: EngineConfig, runner: ModelRunner) -> None:
        plan = runner.plan
        self.runner = runner
        self.scheduler = Scheduler(
            CacheManager(
                plan.num_blocks, plan.block_size, plan.num_state_slots, plan.num_checkpoints
            ),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_waiting=config.max_num_waiting,
            max_model_len=plan.max_model_len,
            vocab_size=runner.model.config.vocab_size,
            stop_token_ids=runner.stop_token_ids,
            checkpoint_interval=plan.checkpoint_interval,
        )
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
            memory_plan=plan.as_dict(),
        )
        self.grammars = GrammarCompiler(
            lambda: load_vocabulary(
                runner.folder, runner.model.config.vocab_size, runner.stop_token_ids
            )
        )
        self._next_seed = config.seed
        self._failed_steps = 0

    @property
    def has_work(self) -> bool:
        """Whether step() would do anything."""
        return self.scheduler.has_work

    def stats(self) -> EngineStats:
        """Gauges and counters as of now."""
        return self.scheduler.stats()

    def add(self, request: EngineRequest, matcher: TokenMatcher | None = None) -> None:
        """Queue a request; one without a seed gets one, so that preemption repeats its samples.

        Args:
            request: what to serve.
            matcher: of its grammar, if that was compiled elsewhere; else it is compiled here.

        Raises:
            InvalidRequestError: it can never be served.
            QueueFullError: too many wait already.
        """
        if request.grammar is not None and matcher is None:
            self.scheduler.validate(request)
            matcher = self.grammars.compile(request.grammar)
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

        A step that fails ends the sequences in it with an error and leaves the others alone.

        Raises:
            EngineError: several steps failed in a row, or a rank is gone; it is of no more use.
        """
        events = self.scheduler.expire(time.monotonic())
        output = self.scheduler.schedule()
        if not output.scheduled:
            return events
        try:
            results = self.runner.run(output)
        except Exception as error:  # whatever it is, it must not take other requests along
            self._failed_steps += 1
            log.exception("step failed with %d sequences", len(output.scheduled))
            failure = EngineError(f"The step failed: {type(error).__name__}. See the server's log.")
            events += self.scheduler.step_failed(output, failure)
            if self._failed_steps >= _MAX_FAILED_STEPS or isinstance(error, EngineDeadError):
                raise EngineError(
                    f"{self._failed_steps} steps failed in a row; the last: {error}"
                ) from error
            return events
        self._failed_steps = 0
        return events + self.scheduler.commit(output, results)
