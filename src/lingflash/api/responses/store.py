"""Stored responses, so that a later request can read or continue one.

What is stored has an owner, the hash of the API key that it was made with; nobody else finds it.
The event loop never waits for the disk, and nobody waits long for one that hangs.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lingflash.api.responses.database import ResponseDatabase, Row
from lingflash.api.responses.store_process import RemoteDatabase
from lingflash.core.errors import CapacityError, LingflashError, NotFoundError
from lingflash.core.log import log_event

logger = logging.getLogger("lingflash.api")

_LOG_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response with what it was made from.

    Args:
        body: the response object.
        input_items: items of its request, without those of earlier responses.
    """

    body: dict[str, Any]
    input_items: list[dict[str, Any]]


class ResponseStore:
    """Responses by id and owner.

    Args:
        path: of the database file, which a process of its own keeps; None keeps it in memory, gone
            with the server.
        max_bytes: limit on what is stored; 0 stores nothing.
        max_age_s: older responses are dropped.
        deadline_s: how long a call may wait for the disk.
        on_error: called for each call that the disk failed.

    Raises:
        ConfigError: the file cannot be opened, or is not ours.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        max_bytes: int,
        max_age_s: float,
        deadline_s: float = 5.0,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._deadline_s = deadline_s
        self._on_error = on_error
        self._running_since: float | None = None
        self._logged_s = float("-inf")
        self._call_database: Callable[..., Any] | None = None
        if max_bytes == 0:
            return
        limits: dict[str, Any] = {"max_bytes": max_bytes, "max_age_s": max_age_s}
        if path is None:
            memory = ResponseDatabase(None, **limits)
            self._call_database = lambda method, *given: getattr(memory, method)(*given)
            self._close_database = memory.close
        else:
            remote = RemoteDatabase(path, **limits)
            self._call_database = remote.call
            self._close_database = remote.close
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="responses")

    @property
    def is_enabled(self) -> bool:
        return self._call_database is not None

    async def put(
        self, owner: str, body: dict[str, Any], input_items: list[dict[str, Any]]
    ) -> bool:
        """Store a response; tell whether it is.

        It is not if it is over the whole limit by itself, or if the disk fails: that is logged and
        counted, and costs nobody an answer.
        """
        try:
            return await self._call("put", owner, body, input_items)
        except LingflashError:
            return False

    async def get(self, owner: str, response_id: str) -> StoredResponse:
        """Read a response.

        Raises:
            NotFoundError: there is none, or it is somebody else's.
            CapacityError: the disk does not answer.
        """
        return _decoded(await self._call("get", owner, response_id))

    async def delete(self, owner: str, response_id: str) -> None:
        """Forget a response.

        Raises:
            NotFoundError: there is none, or it is somebody else's.
            CapacityError: the disk does not answer.
        """
        await self._call("delete", owner, response_id)

    async def chain(self, owner: str, response_id: str, *, max_bytes: int) -> list[StoredResponse]:
        """Read a response and all that it continues, oldest first.

        Args:
            owner: whose they must be.
            response_id: the newest.
            max_bytes: more than this cannot be a prompt.

        Raises:
            NotFoundError: one is missing; `param` is previous_response_id.
            InvalidRequestError: together they are too long.
            CapacityError: the disk does not answer.
        """
        return [_decoded(row) for row in await self._call("chain", owner, response_id, max_bytes)]

    async def find_items(self, owner: str, ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """Items of stored outputs by id; those that are not there are left out.

        Raises:
            CapacityError: the disk does not answer.
        """
        rows = await self._call("with_items", owner, list(ids))
        items = [item for row in rows for item in _decoded(row).body["output"]]
        return {item["id"]: item for item in items if item["id"] in ids}

    def close(self) -> None:
        """Close the database after what is being stored, unless its disk hangs."""
        if self._call_database is None:
            return
        if self._running_since is None:
            self._thread.shutdown(wait=True)
            self._close_database()
        else:  # its end is not waited for; what was not stored by now is lost
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._close_database()

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self._call_database is None:
            raise NotFoundError(
                "Responses are not stored on this server (--responses-max-mb 0); send the whole "
                "conversation as input.",
                param="previous_response_id",
            )
        since = self._running_since
        if since is not None and time.monotonic() - since > self._deadline_s:
            raise self._failed(
                method, "its disk does not answer"
            )  # nobody queues behind a call that hangs
        work = asyncio.get_running_loop().run_in_executor(
            self._thread, self._work, method, *arguments
        )
        try:
            return await asyncio.wait_for(work, self._deadline_s)
        except TimeoutError:
            raise self._failed(method, "its disk does not answer") from None
        except (sqlite3.Error, OSError) as error:
            raise self._failed(method, str(error)) from None

    def _work(self, method: str, *arguments: Any) -> Any:
        assert self._call_database is not None
        self._running_since = time.monotonic()
        try:
            return self._call_database(method, *arguments)
        finally:
            self._running_since = None

    def _failed(self, method: str, why: str) -> CapacityError:
        self._on_error()
        now = time.monotonic()
        if now - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now
            fields = {"call": method, "error": why}
            log_event(logger, "responses_store_failed", fields, level=logging.ERROR)
        return CapacityError(f"The store of responses cannot be used now: {why}.")


def _decoded(row: Row) -> StoredResponse:
    return StoredResponse(msgspec.json.decode(row["body"]), msgspec.json.decode(row["input_items"]))
