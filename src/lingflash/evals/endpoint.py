"""The server that is measured: asked until it answers, and everything that went wrong counted."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lingflash.core.errors import AuthenticationError, ConfigError, EngineError, LingflashError
from lingflash.evals.limiter import Limiter
from lingflash.evals.reply import BrokenAnswer, ReplyReader
from lingflash.evals.task import Message, Reply, Tokens
from lingflash.link.http_client import Address, BadAnswer, Deadlines, TooSlow, open_request

_CHAT = "/v1/chat/completions"
_QUICK = Deadlines(connect_s=10, first_byte_s=60, idle_s=60, total_s=120)
_LONGEST_PAUSE_S = 60.0
# So often a server may fail at one request that others of its answers show it can serve.
_MAX_FAILURES = 6
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time of day in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Refused(LingflashError):
    """The server says that it will never answer this request."""

    code = "refused"


class NotAnswered(LingflashError):
    """The server failed at this request too often; another run may ask it again."""

    code = "not_answered"


@dataclass(slots=True)
class Trace:
    """What one item took of the server.

    Args:
        failures: each attempt that gave no answer, in few words.
        is_metered: whether every answer said its tokens.
    """

    tokens: Tokens = field(default_factory=Tokens)
    is_metered: bool = True
    replies: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How all questions are asked: fields of the request, and how long to wait."""

    model: str
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    thinking: bool | None = None
    timeout_s: float = 1800.0
    patience_s: float = 300.0

    def fields(self) -> dict[str, Any]:
        """Of the request; what was not said is left to the server."""
        effort = None if self.thinking is None else "medium" if self.thinking else "none"
        given = {
            "model": self.model,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "reasoning_effort": effort,
        }
        return {name: value for name, value in given.items() if value is not None}


