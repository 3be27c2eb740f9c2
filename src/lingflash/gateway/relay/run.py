"""One request from its plan to its row: admitted, tried, answered, settled exactly once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from lingflash.core.errors import CapacityError, LingflashError, UpstreamTimeoutError
from lingflash.core.types import Usage
from lingflash.gateway.accounting import (
    Admission,
    Attempt,
    Caller,
    Cost,
    End,
    Outcome,
    Start,
    UsageSource,
)
from lingflash.gateway.relay.additions import Additions, metadata_of
from lingflash.gateway.relay.answers import read_answer
from lingflash.gateway.relay.attempt import MAX_BODY_BYTES, linger, open_attempt, read_body
from lingflash.gateway.relay.bill import Bill, money
from lingflash.gateway.relay.client import Client
from lingflash.gateway.relay.failures import (
    AttemptFailed,
    BrokeOff,
    Quoter,
    broken,
    broken_error,
    empty,
    error_event,
)
from lingflash.gateway.relay.frames import STREAM_HEADERS, Frames, frames_of
from lingflash.gateway.relay.last_words import last_words
from lingflash.gateway.relay.planning import PlannedCall
from lingflash.gateway.relay.report import report
from lingflash.gateway.relay.usage import read_usage
from lingflash.gateway.routing.plan import Candidate
from lingflash.gateway.routing.replicas import Sent
from lingflash.gateway.state import GatewayState
from lingflash.httpd.error_map import http_error
from lingflash.link.http_client import Answer, BadAnswer

_PROGRESS_EVERY_S = 0.25


class Run:
    """The state of one call, and what is done with it.

    Args:
        key: the caller's, which is never quoted.
        client: who gets the answer.
    """

    def __init__(self, state: GatewayState, planned: PlannedCall, key: str, client: Client) -> None:
        self._state = state
        self._client = client
        self._config = state.config
        self._call = planned.call
        self._plan = planned.plan
        self._plan_for = planned.plan_for
        self._bill = Bill(self._config.requests, datetime.now(UTC).date())
        self._quote = Quoter([key, *planned.secrets])
        self._started_s = time.monotonic()
        self._deadline_s = self._started_s + self._config.deadlines.total_s
        self._attempts: list[Attempt] = []
        self._candidate: Candidate | None = None  # of the attempt under way, or the last
        self._sent: Sent | None = None  # the same, where it is at a replica
        self._admission: Admission | None = None
        # Of the answer.
        self._frames: Frames | None = None
        self._usage: Usage | None = None
        self._counted = 0
        self._finish_reason: str | None = None
        self._answer_id: str | None = None
        self._first_content_s: float | None = None
        self._is_begun = False  # the client has had the first content
        self._noted_s = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._is_aborted = False
        self._is_settled = False

    async def keep_alive(self) -> None:
        """Show a client that waits for a stream that it lives."""
        if self._call.is_streamed and self._admission is not None:
            await self._client.keep_alive({**STREAM_HEADERS, **self.headers()})

    def abort(self) -> None:
        """End the call: the gateway has to."""
        self._is_aborted = True
        if self._task is not None:
            self._task.cancel()

    def headers(self) -> dict[str, str]:
        """What every answer carries, errors included."""
        rule = self._plan.rule
        if len(self._attempts) > 0:
            rule += f"; attempt {len(self._attempts) + (1 if self._is_begun else 0)}"
        found = {"x-lingflash-route": rule, "x-generation-id": self._call.id}
        if self._is_begun and self._candidate is not None:
            name = self._candidate.endpoint.provider
            found["x-lingflash-provider"] = name.encode("ascii", "replace").decode()
        if self._admission is not None:
            found |= self._admission.limit_headers
        return found

    async def serve(self) -> None:
        """Admit, try, answer, settle.

        Raises:
            LingflashError: no answer has begun, and none will.
        """
        self._task = asyncio.current_task()
        admission = self._admission = await self._admit()
        outcome: Outcome = "failed"
        failure: LingflashError | None = None
        try:
            if admission.session.has_bearing:
                self._plan = self._plan_for(admission.session)
            await self._try_all()
            return
        except BrokeOff as broke:
            failure = broke.error
        except LingflashError as error:
            failure = error
            await self._tell(failure)
        except asyncio.CancelledError:
            if not self._is_aborted or self._task is None:
                outcome = "cancelled"
                raise
            self._task.uncancel()
            failure = CapacityError("The gateway is shutting down; try again.")
            await self._tell(failure)
        except Exception:  # a bug of ours: the middleware answers it, the row says failed
            failure = LingflashError("The gateway failed on this request.")
            raise
        finally:
            await self._settle(admission, outcome, failure)
        await self._client.send(b"", more=False)

    # Admission

    def _caller(self) -> Caller:
        """Who asks; the models that a key is for may have been written as aliases."""
        caller = self._call.caller
        if caller.allowed_models is None:
            return caller
        names = [self._config.catalog.own_name(each) for each in caller.allowed_models]
        return replace(caller, allowed_models=names)

    async def _admit(self) -> Admission:
        call, plan = self._call, self._plan
        most = self._bill.reserve(call, plan)
        start = Start(
            id=call.id,
            request_id=call.request_id,
            caller=self._caller(),
            dialect=call.dialect,
            model=plan.wanted[0].name,
            is_streamed=call.is_streamed,
            session_id=call.session_id,
            reserve_pico=most.own_pico,
            byok_reserve_pico=most.byok_pico,
            prompt_tokens=most.prompt_tokens,
            completion_tokens=most.completion_tokens,
            fallbacks=[each.name for each in plan.wanted[1:]],
            # A paid model beside a free one must not lift the limits of the free one.
            is_free=any(each.is_free for each in plan.wanted),
            is_byok=plan.is_byok_only,
            parts=call.parts,
        )
        try:
            return await self._state.accounts.admit(start)
        except asyncio.CancelledError:
            # The client left meanwhile: the accounts give back what was reserved.
            report(self._state, call, start, self._end("cancelled", None))
            raise

    # Attempts

    async def _try_all(self) -> None:
        last: AttemptFailed | None = None
        breakers = self._state.breakers
        for candidate in self._plan.candidates:
            if time.monotonic() >= self._deadline_s:
                break
            name = self._state.breaker_of(candidate)
            if not breakers.begin(name, time.monotonic()):
                continue
            self._candidate = candidate
            sent = self._sent = self._state.replicas.send(candidate)
            started_s = time.monotonic()
            try:
                await self._try(candidate)
            except AttemptFailed as failed:
                last = failed
                breakers.take(failed.verdict, name, time.monotonic(), failed.retry_after_s)
                if sent is not None:
                    sent.fail(time.monotonic())
                self._note_attempt(candidate, started_s, failed.status, failed.error)
                if failed.is_final:
                    break
            except BrokeOff as broke:
                breakers.fail(name, time.monotonic())
                self._note_attempt(candidate, started_s, 200, broke.error)
                raise
            except asyncio.CancelledError:
                breakers.drop(name)
                self._note_attempt(candidate, started_s, 0, "cancelled")
                raise
            except BaseException:
                breakers.drop(name)
                raise
            else:
                breakers.succeed(name)
                return
            finally:
                if sent is not None:
                    sent.end(time.monotonic(), self._usage)
        if last is not None:
            raise last.error
        raise self._nobody()

    def _nobody(self) -> LingflashError:
        if time.monotonic() >= self._deadline_s:
            return UpstreamTimeoutError("The request took longer than it may in all.")
        return CapacityError(
            f"No provider takes requests for {self._plan.wanted[0].name} now; try again."
        )

    def _note_attempt(
        self, candidate: Candidate, started_s: float, status: int, error: LingflashError | str = ""
    ) -> None:
        code = error.code if isinstance(error, LingflashError) else error or None
        attempt = self._attempt_of(candidate, started_s, status, code)
        self._attempts.append(attempt)
        self._state.outcomes.note(attempt, str(error), self._call.id)
        provider = candidate.endpoint.provider
        self._state.metrics.attempts.labels(provider, code or "ok").inc()

    def _attempt_of(
        self, candidate: Candidate, started_s: float, status: int, code: str | None
    ) -> Attempt:
        endpoint = candidate.endpoint
        return Attempt(
            provider=endpoint.provider,
            endpoint=endpoint.id,
            model=endpoint.model,
            status=status,
            is_byok=candidate.key.is_brought,
            error=code,
            duration_ms=round((time.monotonic() - started_s) * 1000),
        )

    async def _try(self, candidate: Candidate) -> None:
        call = self._call
        started_s = time.monotonic()
        opening = open_attempt(
            self._state.pool,
            self._config,
            call,
            candidate,
            deadline_s=self._deadline_s,
            quote=self._quote,
        )
        try:
            async with opening as answer:
                if call.is_streamed:
                    await self._stream(candidate, answer, started_s)
                else:
                    await self._relay_whole(candidate, answer, started_s)
        except (OSError, BadAnswer) as error:
            if not self._is_begun:
                raise broken(candidate, error) from None
            failure = broken_error(candidate.endpoint.provider, error)
            await self._send_last_words(failure)
            raise BrokeOff(failure) from None

    async def _relay_whole(self, candidate: Candidate, answer: Answer, started_s: float) -> None:
        call = self._call
        body = await read_body(answer, MAX_BODY_BYTES)
        if not call.is_free_of_charge:
            read = read_answer(call.dialect, body)
            if read.error:
                raise error_event(candidate, read.error, self._quote)
            self._usage, self._counted = read.usage, read.counted
            self._finish_reason, self._answer_id = read.finish_reason, read.answer_id
            self._first_content_s = time.monotonic()
            if call.is_openrouters:
                body = self._additions(candidate).to_body(body, read.data)
            self._state.measurements.add(candidate.endpoint.id, time.monotonic() - started_s, None)
        self._is_begun = True
        headers = self.headers()
        await self._complete(candidate, started_s)
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
        await self._client.begin(headers)
        await self._client.send(body, more=False)

    async def _stream(self, candidate: Candidate, answer: Answer, started_s: float) -> None:
        frames = self._frames = frames_of(self._call.dialect)
        additions = self._additions(candidate)
        waiting: list[bytes] = []
        end: bytes | None = None
        async for events in answer.event_batches():
            for event in events:
                try:
                    kind, data = frames.read(event)
                except BadAnswer:
                    await self._flush(waiting)  # what came before it was in order
                    raise
                if kind == "error":
                    failed = error_event(candidate, frames.error, self._quote)
                    if not frames.has_content:
                        raise failed
                    await self._flush(waiting)
                    await self._send_last_words(failed.error)
                    raise BrokeOff(failed.error)
                if kind == "end":
                    end = event
                    break
                waiting.append(additions.to_event(event, kind, data))
                if not self._is_begun:  # the first content waits for nothing that came with it
                    await self._flush(waiting)
            await self._flush(waiting)
            self._note_progress(candidate, started_s)
            if end is not None:
                break
        if not frames.has_content:
            raise empty(candidate)
        if end is None and not frames.is_finished:
            raise BadAnswer("the stream ended before the answer did")
        await self._complete(candidate, started_s)
        await self._client.send(end or b"", more=False)
        await linger(answer)

    async def _flush(self, waiting: list[bytes]) -> None:
        """Send what waits, once there was content; the first of it begins the answer."""
        assert self._frames is not None
        if not self._frames.has_content:
            return
        if not self._is_begun:
            self._first_content_s = time.monotonic()
            self._is_begun = True
            if self._sent is not None:
                self._sent.first(self._first_content_s)
            await self._client.begin({**STREAM_HEADERS, **self.headers()})
        data = b"".join(waiting)
        waiting.clear()
        if data:
            await self._client.send(data, more=True)

    async def _complete(self, candidate: Candidate, started_s: float) -> None:
        """Settle an answer that is whole, before its client knows that it is."""
        self._take_frames()
        now_s = time.monotonic()
        first_s = self._first_content_s
        if self._call.is_streamed and first_s is not None:
            num_tokens = self._usage_so_far()[0].completion_tokens
            span_s = now_s - first_s
            rate = (num_tokens - 1) / span_s if num_tokens > 1 and span_s > 0 else None
            self._state.measurements.add(candidate.endpoint.id, first_s - started_s, rate)
        self._note_attempt(candidate, started_s, 200)
        assert self._admission is not None
        await self._settle(self._admission, "completed", None)

    def _take_frames(self) -> None:
        frames = self._frames
        if frames is not None:
            self._usage, self._counted = frames.usage, frames.counted
            self._finish_reason, self._answer_id = frames.finish_reason, frames.answer_id

    # What the client gets

    def _additions(self, candidate: Candidate) -> Additions:
        call = self._call

        def of_usage(given: Any) -> Mapping[str, Any]:
            usage = read_usage(call.dialect, given)
            if usage is None:
                return {}
            return money(self._bill.costs(candidate, usage), is_byok=candidate.key.is_brought)

        return Additions(
            dialect=call.dialect,
            provider=candidate.endpoint.provider,
            adds=call.is_openrouters,
            shows_usage=call.shows_usage,
            money=of_usage,
            metadata=(lambda: metadata_of(call, self._plan, candidate, self._attempts))
            if call.wants_metadata
            else None,
        )

    async def _tell(self, error: LingflashError) -> None:
        """End a stream that has begun with an error.

        Raises:
            LingflashError: none has, nor will: the error is to be the answer.
        """
        if await self._client.refuse():
            raise error from None
        await self._send_last_words(error)

    async def _send_last_words(self, error: LingflashError) -> None:
        if not self._call.is_streamed:
            return  # a whole answer is on its way
        # Of an attempt without content the client has seen nothing.
        frames = self._frames if self._frames is not None and self._is_begun else None
        frames = frames or frames_of(self._call.dialect)
        provider = self._candidate.endpoint.provider if self._candidate is not None else ""
        await self._client.send(last_words(self._call, frames, error, provider), more=True)

    # What is paid

    def _usage_so_far(self) -> tuple[Usage, UsageSource]:
        self._take_frames()
        known = self._usage
        if known is not None and (self._finish_reason or known.completion_tokens >= self._counted):
            return known, "upstream"
        prompt = self._call.estimated_prompt_tokens if known is None else known.prompt_tokens
        usage = Usage(
            prompt_tokens=prompt,
            cached_tokens=0 if known is None else known.cached_tokens,
            cache_write_tokens=0 if known is None else known.cache_write_tokens,
            completion_tokens=self._counted,
        )
        return usage, "counted" if self._counted else "estimated"

    def _note_progress(self, candidate: Candidate, started_s: float) -> None:
        now_s = time.monotonic()
        if self._admission is None or now_s - self._noted_s < _PROGRESS_EVERY_S:
            return
        self._noted_s = now_s
        usage, _ = self._usage_so_far()
        own, vendors = self._bill.costs(candidate, usage)
        self._state.accounts.note_progress(
            self._admission,
            usage,
            own,
            attempt=self._attempt_of(candidate, started_s, 200, None),
            upstream_cost=vendors,
        )

    async def _settle(
        self, admission: Admission, outcome: Outcome, failure: LingflashError | None
    ) -> None:
        """Pay and write the row, once."""
        if self._is_settled:
            return
        self._is_settled = True
        end = self._end(outcome, failure)
        report(self._state, self._call, admission.start, end)
        await self._state.accounts.settle(admission, end)

    def _end(self, outcome: Outcome, failure: LingflashError | None) -> End:
        candidate = self._candidate
        # An upstream that was left in the middle has read the prompt, whatever it sent of it.
        was_served = self._is_begun or (outcome == "cancelled" and candidate is not None)
        usage: Usage | None = None
        source: UsageSource = "upstream"
        own = vendors = Cost()
        if was_served and candidate is not None and not self._call.is_free_of_charge:
            usage, source = self._usage_so_far()
            own, vendors = self._bill.costs(candidate, usage)
        endpoint = candidate.endpoint if was_served and candidate is not None else None
        key = candidate.key if candidate is not None and endpoint is not None else None
        replica = candidate.replica if candidate is not None and endpoint is not None else None
        is_stored = self._call.dialect == "responses" and outcome == "completed"
        first_s = self._first_content_s
        status = 200 if self._is_begun else 499 if outcome == "cancelled" else 500
        if failure is not None and not self._is_begun:
            status = http_error(failure).status
        return End(
            outcome=outcome,
            status=status,
            error_code=None if failure is None else failure.code,
            attempts=tuple(self._attempts),
            endpoint=endpoint.id if endpoint else None,
            provider=endpoint.provider if endpoint else None,
            model=endpoint.model if endpoint else None,
            replica=replica,
            usage=usage,
            usage_source=source,
            cost=own,
            upstream_cost=vendors,
            byok_id=None if key is None else key.byok_id,
            response_id=self._answer_id if is_stored else None,
            ttft_ms=None if first_s is None else round((first_s - self._started_s) * 1000),
            duration_ms=round((time.monotonic() - self._started_s) * 1000),
            wire={
                "finish_reason": self._finish_reason,
                "upstream_id": self._answer_id,
                "route": self._plan.rule,
            },
        )
