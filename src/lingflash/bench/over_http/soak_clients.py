"""What the clients of a soak do: each behaviour is one request, and says how it ended.

An outcome is a word for the summary; what must not happen raises BadAnswer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lingflash.bench.over_http.chunks import read_chunks
from lingflash.link.http_client import Address, Answer, BadAnswer, call, open_request

_SAFE_VOCAB = 256
_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
# The queue may be full: that is an answer, too.
_BUSY = (429, 503)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the served model allows.

    Args:
        has_text: whether it has a tokenizer and a chat template.
        max_model_len: context; None if the server does not say.
    """

    has_text: bool
    max_model_len: int | None = None


Behaviour = Callable[[Address, random.Random, Limits], Awaitable[str]]


async def find_limits(address: Address) -> Limits:
    """Ask a server what it serves."""
    status, body = await call(address, "GET", "/v1/models")
    if status != 200:
        raise BadAnswer(f"/v1/models answered {status}")
    model: dict[str, Any] = json.loads(body)["data"][0]
    messages = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    status, _ = await call(address, "POST", _CHAT, messages)
    return Limits(has_text=status == 200, max_model_len=model.get("max_model_len"))


def _completion(rng: random.Random, limits: Limits, *, stream: bool) -> dict[str, Any]:
    """A good request with random lengths and sampling."""
    room = limits.max_model_len or 512
    prompt_len = rng.choice((1, 2, rng.randint(3, 64), rng.randint(65, 300)))
    prompt_len = max(min(prompt_len, room // 2), 1)
    payload: dict[str, Any] = {
        "prompt": [rng.randrange(_SAFE_VOCAB) for _ in range(prompt_len)],
        "max_tokens": min(rng.choice((1, rng.randint(2, 32), rng.randint(33, 96))), room // 2),
        "temperature": rng.choice((0, 0.7, 1.0)),
        "stream": stream,
    }
    if rng.random() < 0.5:
        payload["ignore_eos"] = True
    if rng.random() < 0.2:
        payload["n"] = rng.randint(2, 4)
    if rng.random() < 0.2:
        payload["logprobs"] = rng.randint(0, 5)
    if rng.random() < 0.2:
        payload |= {"top_p": 0.9, "top_k": 20, "frequency_penalty": 0.5, "seed": rng.randrange(99)}
    if stream and rng.random() < 0.5:
        payload["stream_options"] = {"include_usage": True}
    return payload


def _good(rng: random.Random, limits: Limits, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Path and body of a good request; now and then a chat."""
    if not limits.has_text or rng.random() < 0.7:
        return _COMPLETIONS, _completion(rng, limits, stream=stream)
    words = " ".join(rng.choice(("weather", "Paris", "列", "book", "émile")) for _ in range(12))
    payload: dict[str, Any] = {
        "messages": [{"role": "user", "content": words}],
        "max_tokens": rng.randint(1, 64),
        "stream": stream,
    }
    if rng.random() < 0.3:
        payload["stop"] = [rng.choice(("e", "the", ".", "\n"))]
    return _CHAT, payload


def _encode(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload).encode()


async def ask_whole(address: Address, rng: random.Random, limits: Limits) -> str:
    """Wait for a whole answer."""
    path, payload = _good(rng, limits, stream=False)
    status, body = await call(address, "POST", path, payload)
    if status in _BUSY:
        return "busy"
    if status != 200:
        raise BadAnswer(f"status {status}: {body[:200]!r}")
    choices = json.loads(body)["choices"]
    if len(choices) != payload.get("n", 1) or not all(c["finish_reason"] for c in choices):
        raise BadAnswer(f"choices without an end: {body[:200]!r}")
    return "answered"


async def ask_stream(address: Address, rng: random.Random, limits: Limits) -> str:
    """Read a stream to its end, in the pace it comes."""
    return await _read_stream(address, rng, limits, pause_s=0.0)


async def ask_stream_slowly(address: Address, rng: random.Random, limits: Limits) -> str:
    """Read a stream with pauses, so that the server's buffers fill."""
    return await _read_stream(address, rng, limits, pause_s=0.02)


async def _read_stream(address: Address, rng: random.Random, limits: Limits, pause_s: float) -> str:
    path, payload = _good(rng, limits, stream=True)
    async with open_request(address, "POST", path, _encode(payload)) as answer:
        if answer.status in _BUSY:
            return "busy"
        ended: dict[int, str] = {}
        async for chunk in read_chunks(answer):
            for choice in chunk["choices"]:
                if choice.get("finish_reason"):
                    if choice["index"] in ended:
                        raise BadAnswer(f"choice {choice['index']} ended twice")
                    ended[choice["index"]] = choice["finish_reason"]
            if pause_s:
                await asyncio.sleep(pause_s)
        if len(ended) != payload.get("n", 1):
            raise BadAnswer(f"{len(ended)} of {payload.get('n', 1)} choices ended")
    return "answered"


@contextlib.asynccontextmanager
async def open_socket(
    address: Address,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to misuse."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def leave_mid_stream(address: Address, rng: random.Random, limits: Limits) -> str:
    """Go away after a few events."""
    path, payload = _good(rng, limits, stream=True)
    payload["max_tokens"] = 96
    left = rng.randint(1, 12)
    async with open_request(address, "POST", path, _encode(payload)) as answer:
        if answer.status in _BUSY:
            return "busy"
        async for _ in answer.events():
            left -= 1
            if not left:
                return "left"
    return "ended before leaving"


async def leave_before_first_byte(address: Address, rng: random.Random, limits: Limits) -> str:
    """Send a request and go away without reading, at once or a moment later."""
    path, payload = _good(rng, limits, stream=rng.random() < 0.5)
    async with open_socket(address) as (_, writer):
        writer.write(address.encode("POST", path, _encode(payload)))
        await writer.drain()
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.05)
        if rng.random() < 0.5:
            writer.transport.abort()  # a reset instead of an orderly end
    return "left"


async def leave_mid_request(address: Address, rng: random.Random, limits: Limits) -> str:
    """Send a part of the request and go away."""
    data = address.encode("POST", _COMPLETIONS, _encode(_completion(rng, limits, stream=True)))
    async with open_socket(address) as (_, writer):
        writer.write(data[: rng.randint(1, len(data) - 1)])
        await writer.drain()
        await asyncio.sleep(rng.random() * 0.02)
    return "left"


def _malformed(rng: random.Random, limits: Limits) -> tuple[str, str, bytes]:
    """Method, path and body of a request that must be refused."""
    good = _completion(rng, Limits(False, limits.max_model_len), stream=rng.random() < 0.5)
    cases: list[tuple[str, str, bytes]] = [
        ("POST", _COMPLETIONS, b'{"prompt": [1, 2'),
        ("POST", _COMPLETIONS, b"[1, 2, 3]"),
        ("POST", _COMPLETIONS, b"\xff\xfe\x00"),
        ("POST", _COMPLETIONS, b"[" * 5000),
        ("POST", _COMPLETIONS, _encode({**good, "max_tokns": 3})),
        ("POST", _COMPLETIONS, _encode({**good, "max_tokens": -1})),
        ("POST", _COMPLETIONS, _encode({**good, "temperature": "hot"})),
        ("POST", _COMPLETIONS, _encode({**good, "top_p": 7})),
        ("POST", _COMPLETIONS, _encode({**good, "prompt": []})),
        ("POST", _COMPLETIONS, _encode({**good, "prompt": [10**9]})),
        ("POST", _COMPLETIONS, _encode({**good, "prompt": [[1], "two"]})),
        ("POST", _COMPLETIONS, _encode({**good, "n": 10**6})),
        ("POST", _COMPLETIONS, _encode({**good, "model": "no-such-model"})),
        ("POST", _COMPLETIONS, _encode({**good, "response_format": {"type": "yaml"}})),
        ("POST", _COMPLETIONS, _encode({**good, "structured_outputs": {"regex": "(a"}})),
        ("POST", _COMPLETIONS, _encode({**good, "guided_json": {"type": "object"}})),
        ("POST", _CHAT, _encode({"messages": "hello"})),
        ("POST", _CHAT, _encode({"messages": [{"role": "nobody", "content": 3}]})),
        ("GET", _COMPLETIONS, b""),
        ("POST", "/v1/nothing", b"{}"),
    ]
    if limits.max_model_len is not None:
        too_long = [1] * (limits.max_model_len + 1)
        cases.append(("POST", _COMPLETIONS, _encode({**good, "prompt": too_long})))
    return rng.choice(cases)


async def send_malformed(address: Address, rng: random.Random, limits: Limits) -> str:
    """Send what must be refused, and see that it is, with an error envelope."""
    method, path, body = _malformed(rng, limits)
    async with open_request(address, method, path, body or None) as answer:
        data = await answer.read()
    if not 400 <= answer.status < 500:
        raise BadAnswer(f"{method} {path} {body[:80]!r} got status {answer.status}: {data[:200]!r}")
    if "message" not in json.loads(data)["error"]:
        raise BadAnswer(f"{body[:80]!r} got no error envelope: {data[:200]!r}")
    return "refused"


async def send_garbage(address: Address, rng: random.Random, limits: Limits) -> str:
    """Send what is no HTTP; a 4xx or a closed connection are both fine."""
    async with open_socket(address) as (reader, writer):
        writer.write(rng.randbytes(rng.randint(1, 200)) + b"\r\n\r\n")
        with contextlib.suppress(OSError):
            await writer.drain()
        try:
            async with asyncio.timeout(5.0):
                answer = Answer.of_bytes(await reader.read())
        except (BadAnswer, TimeoutError, OSError):
            return "closed or ignored"
    if not 400 <= answer.status < 500:
        raise BadAnswer(f"garbage got status {answer.status}")
    return "refused"


_WEIGHTS: list[tuple[Behaviour, int]] = [
    (ask_stream, 30),
    (ask_whole, 15),
    (ask_stream_slowly, 5),
    (leave_mid_stream, 15),
    (leave_before_first_byte, 10),
    (leave_mid_request, 5),
    (send_malformed, 17),
    (send_garbage, 3),
]


def pick_behaviour(rng: random.Random, limits: Limits) -> Behaviour:
    """What a client does next."""
    behaviours, weights = zip(*_WEIGHTS, strict=True)
    return rng.choices(behaviours, weights)[0]
