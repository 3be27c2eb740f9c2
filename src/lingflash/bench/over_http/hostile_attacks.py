"""What two attackers do to a server while somebody else uses it: one has a key, one has none.

Each attack is one of the kinds that docs/operating.md bounds, over and over. They run in a process
of their own, which yields the processor to everybody else: elsewhere they would have their own.

    python -m lingflash.bench.over_http.hostile_attacks    settings as JSON on standard input,
                                                           counts as JSON on standard output
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from lingflash.bench.over_http.soak_clients import (
    Limits,
    leave_before_first_byte,
    leave_mid_stream,
    open_socket,
    send_garbage,
    send_malformed,
)
from lingflash.link.http_client import Address, Answer, BadAnswer, open_request

_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
_MAX_BODY_BYTES = (32 << 20) - 128
_PATIENCE_S = 120.0
_PAUSE_S = 0.05
# What Retry-After asks for: the volume of requests is for a proxy to bound.
_BUSY_PAUSE_S = 1.0
_HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n"
# Ambiguous in more ways than a parser can hold: each token doubles what has to be followed.
_AMBIGUOUS = 'start: s\ns: s s | "a" | "b" | s s s'
_ODD_NUMBERS = (-1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**400, -1e300, 1e300, 0.5)
_SAMPLING_FIELDS = (
    "top_k", "top_p", "min_p", "temperature", "seed", "max_tokens", "min_tokens", "n", "logprobs",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "stop_token_ids", "logit_bias",
)  # fmt: skip


@dataclass(slots=True)
class Attacker:
    """What an attack knows: where to, with the key and without, and what it draws from."""

    with_key: Address
    without: Address
    limits: Limits
    rng: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)


Attack = Callable[[Attacker], Awaitable[str]]


async def _send(address: Address, path: str, body: bytes) -> str:
    """One request and the status of its answer, which is read to its end."""
    async with open_request(address, "POST", path, body) as answer:
        async for part in answer.parts():
            if b'"internal_error"' in part:
                return "internal error"
    return str(answer.status)


async def _complete(attacker: Attacker, **fields: object) -> str:
    return await _send(attacker.with_key, _COMPLETIONS, json.dumps(fields).encode())


async def poisoned_field(attacker: Attacker) -> str:
    """W1: a number that no tensor holds."""
    name, value = attacker.rng.choice(_SAMPLING_FIELDS), attacker.rng.choice(_ODD_NUMBERS)
    given = {"stop_token_ids": [value], "logit_bias": {"5": value}}.get(name, value)
    return await _complete(attacker, **{"prompt": "hi", "max_tokens": 2, name: given})


async def pipelined_requests(attacker: Attacker) -> str:
    """W2: requests that nobody reads the answers of, on one connection."""
    ahead = (_HEALTH + b"\r\n") * 8000
    async with open_socket(attacker.without) as (_, writer):
        for _ in range(32):
            writer.write(ahead)
            await asyncio.wait_for(writer.drain(), 5.0)
    return "taken"


async def ambiguous_grammar(attacker: Attacker) -> str:
    """W3: cheap to compile and dear to follow."""
    grammar = {"grammar": _AMBIGUOUS}
    return await _complete(
        attacker, prompt="hi", max_tokens=2000, ignore_eos=True, structured_outputs=grammar
    )


async def huge_headers(attacker: Attacker) -> str:
    """W4: a million short fields, one long line, or a body's trailers without end."""
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(100_000))
    line = b"X: " + b"a" * (8 << 20) + b"\r\n"
    chunked = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\n{}\r\n0\r\n"
    )
    head, rest = attacker.rng.choice(((_HEALTH, many), (_HEALTH, line), (chunked, many)))
    data = b""
    async with open_socket(attacker.without) as (reader, writer):
        writer.write(head)
        for _ in range(8):
            writer.write(rest)
            await asyncio.wait_for(writer.drain(), 5.0)
        writer.write(b"\r\n")
        data = await reader.read()
    return str(Answer.of_bytes(data).status)


async def silent_connections(attacker: Attacker) -> str:
    """W5: a hundred connections that say nothing, half a header or half a body."""
    said = attacker.rng.choice(
        (
            b"",
            _HEALTH + b"X-A: ",
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n{",
        )
    )
    outcome = "still open"
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(99):
            _, writer = await stack.enter_async_context(open_socket(attacker.without))
            writer.write(said)
        reader, writer = await stack.enter_async_context(open_socket(attacker.without))
        writer.write(said)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(), 75.0)
            outcome = "closed by the server"
    return outcome


async def unread_stream(attacker: Attacker) -> str:
    """W6: a long answer that its client asks for, does not read, and leaves."""
    body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True, "n": 2}
    request = attacker.with_key.encode("POST", _COMPLETIONS, json.dumps(body).encode())
    async with open_socket(attacker.with_key) as (_, writer):
        writer.write(request)
        await asyncio.sleep(5.0)
    return "left"


