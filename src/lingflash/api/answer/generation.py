"""One API call's way through the engine: submit, read events, count, and always clean up.

A call has one or more prompts (completions) and n choices of each; choice `index` is
`prompt * n + choice`. Each prompt is one engine request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, assert_never

from starlette.types import Receive

from lingflash.api.state import ServerState
from lingflash.core.errors import CapacityError, LingflashError
from lingflash.core.log import log_event
from lingflash.core.types import (
    CacheReport,
    EngineRequest,
    FinishReason,
    GrammarSpec,
    PromptProgress,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from lingflash.httpd.client_gone import until_client_gone
from lingflash.link.event_stream import EventStream
from lingflash.protocol.chat import SamplingFields
from lingflash.text.output import OutputDelta, SequenceOutput

logger = logging.getLogger("lingflash.api")

Deltas = list[tuple[int, OutputDelta]]


def never_written(reason: FinishReason) -> AssertionError:
    """For writers: `Generation.deltas` raises for this reason, so no answer ends with it."""
    return AssertionError(f"an answer ends with {reason!r}")


class Answering(Protocol):
    """What gives the tokens of an answer: one generation, or several with code run between them."""

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are chosen."""
        ...

    def deltas(self) -> AsyncIterator[Deltas]:
        """What the answer gains; see Generation.deltas."""
        ...

    def take_progress(self) -> PromptProgress | None:
        """How far a prompt is computed, if that was asked for and is news."""
        ...

    def usage(self) -> Usage:
        """Token counts so far."""
        ...

    def abort(self) -> None:
        """End it within one step; the reader gets the error of an aborted request."""
        ...

    async def close(self, error: BaseException | None = None) -> None:
        """Release everything, end what runs, log and count the end; may be called twice."""
        ...


