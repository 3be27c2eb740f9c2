"""Stops work whose client has gone away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


async def until_client_gone(
    work: Coroutine[Any, Any, T],
    receive: Receive,
    *,
    is_stalled: Callable[[], bool] | None = None,
    check_every_s: float | None = None,
    on_check: Callable[[], Awaitable[None]] | None = None,
) -> T:
    """Run something, but stop it as soon as the client closes the connection.

    Args:
        work: is cancelled if the client goes first.
        receive: the connection's ASGI channel, its body already read.
        is_stalled: asked now and then; True counts as gone.
        check_every_s: how often to ask.
        on_check: is done as often, while the work goes on.

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
            if on_check is not None and not task.done():
                await on_check()
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