class Endpoint:
    """One server for a whole run.

    Args:
        concurrency: most requests in flight; a 429 lowers it for a while.

    Attributes:
        failures: how often each kind of attempt that gave no answer was seen.
        tokens: of all answers so far.
    """

    def __init__(self, address: Address, asking: Asking, concurrency: int) -> None:
        self.asking = asking
        self.limiter = Limiter(concurrency)
        self.failures: Counter[str] = Counter()
        self.tokens = Tokens()
        self._address = address
        self._last_good = time.monotonic()
        self._deadlines = Deadlines(
            connect_s=10, first_byte_s=asking.timeout_s, idle_s=asking.timeout_s,
            total_s=asking.timeout_s,
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Without the key."""
        a = self._address
        host = f"[{a.host}]" if ":" in a.host else a.host
        return f"{'https' if a.is_tls else 'http'}://{host}:{a.port}{a.prefix}"

    async def check(self, *, needs_tools: bool) -> None:
        """Find out, before anything is asked, that the key, the model and tools are all right.

        Raises:
            AuthenticationError, ConfigError: what is wrong, and how to mend it.
            LingflashError: nothing answers there.
        """
        status, body = await self._once("GET", "/v1/models")
        if status == 200:
            try:
                names = [str(model["id"]) for model in json.loads(body)["data"]]
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"What answers at {self.url} is no OpenAI-compatible server: its /v1/models "
                    "lists no models. Say with --base-url where one is.",
                    param="base_url",
                ) from None
            if self.asking.model not in names:
                near = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ConfigError(
                    f"--model is {self.asking.model!r}; the server has: {near}.", param="model"
                )
        elif status in (401, 403):
            raise self._wrong_key(body)
        # A request of each kind: not every server lists its models, or says whether it takes tools.
        probe = {
            **self.asking.fields(),
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 1,
        }
        await self._probe(probe, "")
        if needs_tools:
            await self._probe(
                {**probe, "tools": [_PROBE_TOOL]},
                "The task calls tools and the server takes none: ",
            )

    async def _probe(self, fields: Mapping[str, Any], meaning: str) -> None:
        status, body = await self._once("POST", _CHAT, fields)
        if status in (401, 403):
            raise self._wrong_key(body)
        if status == 404:
            raise ConfigError(
                f"{self.url} has no model {self.asking.model!r} at {_CHAT}: "
                f"{_message_of(body)} Check --base-url and --model.",
                param="base_url",
            )
        if 400 <= status < 500 and status not in (408, 409, 425, 429):
            raise ConfigError(f"{meaning}{self.url} refuses ({status}): {_message_of(body)}")

    def _wrong_key(self, body: bytes) -> AuthenticationError:
        what = "that was given is wrong" if self._address.api_key else "is needed"
        return AuthenticationError(
            f"The server at {self.url} says that a key {what} ({_message_of(body)}); give one with "
            "--api-key or OPENAI_API_KEY."
        )

    async def _once(self, method: str, path: str, payload: Any = None) -> tuple[int, bytes]:
        body = None if payload is None else json.dumps(payload).encode()
        try:
            async with open_request(self._address, method, path, body, deadlines=_QUICK) as answer:
                return answer.status, await answer.read()
        except (OSError, BadAnswer) as error:
            raise LingflashError(
                f"No server answers at {self.url} ({error}). Start one with `ling serve`, or say "
                "with --base-url where it is."
            ) from None

    async def ask(
        self,
        trace: Trace,
        messages: Sequence[Message],
        tools: Sequence[Any],
        more: Mapping[str, Any],
    ) -> Reply:
        """Ask until there is an answer.

        Raises:
            Refused: there will never be one.
            NotAnswered: the server fails at this one again and again, and answers others.
            EngineError: it has answered nothing at all for `patience_s`.
            AuthenticationError: it does not take the key any more.
        """
        fields = {
            "messages": list(messages),
            **({"tools": list(tools)} if tools else {}),
            **more,
            **self.asking.fields(),  # a flag has the last word
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(fields).encode()
        num_failures, began = 0, time.monotonic()
        while True:
            async with self.limiter.slot() as started_at:
                failure, pause_s = "", 0.0
                try:
                    return self._take(trace, await self._stream(body))
                except _Busy as error:
                    failure, pause_s = str(error), error.pause_s
                    self.limiter.cut(started_at, pause_s)
                except TooSlow:
                    failure = "too slow"
                    num_failures += 1
                except OSError:
                    failure = "no connection"
                except (BadAnswer, BrokenAnswer):
                    failure = "cut stream"
                    num_failures += 1
                except _Failed as error:
                    failure = str(error)
                    num_failures += 1
            self.failures[failure] += 1
            trace.failures.append(failure)
            silent_s = time.monotonic() - max(self._last_good, began)
            if silent_s > self.asking.patience_s:
                raise EngineError(
                    f"{self.url} has given no answer for {silent_s:.0f} s (last: {failure})."
                )
            if num_failures >= _MAX_FAILURES:
                raise NotAnswered(f"{num_failures} attempts failed, the last by: {failure}")
            step_s = 0.5 * 2 ** min(len(trace.failures), 7) * random.uniform(0.5, 1.0)
            await asyncio.sleep(min(step_s, _LONGEST_PAUSE_S))

    async def _stream(self, body: bytes) -> Reply:
        reader = ReplyReader()
        async with open_request(
            self._address, "POST", _CHAT, body, deadlines=self._deadlines
        ) as answer:
            if answer.status != 200:
                raise self._error_of(answer.status, answer.headers, await answer.read())
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                raise BrokenAnswer("no stream of events")
            async for data in answer.events():
                if data == "[DONE]":
                    break
                reader.feed(data)
        return reader.reply()

    def _error_of(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        if status == 429:
            return _Busy("429", _seconds(headers.get("retry-after")))
        if status == 503:
            return _Busy("503", _seconds(headers.get("retry-after")))
        if status in (401, 402, 403):
            return self._wrong_key(body)
        if status >= 500 or status in (408, 409, 425):
            return _Failed(str(status))
        return Refused(f"{status}: {_message_of(body)}")

    def _take(self, trace: Trace, reply: Reply) -> Reply:
        self._last_good = time.monotonic()
        self.limiter.grow()
        if reply.tokens is None:
            trace.is_metered = False
        else:
            trace.tokens += reply.tokens
            self.tokens += reply.tokens
        trace.replies.append(reply.as_json())
        return reply


class _Busy(Exception):
    """The server wants fewer requests."""

    def __init__(self, what: str, pause_s: float) -> None:
        super().__init__(what)
        self.pause_s = pause_s


class _Failed(Exception):
    """The server failed at this attempt."""


def _seconds(text: str | None) -> float:
    try:
        return min(max(float(text or 0), 0.0), _LONGEST_PAUSE_S)
    except ValueError:  # a date: rare, and the pause after a failure does
        return 0.0


def _message_of(body: bytes) -> str:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode("utf-8", "replace")
    return " ".join(str(message).split())
