"""One API call's way through the engine: submit, read events, count, and always clean up.

A call has one or more prompts (completions) and n choices of each; choice `index` is
`prompt * n + choice`. Each prompt is one engine request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.types import Receive

from lingflash.api.state import ServerState
from lingflash.core.errors import LingflashError
from lingflash.core.log import log_event
from lingflash.core.types import (
    CacheReport,
    EngineRequest,
    GrammarSpec,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from lingflash.httpd.error_map import error_from_event
from lingflash.link.event_stream import EventStream
from lingflash.text.output import OutputDelta, SequenceOutput

logger = logging.getLogger("lingflash.api")
T = TypeVar("T")

Deltas = list[tuple[int, OutputDelta]]


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class Generation:
    """The sequences of one API call.

    Args:
        state: of the server.
        request_id: for log lines.
        prompts: token ids of each prompt.
        sampling: for all of them.
        cache_salt: from `auth.cache_salt`; prefixes are shared within it only.
        return_cache_report: say in the usage why no more was found in the cache.
        timeout_s: deadline of each, from its acceptance.
        grammar: what each answer must look like.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(
        self,
        state: ServerState,
        request_id: str,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        *,
        cache_salt: str,
        return_cache_report: bool = False,
        timeout_s: float | None = None,
        grammar: GrammarSpec | None = None,
        skip_special_tokens: bool = True,
    ) -> None:
        self._state = state
        self._cache_salt = cache_salt
        self._return_cache_report = return_cache_report
        self._request_id = request_id
        self.sampling = sampling
        self._timeout_s = timeout_s
        self._grammar = grammar
        self._streams: list[EventStream] = []
        self._engine_ids: list[str] = []
        self._pumps: list[asyncio.Task[None]] = []
        tokenizer = state.text.tokenizer if state.text is not None else None
        self.prompts = prompts
        self.outputs = [
            SequenceOutput(tokenizer, sampling, skip_special_tokens=skip_special_tokens)
            for _ in range(len(prompts) * sampling.n)
        ]
        self.prompt_logprobs: list[list[TokenLogprob | None] | None] = [None] * len(prompts)
        self._num_cached = [0] * len(prompts)
        self._drafts = [0, 0]  # accepted, rejected
        self._cache_reports: list[CacheReport | None] = [None] * len(prompts)
        self._open = len(self.outputs)
        self._started = self._last_event = time.perf_counter()
        self._first_token_s: float | None = None
        self._is_closed = False

    @property
    def num_choices(self) -> int:
        """Sequences in all."""
        return len(self.outputs)

    async def start(self) -> None:
        """Hand every prompt to the engine; all are accepted, or none stays.

        Raises:
            LingflashError: the server is not ready or the engine refused one.
        """
        self._state.require_ready()
        # A fresh id: the client's may repeat one that is still running.
        base = secrets.token_hex(12)
        self._started = self._last_event = time.perf_counter()
        try:
            for i, prompt in enumerate(self.prompts):
                engine_id = f"{base}-{i}"
                request = EngineRequest(
                    request_id=engine_id,
                    prompt_token_ids=prompt,
                    sampling=self.sampling,
                    timeout_s=self._timeout_s,
                    cache_salt=self._cache_salt,
                    grammar=self._grammar,
                )
                self._streams.append(await self._state.engine.submit(request))
                self._engine_ids.append(engine_id)
                self._state.in_flight.add(engine_id)
        except BaseException as error:
            await self.close(error)
            raise
        self._state.metrics.prompt_tokens.inc(sum(map(len, self.prompts)))

    async def deltas(self) -> AsyncIterator[Deltas]:
        """Yield what the choices gain, several at a time if several are ready.

        Raises:
            LingflashError: the engine failed one of them; the others are aborted by close().
        """
        if len(self._streams) == 1:
            stream = self._streams[0]
            async for event in stream:
                batch: Deltas = []
                self._take(0, event, batch)
                for ready in stream.take_ready():
                    self._take(0, ready, batch)
                if batch:
                    yield batch
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
            if batch:
                yield batch

    def _take(self, prompt: int, event: TokenEvent, batch: Deltas) -> None:
        index = prompt * self.sampling.n + event.choice
        output = self.outputs[index]
        if output.finish_reason is not None:
            return  # it ran on past a stop string
        if event.finish_reason in ("error", "aborted"):
            raise error_from_event(event)
        if event.choice == 0 and event.num_cached_tokens:
            self._num_cached[prompt] = event.num_cached_tokens
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

    def usage(self) -> dict[str, Any]:
        """Token counts so far, in OpenAI's form."""
        prompt = sum(map(len, self.prompts))
        completion = sum(output.num_generated_tokens for output in self.outputs)
        counts: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached)},
        }
        if self._state.engine.info.num_speculative_tokens:
            counts["completion_tokens_details"] = {
                "accepted_prediction_tokens": self._drafts[0],
                "rejected_prediction_tokens": self._drafts[1],
            }
        if self._return_cache_report:
            counts["cache_report"] = [
                {"cached_tokens": num_cached, "result": report.result, "position": report.position}
                for num_cached, report in zip(self._num_cached, self._cache_reports, strict=True)
                if report is not None
            ]
        return counts

    async def close(self, error: BaseException | None = None) -> None:
        """Release everything, abort what runs, log and count the end; may be called twice.

        Args:
            error: why it ended, if not by itself.
        """
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
        self._state.in_flight.difference_update(engine_ids)
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
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        metrics.cached_prompt_tokens.inc(cached)
        log_event(
            logger,
            "request_finished",
            {
                "request_id": self._request_id,
                "prompt_tokens": usage["prompt_tokens"],
                "cached_tokens": cached,
                "completion_tokens": usage["completion_tokens"],
                "finish": code or ",".join(str(o.finish_reason) for o in self.outputs[:8]),
                "ttft_s": self._first_token_s,
                "e2e_s": duration_s,
            },
        )


async def until_client_gone(
    work: Coroutine[Any, Any, T],
    receive: Receive,
    *,
    is_stalled: Callable[[], bool] | None = None,
    check_every_s: float | None = None,
) -> T:
    """Run something, but stop it as soon as the client closes the connection.

    Args:
        work: is cancelled if the client goes first.
        receive: the connection's ASGI channel, its body already read.
        is_stalled: asked now and then; True counts as gone.
        check_every_s: how often to ask.

    Raises:
        ClientGone: the client was first.
    """

    async def wait_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(wait_gone())
    try:
        while not task.done():
            await asyncio.wait(
                (task, gone), timeout=check_every_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not task.done() and (gone.done() or (is_stalled is not None and is_stalled())):
                raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
