"""The seam between the server and the engine: one protocol, several engines behind it.

`ipc.IpcEngineClient` talks to an engine in a process of its own, `scripted.ScriptedEngine` replays
tokens for tests and load measurements. The server knows only this file.
"""

from __future__ import annotations

from typing import Protocol

from lingflash.core.errors import EngineDeadError
from lingflash.core.types import EngineInfo, EngineRequest, EngineStats
from lingflash.link.event_stream import EventStream


class EngineClient(Protocol):
    """An engine that can be asked for tokens. All methods belong to one asyncio event loop."""

    @property
    def info(self) -> EngineInfo:
        """What the engine serves; constant after start()."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The newest gauges and counters received."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a request submitted now could be served."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why it is not ready, for people; None if it is."""
        ...

    async def start(self) -> None:
        """Start the engine and return when it can serve.

        Raises:
            LingflashError: it could not be started; the class says why.
        """
        ...

    async def submit(self, request: EngineRequest) -> EventStream:
        """Hand over a request; return its events once the engine has accepted it.

        Each of the request's n choices ends with one event that has a finish_reason, after which
        the iterator ends. Failures after acceptance are events with finish_reason "error", never
        exceptions. Leaving the iterator early (aclose, cancellation) aborts the request.

        Raises:
            InvalidRequestError: it can never be served.
            QueueFullError: the waiting queue is full.
            EngineDeadError: the engine is gone.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request within one step; unknown ids are fine. Its choices end as "aborted"."""
        ...

    async def reset_prefix_cache(self) -> tuple[int, int]:
        """Forget every computed prefix; blocks and state checkpoints that were forgotten.

        Running requests go on; what is submitted from now on finds nothing that was computed
        before.

        Raises:
            EngineDeadError: the engine is gone.
        """
        ...

    async def wait_dead(self) -> EngineDeadError:
        """Return why, when the engine has failed for good; not after stop()."""
        ...

    def drain(self) -> None:
        """No new requests will come: an engine that dies from now on is not started again."""
        ...

    async def stop(self) -> None:
        """Abort what runs and release the engine; may be called twice."""
        ...
