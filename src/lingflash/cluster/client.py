"""Asks a control plane that runs, for `ling cluster status`, `drain`, `restart` and `down`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from lingflash.cluster.config import ClusterConfig
from lingflash.core.errors import CapacityError, LingflashError, NotFoundError
from lingflash.link.http_client import Address, BadAnswer, call

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_POLL_S = 0.2


def ask(config: ClusterConfig, method: str, path: str, payload: Any = None) -> dict[str, Any]:
    """Ask it once; its answer.

    Raises:
        CapacityError: nobody listens there.
        LingflashError: what it refused, in its words.
    """
    address = _address(config)
    try:
        status, body = asyncio.run(call(address, method, f"/cluster{path}", payload))
        answer = json.loads(body)
    except (OSError, BadAnswer, ValueError) as error:
        raise CapacityError(
            f"Nothing of {config.file} answers on {address.host}:{address.port} ({error}); "
            "`ling cluster up` starts it."
        ) from None
    if status != 200:
        message = answer.get("error", {}).get("message", f"status {status}")
        raise (NotFoundError if status == 404 else LingflashError)(message)
    return answer


async def wait_gone(config: ClusterConfig) -> None:
    """Return when it listens no more, so all of its replicas have ended."""
    while True:
        try:
            await call(_address(config), "GET", "/health")
        except (OSError, BadAnswer):
            return
        await asyncio.sleep(_POLL_S)


def _address(config: ClusterConfig) -> Address:
    table = config.cluster
    return Address(_ANY.get(table.host, table.host), table.port, config.token)
