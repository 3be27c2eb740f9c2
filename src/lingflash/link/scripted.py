"""An engine that replays tokens: for tests of everything above it, and to measure the server alone.

It keeps the laws of `EngineClient` (one finish per choice, abort, bounded queue, deadlines) and can
be told to misbehave: refuse, hang, fail after some tokens, die. It needs no torch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lingflash.core.errors import EngineDeadError, LingflashError, QueueFullError
from lingflash.core.types import (
    CacheReport,
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    TokenEvent,
    TokenLogprob,
)
from lingflash.link.event_stream import EventStream

Script = Callable[[EngineRequest, int], Sequence[int]]


@dataclass(slots=True, kw_only=True)
class Behaviour:
    """What the engine does, apart from the tokens; may be changed while it runs.

    Args:
        delay_s: time of one step; each step gives every running sequence its next tokens.
        is_punctual: steps are due every delay_s by the clock, as those of another process; what is
            overdue is made at once. Else a step's delay begins when the one before has ended.
        tokens_per_event: tokens that a sequence gets in one step.
        reject_with: submit() raises this.
        hang: steps give nothing.
        fail_after_tokens: a sequence ends with `fail_with` after so many tokens.
        fail_with: the error of such a sequence.
        num_cached_tokens: reported for every request.
        cache_report: the same.
        prompt_tokens_per_step: a prompt takes a step for each of so many tokens that are not
            cached, before the step of its first token; None takes all of it in that one.
    """

    delay_s: float = 0.0
    is_punctual: bool = False
    tokens_per_event: int = 1
    reject_with: LingflashError | None = None
    hang: bool = False
    fail_after_tokens: int | None = None
    fail_with: LingflashError = field(default_factory=lambda: LingflashError("scripted failure"))
    num_cached_tokens: int = 0
    cache_report: CacheReport | None = None
    prompt_tokens_per_step: int | None = None


class _Sequence:
    __slots__ = ("choice", "num_generated", "tokens")

    def __init__(self, choice: int, tokens: Sequence[int]) -> None:
        self.choice = choice
        self.tokens = tokens
        self.num_generated = 0


class _Running:
    __slots__ = ("deadline", "num_prompt_done", "request", "sequences", "stream")

    def __init__(
        self, request: EngineRequest, stream: EventStream, sequences: list[_Sequence]
    ) -> None:
        self.request = request
        self.stream = stream
        self.sequences = sequences
        self.num_prompt_done = 0
        self.deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s


class ScriptedEngine:
    """Replays tokens through the EngineClient protocol.

    Args:
        script: token ids per (request, choice), or a mapping from the prompt's tokens to them; the
            empty tuple is the default of a mapping. After the last one the sequence ends with the
            first stop token.
        info: what the engine says of itself.
        behaviour: timing and faults.
    """

    def __init__(
        self,
        script: Script | Mapping[tuple[int, ...], Sequence[int]],
        info: EngineInfo,
        behaviour: Behaviour | None = None,
    ) -> None:
        self._script = script
        self._info = info
        self.behaviour = behaviour or Behaviour()
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.num_resets = 0
        self._dead = asyncio.Event()
        self._running: dict[str, _Running] = {}
        self._waiting: deque[_Running] = deque()
        self._ready = False
        self._work = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._stats = EngineStats()

    @property
    def info(self) -> EngineInfo:
        """What was given."""
        return self._info

    @property
    def stats(self) -> EngineStats:
        """Counts of the moment."""
        slots = self._info.max_num_seqs
        running = sum(len(entry.sequences) for entry in self._running.values())
        return replace(
            self._stats,
            num_running=running,
            num_waiting=len(self._waiting),
            free_blocks=self._info.num_blocks - len(self._running),
            num_blocks=self._info.num_blocks,
            free_state_slots=slots - running,
            num_state_slots=slots,
        )

    @property
    def is_ready(self) -> bool:
        """Whether it was started and has not died."""
        return self._ready

    @property
    def trouble(self) -> str | None:
        return None if self._ready else "It is loading the model."

    async def start(self) -> None:
        """Begin to take requests."""
        self._ready = True
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._run())

    async def submit(self, request: EngineRequest) -> EventStream:
        """Accept a request, or raise what the behaviour says."""
        if self.behaviour.reject_with is not None:
            raise self.behaviour.reject_with
        if not self._ready:
            raise EngineDeadError("The engine is not running.")
        tokens = [self._tokens(request, choice) for choice in range(request.sampling.n)]
        stream = EventStream(request.request_id, request.sampling.n, self.abort)
        sequences = [_Sequence(choice, tokens[choice]) for choice in range(request.sampling.n)]
        entry = _Running(request, stream, sequences)
        if len(self._running) < self._info.max_num_seqs:
            self._running[request.request_id] = entry
        elif len(self._waiting) < self._info.max_num_waiting:
            self._waiting.append(entry)
        else:
            raise QueueFullError(
                f"The queue is full: {self._info.max_num_waiting} requests wait already."
            )
        self.requests.append(request)
        self._work.set()
        return stream

    def abort(self, request_id: str) -> None:
        """End a request at once."""
        entry = self._running.pop(request_id, None)
        if entry is None:
            entry = next((e for e in self._waiting if e.request.request_id == request_id), None)
            if entry is None:
                return
            self._waiting.remove(entry)
        self.aborted.append(request_id)
        for sequence in entry.sequences:
            self._end(entry, sequence, [], "aborted")
        self._admit()

    async def reset_prefix_cache(self) -> tuple[int, int]:
        """Count it; there is nothing to forget."""
        if not self._ready:
            raise EngineDeadError("The engine is not running.")
        self.num_resets += 1
        return 0, 0

    async def stop(self) -> None:
        """Abort everything and end the loop."""
        self._ready = False
        for request_id in [*self._running, *(e.request.request_id for e in self._waiting)]:
            self.abort(request_id)
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
            self._loop_task = None

    def die(self, *, for_good: bool = False) -> None:
        """End everything as if the process were gone.

        Args:
            for_good: no restart will come, so `wait_dead` returns.
        """
        self._ready = False
        error = EngineDeadError("The engine process is gone; running requests cannot be continued.")
        if for_good:
            self._dead.set()
        for entry in [*self._running.values(), *self._waiting]:
            for sequence in entry.sequences:
                self._end(entry, sequence, [], "error", error=error)
        self._running.clear()
        self._waiting.clear()

    async def wait_dead(self) -> EngineDeadError:
        await self._dead.wait()
        return EngineDeadError("The engine is gone and no restarts are left.")

    def drain(self) -> None:
        """Nothing is started again here in any case."""

    def _tokens(self, request: EngineRequest, choice: int) -> Sequence[int]:
        if isinstance(self._script, Mapping):
            prompt = tuple(request.prompt_token_ids)
            return self._script[prompt] if prompt in self._script else self._script[()]
        return self._script(request, choice)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._info.max_num_seqs:
            entry = self._waiting.popleft()
            self._running[entry.request.request_id] = entry
            self._work.set()

    async def _run(self) -> None:
        due = 0.0
        while True:
            if not self._running:
                self._work.clear()
                await self._work.wait()
                due = time.monotonic()
            if not self.behaviour.is_punctual:
                await asyncio.sleep(self.behaviour.delay_s)
                self._step()
                continue
            due += self.behaviour.delay_s
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
            self._step()
            while due + self.behaviour.delay_s <= time.monotonic() and self._running:
                due += self.behaviour.delay_s
                self._step()

    def _step(self) -> None:
        now = time.monotonic()
        for request_id, entry in list(self._running.items()):
            late = entry.deadline is not None and now > entry.deadline
            if not (late or self.behaviour.hang) and self._reads_prompt(entry):
                continue
            for sequence in list(entry.sequences):
                if late:
                    self._end_late(entry, sequence)
                elif not self.behaviour.hang:
                    self._advance(entry, sequence)
            if not entry.sequences:
                self._running.pop(request_id, None)
        self._stats = replace(self._stats, num_steps=self._stats.num_steps + 1)
        self._admit()

    def _reads_prompt(self, entry: _Running) -> bool:
        """Take in the next part of a prompt; False when the step of the first token is next."""
        chunk, request = self.behaviour.prompt_tokens_per_step, entry.request
        done = max(entry.num_prompt_done, self.behaviour.num_cached_tokens)
        if chunk is None or done + chunk >= len(request.prompt_token_ids):
            return False
        entry.num_prompt_done = done + chunk
        if request.wants_progress:
            cached = self.behaviour.num_cached_tokens
            event = TokenEvent(
                request_id=request.request_id,
                num_cached_tokens=cached,
                num_prompt_done=done + chunk,
            )
            entry.stream.put(event)
        return True

    def _end_late(self, entry: _Running, sequence: _Sequence) -> None:
        self._end(
            entry,
            sequence,
            [],
            "error",
            error_code="deadline_exceeded",
            error_message="The request did not finish before its deadline.",
        )

    def _advance(self, entry: _Running, sequence: _Sequence) -> None:
        sampling, behaviour = entry.request.sampling, self.behaviour
        limit = sampling.max_tokens
        room = self._info.max_model_len - len(entry.request.prompt_token_ids)
        limit = room if limit is None else min(limit, room)
        stop_ids = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_ids.update(self._info.stop_token_ids)
        taken: list[int] = []
        for _ in range(behaviour.tokens_per_event):
            if behaviour.fail_after_tokens == sequence.num_generated:
                self._end(entry, sequence, taken, "error", error=behaviour.fail_with)
                return
            if sequence.num_generated >= limit:
                self._end(entry, sequence, taken, "length")
                return
            if sequence.num_generated >= len(sequence.tokens):
                stop = self._info.stop_token_ids[0] if self._info.stop_token_ids else None
                self._end(entry, sequence, taken, "stop", stop_token_id=stop)
                return
            token = sequence.tokens[sequence.num_generated]
            if token in stop_ids and sequence.num_generated >= sampling.min_tokens:
                self._end(entry, sequence, taken, "stop", stop_token_id=token)
                return
            taken.append(token)
            sequence.num_generated += 1
        if sequence.num_generated >= limit:
            self._end(entry, sequence, taken, "length")
        else:
            self._emit(entry, sequence, taken, None)

    def _end(
        self,
        entry: _Running,
        sequence: _Sequence,
        token_ids: list[int],
        reason: FinishReason,
        *,
        stop_token_id: int | None = None,
        error: LingflashError | None = None,
        error_code: str | None = None,
        error_message: str | None = None,
    ) -> None:
        entry.sequences = [other for other in entry.sequences if other is not sequence]
        if error is not None:
            error_code, error_message = error.code, error.message
        self._emit(
            entry,
            sequence,
            token_ids,
            reason,
            stop_token_id=stop_token_id,
            error_code=error_code,
            error_message=error_message,
        )

    def _emit(
        self,
        entry: _Running,
        sequence: _Sequence,
        token_ids: list[int],
        reason: FinishReason | None,
        *,
        stop_token_id: int | None = None,
        error_code: str | None = None,
        error_message: str | None = None,
    ) -> None:
        request = entry.request
        is_first = sequence.num_generated == len(token_ids)
        prompt_logprobs = None
        if is_first and sequence.choice == 0 and request.sampling.prompt_logprobs is not None:
            count = request.sampling.prompt_logprobs
            prompt_logprobs = [None, *_logprobs(request.prompt_token_ids[1:], count)]
        entry.stream.put(
            TokenEvent(
                request_id=request.request_id,
                choice=sequence.choice,
                token_ids=token_ids,
                logprobs=(
                    None
                    if request.sampling.logprobs is None
                    else _logprobs(token_ids, request.sampling.logprobs)
                ),
                finish_reason=reason,
                stop_token_id=stop_token_id,
                error_code=error_code,
                error_message=error_message,
                num_cached_tokens=self.behaviour.num_cached_tokens if is_first else 0,
                cache_report=self.behaviour.cache_report if is_first else None,
                prompt_logprobs=prompt_logprobs,
            )
        )


def _logprobs(token_ids: Sequence[int], count: int) -> list[TokenLogprob]:
    # Made up, but consistent: the token itself first, then its neighbours.
    return [
        TokenLogprob(
            token_id, -0.5, 1, [(abs(token_id - rank), -0.5 - rank) for rank in range(count)]
        )
        for token_id in token_ids
    ]