async def leaving_client(attacker: Attacker) -> str:
    """W6: clients that go away while they wait or while they are answered."""
    leave = attacker.rng.choice((leave_before_first_byte, leave_mid_stream))
    return await leave(attacker.with_key, attacker.rng, attacker.limits)


async def long_prompt(attacker: Attacker) -> str:
    """W7: prompts that fill the context, so many that the queue is full."""
    room = (attacker.limits.max_model_len or 512) - 16
    prompt = [attacker.rng.randrange(256) for _ in range(room)]
    return await _complete(attacker, prompt=prompt, max_tokens=8, ignore_eos=True)


async def long_answer(attacker: Attacker) -> str:
    """W7: answers that hold a sequence's place for long."""
    room = (attacker.limits.max_model_len or 512) // 2
    number = attacker.rng.randrange(10**6)
    return await _complete(attacker, prompt=f"Once {number}", max_tokens=room, ignore_eos=True)


@functools.cache
def _huge_bodies() -> list[tuple[str, bytes]]:
    """Path and body of requests that stay below the limit on bodies and mean a lot of work."""

    def fill(start: bytes, item: bytes, end: bytes) -> bytes:
        count = (_MAX_BODY_BYTES - len(start) - len(end)) // (len(item) + 1)
        return start + b",".join([item] * count) + end

    empty = b'{"role":"user","content":""}'
    tool = b'{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}'
    user = b'{"messages":[{"role":"user","content":"x"}],"tools":['
    words = b'{"prompt":"' + b"hello world " * (_MAX_BODY_BYTES // 12 - 2) + b'"}'
    return [
        (_COMPLETIONS, fill(b'{"prompt":[', b"[" * 100 + b"]" * 100, b"]}")),
        (_COMPLETIONS, fill(b'{"prompt":[', b"[]", b"]}")),
        (_CHAT, fill(b'{"messages":[', b"{}", b"]}")),
        (_CHAT, fill(b'{"messages":[', empty, b"]}")),
        ("/v1/responses", fill(b'{"input":[', empty, b"]}")),
        (_CHAT, fill(user, tool, b"]}")),
        ("/tokenize", words),
        (_COMPLETIONS, words),
    ]


async def huge_body(attacker: Attacker) -> str:
    """W13: just below the limit."""
    return await _send(attacker.with_key, *attacker.rng.choice(_huge_bodies()))


async def malformed(attacker: Attacker) -> str:
    """Requests that must be refused, with the key and without."""
    address = attacker.rng.choice((attacker.with_key, attacker.without))
    return await send_malformed(address, attacker.rng, attacker.limits)


async def garbage(attacker: Attacker) -> str:
    """What is no HTTP."""
    return await send_garbage(attacker.without, attacker.rng, attacker.limits)


# How many of each at any time.
_WEIGHTS: dict[Attack, int] = {
    poisoned_field: 2,
    pipelined_requests: 2,
    ambiguous_grammar: 4,
    huge_headers: 2,
    silent_connections: 3,
    unread_stream: 4,
    leaving_client: 4,
    long_prompt: 48,
    long_answer: 64,
    huge_body: 2,
    malformed: 2,
    garbage: 2,
}
ATTACKS = {attack.__name__: (attack, count) for attack, count in _WEIGHTS.items()}


async def attack_for(attacker: Attacker, names: list[str], seconds: float) -> Counter[str]:
    """Everything named at once; gives how often each attack ended how."""
    end = time.monotonic() + seconds

    async def again(attack: Attack) -> None:
        while time.monotonic() < end:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    outcome = await attack(attacker)
            except TimeoutError:
                outcome = "given up"
            except (BadAnswer, OSError) as error:
                outcome = "closed" if isinstance(error, OSError) else f"odd answer: {error}"
            attacker.outcomes[f"{attack.__name__}: {outcome}"[:160]] += 1
            await asyncio.sleep(_BUSY_PAUSE_S if outcome.endswith("429") else _PAUSE_S)

    async with _ended_at(end):
        chosen = [ATTACKS[name] for name in names]
        await asyncio.gather(*(again(attack) for attack, count in chosen for _ in range(count)))
    return attacker.outcomes


@contextlib.asynccontextmanager
async def _ended_at(end: float) -> AsyncIterator[None]:
    """What is under way at the end is left, as a client leaves."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(end - time.monotonic()):
            yield


def main() -> None:
    """Attack as standard input says."""
    os.nice(19)
    given = json.load(sys.stdin)
    attacker = Attacker(
        Address(given["host"], given["port"], given["api_key"]),
        Address(given["host"], given["port"]),
        Limits(has_text=True, max_model_len=given["max_model_len"]),
        random.Random(given["seed"]),
    )
    json.dump(asyncio.run(attack_for(attacker, given["attacks"], given["seconds"])), sys.stdout)


if __name__ == "__main__":
    main()
