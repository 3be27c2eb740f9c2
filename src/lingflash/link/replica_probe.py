"""Asks a `ling serve` whether it serves, and how much it has to do."""

from __future__ import annotations

from lingflash.link.http_client import Address, BadAnswer, Deadlines, open_request
from lingflash.protocol.replicas import Health, read_health

_DEADLINES = Deadlines(total_s=5.0)


async def probe(address: Address) -> Health | None:
    """What its /ready says; None if it cannot be reached in time, or is something else."""
    try:
        async with open_request(address, "GET", "/ready", deadlines=_DEADLINES) as answer:
            return read_health(await answer.read(), is_ready=answer.status == 200)
    except (OSError, BadAnswer, ValueError):
        return None
