"""One attempt: the request as one upstream gets it, with one key."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from lingflash.gateway.config.load import GatewayConfig
from lingflash.gateway.config.tables import Upstream
from lingflash.gateway.relay.call import Call
from lingflash.gateway.relay.failures import Quoter, broken, refused
from lingflash.gateway.routing.plan import Candidate, Key
from lingflash.link.connection_pool import ConnectionPool
from lingflash.link.http_client import Address, Answer, BadAnswer, Deadlines

# An answer that is not streamed, and the body of a refusal, are kept in memory.
MAX_BODY_BYTES = 64 * 2**20
_MAX_REFUSAL_BYTES = 2**16
# After a stream's last event its connection's last bytes are waited for, to keep it.
_LINGER_S = 0.05


@asynccontextmanager
async def open_attempt(
    pool: ConnectionPool,
    config: GatewayConfig,
    call: Call,
    candidate: Candidate,
    *,
    deadline_s: float,
    quote: Quoter,
) -> AsyncIterator[Answer]:
    """Ask an upstream; gives the answer if its status is 200 and it is of the kind that was asked.

    Leaving the block before the answer's end closes the connection, which cancels the work there.

    Args:
        deadline_s: when the whole request is too late, in monotonic time.

    Raises:
        AttemptFailed: it answered otherwise.
        OSError, BadAnswer: it did not answer.
    """
    upstream = config.upstreams[candidate.endpoint.slug]
    limits = config.deadlines
    accept = "text/event-stream" if call.is_streamed else "application/json"
    deadlines = Deadlines(
        limits.connect_s,
        limits.first_byte_s,
        limits.idle_s,
        max(deadline_s - time.monotonic(), 0.001),
    )
    address, key_headers = with_key(upstream, candidate.key, candidate.replica)
    async with pool.open(
        address,
        "POST",
        upstream.path + call.path,
        call.body_for(candidate.endpoint),
        headers=(
            ("Accept", accept),
            ("X-Request-Id", call.request_id),
            *key_headers,
            *call.headers,
        ),
        deadlines=deadlines,
        is_public_only=not upstream.table.allow_private_address,
    ) as answer:
        if answer.status != 200:
            body = await read_body(answer, _MAX_REFUSAL_BYTES, is_cut=True)
            raise refused(candidate, answer.status, answer.headers, body, quote)
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != accept:
            shown = kind[:60] or "nothing"
            raise broken(candidate, BadAnswer(f"it is {shown}, not {accept}"), 200)
        yield answer


def with_key(
    upstream: Upstream, key: Key, replica: str | None = None
) -> tuple[Address, tuple[tuple[str, str], ...]]:
    """Where to send, and the header with the key; a brought key never meets another's address.

    Args:
        replica: URL of the one that is meant, where the upstream has some.
    """
    address = upstream.address if replica is None else upstream.at(replica)
    secret = address.api_key if key.kind == "house" else key.secret
    address = replace(address, api_key=None)
    if secret is None:
        return address, ()
    if upstream.table.auth == "x-api-key":
        return address, (("X-Api-Key", secret),)
    return address, (("Authorization", f"Bearer {secret}"),)


async def read_body(answer: Answer, max_bytes: int, *, is_cut: bool = False) -> bytes:
    """A whole body, within a limit.

    Args:
        is_cut: whether a longer or broken one is given as far as it was read; else it is an error.

    Raises:
        OSError, BadAnswer: it ends early, or is longer.
    """
    body = bytearray()
    try:
        async for part in answer.parts():
            body += part
            if len(body) > max_bytes:
                raise BadAnswer(f"it has more than {max_bytes} bytes")
    except (OSError, BadAnswer):
        if not is_cut:
            raise
    return bytes(body[:max_bytes])


async def linger(answer: Answer) -> None:
    """Read what ends a stream's connection, so that it can be used again."""
    with contextlib.suppress(OSError, BadAnswer):
        async with asyncio.timeout(_LINGER_S):
            async for _ in answer.parts():
                pass
