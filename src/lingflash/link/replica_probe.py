"""Asks a `ling serve` whether it serves, and how much it has to do."""

from __future__ import annotations

from lingflash.link.http_client import Address, BadAnswer, Deadlines, open_request
from lingflash.protocol.replicas import Health, read_health

_DEADLINES = Deadlines(total_s=2.0)
_NOT_READY = Health(ready=False)


async def probe(address: Address) -> Health:
    """What its /ready says; one that cannot be reached, or is something else, is not ready."""
    try:
        async with open_request(address, "GET", "/ready", deadlines=_DEADLINES) as answer:
            return read_health(await answer.read(), is_ready=answer.status == 200)
    except (OSError, BadAnswer, ValueError):
        return _NOT_READY