class Generation:
    """The sequences of one API call.

    Args:
        body: for what is the same in all endpoints.
        cache_salt: from `prepare.cache_salt`; prefixes are shared within it only. What stands
            before its colon is whose request it is: keys share the engine.
    """

    def __init__(
        self,
        state: ServerState,
        request_id: str,
        body: SamplingFields,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        grammar: GrammarSpec | None,
        cache_salt: str,
    ) -> None:
        self._state = state
        self._request_id = request_id
        self._body = body
        self._sampling = sampling
        self._grammar = grammar
        self._cache_salt = cache_salt
        self._streams: list[EventStream] = []
        self._engine_ids: list[str] = []
        self._pumps: list[asyncio.Task[None]] = []
        tokenizer = state.text.tokenizer if state.text is not None else None
        self.prompts = prompts
        self.outputs = [
            SequenceOutput(
                tokenizer, sampling, skip_special_tokens=body.skip_special_tokens is not False
            )
            for _ in range(len(prompts) * sampling.n)
        ]
        self.prompt_logprobs: list[list[TokenLogprob | None] | None] = [None] * len(prompts)
        self._num_cached = [0] * len(prompts)
        self._drafts = [0, 0]  # accepted, rejected
        self._cache_reports: list[CacheReport | None] = [None] * len(prompts)
        options = body.stream_options
        self._wants_progress = bool(body.stream and options and options.include_progress)
        self._num_done = [0] * len(prompts)
        self._has_progressed = False
        self._open = len(self.outputs)
        self._started = self._last_event = time.perf_counter()
        self._first_token_s: float | None = None
        self._is_closed = False

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are chosen, of every prompt."""
        return self._sampling

    @property
    def num_choices(self) -> int:
        return len(self.outputs)

    async def start(self, receive: Receive) -> None:
        """Hand every prompt to the engine; all are accepted, or none stays.

        Args:
            receive: the connection's ASGI channel, its body already read.

        Raises:
            LingflashError: the server is not ready or the engine refused one.
            ClientGone: the client left before the engine had answered.
        """
        self._state.require_ready()
        self._started = self._last_event = time.perf_counter()
        try:
            await until_client_gone(self._submit(), receive)
        except BaseException as error:
            await self.close(error)
            raise
        self._state.metrics.prompt_tokens.inc(sum(map(len, self.prompts)))

    async def _submit(self) -> None:
        # A fresh id: the client's may repeat one that is still running.
        base = secrets.token_hex(12)
        for i, prompt in enumerate(self.prompts):
            engine_id = f"{base}-{i}"
            request = EngineRequest(
                request_id=engine_id,
                prompt_token_ids=prompt,
                sampling=self._sampling_of(prompt),
                timeout_s=self._body.timeout or self._state.config.request_timeout_s,
                cache_salt=self._cache_salt,
                grammar=self._grammar,
                wants_progress=self._wants_progress,
            )
            self._streams.append(await self._state.engine.submit(request))
            self._engine_ids.append(engine_id)
            self._state.in_flight[engine_id] = partial(self._state.engine.abort, engine_id)

    def _sampling_of(self, prompt: list[int]) -> SamplingParams:
        """A prompt's sampling: max_tokens is an upper bound, so it is at most what is left."""
        sampling = self.sampling
        room = self._state.engine.info.max_model_len - len(prompt)
        if sampling.max_tokens is None or sampling.max_tokens <= room:
            return sampling
        return replace(sampling, max_tokens=room)

    async def deltas(self) -> AsyncIterator[Deltas]:
        """Yield what the choices gain, several at a time if several are ready.

        Nothing at all is yielded, too, where only `take_progress` has something to say.

        Raises:
            LingflashError: the engine failed one of them; the others are aborted by close().
        """
        if len(self._streams) == 1:
            stream = self._streams[0]
            async for event in stream:
                batch: Deltas = []
                failure: LingflashError | None = None
                try:
                    self._take(0, event, batch)
                    for ready in stream.take_ready():
                        self._take(0, ready, batch)
                except LingflashError as error:
                    failure = error  # after what came before it
                if batch or self._has_progressed:
                    yield batch
                if failure is not None:
                    raise failure
                if self._open == 0:
                    return
            return
        queue: asyncio.Queue[tuple[int, TokenEvent]] = asyncio.Queue()

        async def pump(index: int, stream: EventStream) -> None:
            async for event in stream:
                queue.put_nowait((index, event))

        self._pumps = [
            asyncio.create_task(pump(i, stream)) for i, stream in enumerate(self._streams)
        ]
        while self._open:
            batch = []
            self._take(*await queue.get(), batch)
            while not queue.empty():
                self._take(*queue.get_nowait(), batch)
            if batch or self._has_progressed:
                yield batch

    def take_progress(self) -> PromptProgress | None:
        """How far the prompts are computed, if that was asked for and is news."""
        if not self._has_progressed:
            return None
        self._has_progressed = False
        return PromptProgress(
            total=sum(map(len, self.prompts)),
            cached=sum(self._num_cached),
            processed=sum(self._num_done),
            time_ms=round((time.perf_counter() - self._started) * 1000),
        )

    def _progress(self, prompt: int, event: TokenEvent) -> None:
        done = event.num_prompt_done
        if done is None:
            done = len(self.prompts[prompt])  # there is a token, or the end
        if done > self._num_done[prompt]:
            self._num_done[prompt] = done
            self._has_progressed = True

    def _take(self, prompt: int, event: TokenEvent, batch: Deltas) -> None:
        index = prompt * self.sampling.n + event.choice
        output = self.outputs[index]
        if output.finish_reason is not None:
            return  # it ran on past a stop string
        match event.finish_reason:
            case None | "stop" | "length":
                pass
            case "error":
                raise event.error()
            case "aborted":
                raise CapacityError(
                    "The request was aborted because the server is shutting down; try again."
                )
            case _:
                assert_never(event.finish_reason)
        if event.choice == 0 and event.num_cached_tokens:
            self._num_cached[prompt] = event.num_cached_tokens
        if self._wants_progress and event.choice == 0:
            self._progress(prompt, event)
        if event.num_prompt_done is not None:
            return
        if event.drafts is not None:
            self._drafts[0] += event.drafts[0]
            self._drafts[1] += event.drafts[1]
        if event.choice == 0 and event.cache_report is not None:
            self._cache_reports[prompt] = event.cache_report
        if event.prompt_logprobs is not None:
            self.prompt_logprobs[prompt] = event.prompt_logprobs
        self._time(len(event.token_ids))
        delta = output.push(event)
        batch.append((index, delta))
        if delta.finish_reason is not None:
            self._open -= 1
            self._state.metrics.request_success.labels(delta.finish_reason).inc()
            if delta.stopped_by_string:
                self._abort_if_done(prompt)

    def _time(self, num_tokens: int) -> None:
        if num_tokens == 0:
            return
        now = time.perf_counter()
        metrics = self._state.metrics
        if self._first_token_s is None:
            self._first_token_s = now - self._started
            metrics.time_to_first_token_s.observe(self._first_token_s)
        elif self.num_choices == 1:
            metrics.inter_token_latency_s.observe((now - self._last_event) / num_tokens)
        metrics.generation_tokens.inc(num_tokens)
        self._last_event = now

    def _abort_if_done(self, prompt: int) -> None:
        n = self.sampling.n
        mine = self.outputs[prompt * n : (prompt + 1) * n]
        if all(output.finish_reason is not None for output in mine):
            self._state.engine.abort(self._engine_ids[prompt])

    def abort(self) -> None:
        """End what runs within one step; the reader gets the error of an aborted request."""
        for engine_id in self._engine_ids:
            self._state.engine.abort(engine_id)

    def usage(self) -> Usage:
        """Token counts so far."""
        reports = None
        if self._body.return_cache_report:
            both = zip(self._num_cached, self._cache_reports, strict=True)
            reports = tuple((found, report) for found, report in both if report is not None)
        speculates = self._state.engine.info.num_speculative_tokens > 0
        return Usage(
            prompt_tokens=sum(map(len, self.prompts)),
            cached_tokens=sum(self._num_cached),
            completion_tokens=sum(output.num_generated_tokens for output in self.outputs),
            drafts=(self._drafts[0], self._drafts[1]) if speculates else None,
            cache_reports=reports,
        )

    async def close(self, error: BaseException | None = None) -> None:
        """Release everything, abort what runs, log and count the end; may be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        engine_ids, self._engine_ids = self._engine_ids, []
        if self._open:
            for engine_id in engine_ids:
                self._state.engine.abort(engine_id)
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()
        for engine_id in engine_ids:
            self._state.in_flight.pop(engine_id, None)
        self._report(error)

    def _report(self, error: BaseException | None) -> None:
        metrics = self._state.metrics
        duration_s = time.perf_counter() - self._started
        code: str | None = None
        if isinstance(error, LingflashError):
            code = error.code
            metrics.request_errors.labels(code).inc()
        elif self._open:
            code = "client_gone"
            metrics.requests_aborted.inc()
        metrics.e2e_request_latency_s.observe(duration_s)
        usage = self.usage()
        metrics.cached_prompt_tokens.inc(usage.cached_tokens)
        log_event(
            logger,
            "request_finished",
            {
                "request_id": self._request_id,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "finish": code or ",".join(str(o.finish_reason) for o in self.outputs[:8]),
                "ttft_s": self._first_token_s,
                "e2e_s": duration_s,
            },
        )
