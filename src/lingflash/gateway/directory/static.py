"""A directory that is written in the gateway's file."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lingflash.link.http_client import Address
from lingflash.link.replica_probe import probe
from lingflash.protocol.replicas import Health, Replica


class StaticDirectory:
    """Servers that are always the same; each is asked whether it serves.

    Args:
        urls: scheme, host and port of each.
        token: their key; without it one that has keys does not say how much it has to do.
    """

    def __init__(self, urls: Sequence[str], token: str | None = None) -> None:
        self._places = {url: Address.parse_any(url, token) for url in urls}

    async def replicas(self) -> list[Replica]:
        """See Directory."""
        healths = await asyncio.gather(*map(probe, self._places.values()))
        return [
            Replica.of(url, health or Health(ready=False))
            for url, health in zip(self._places, healths, strict=True)
        ]
