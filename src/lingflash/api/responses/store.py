"""Stored responses, in SQLite, so that a later request can read or continue one.

One thread of its own does all the work, so the event loop never waits for the disk. What is stored
has an owner, the hash of the API key that made it; nobody else finds it. Responses older than the
age limit are gone; over the size limit those that were not used for longest go first.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lingflash.core.errors import (
    ConfigError,
    InvalidRequestError,
    LingflashError,
    NotFoundError,
)

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    created_s REAL NOT NULL,
    used_s REAL NOT NULL,
    previous_id TEXT,
    num_bytes INTEGER NOT NULL,
    body BLOB NOT NULL,
    input_items BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS by_use ON responses (used_s);
CREATE INDEX IF NOT EXISTS by_age ON responses (created_s);
"""
_VERSION = 1
# The row's other columns and its place in the indexes.
_ROW_BYTES = 256


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response with what it was made from.

    Args:
        input_items: items of its request, without those of earlier responses.
    """

    body: dict[str, Any]
    input_items: list[dict[str, Any]]


class ResponseStore:
    """Responses by id and owner.

    Args:
        path: of the database file; None keeps it in memory, gone with the server.
        max_bytes: limit on what is stored; 0 stores nothing.
        max_age_s: older responses are dropped.

    Raises:
        ConfigError: the file cannot be opened, or is not ours.
    """

    def __init__(self, path: Path | None, *, max_bytes: int, max_age_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._num_bytes = 0
        self._database: sqlite3.Connection | None = None
        self._executor: ThreadPoolExecutor | None = None
        if max_bytes == 0:
            return
        try:
            if path is not None:
                path.touch(mode=0o600)  # it will hold conversations
            self._database = sqlite3.connect(
                ":memory:" if path is None else path, check_same_thread=False, isolation_level=None
            )
            self._prepare(self._database)
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"--responses-db {str(path)!r} cannot be used: {error}. Give the path of a new "
                "file, or of one that this server made.",
                param="responses_db",
            ) from None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="responses")

    @property
    def is_enabled(self) -> bool:
        """Whether anything is stored."""
        return self._database is not None

    async def put(
        self, owner: str, body: dict[str, Any], input_items: list[dict[str, Any]]
    ) -> bool:
        """Store a response; False if it is over the whole limit by itself.

        Args:
            body: the response object; its previous_response_id links it to others.
        """
        return await self._call(lambda db: self._put(db, owner, body, input_items))

    async def get(self, owner: str, response_id: str) -> StoredResponse:
        """Read a response.

        Raises:
            NotFoundError: there is none, or it is somebody else's.
        """
        row = await self._call(lambda db: self._row(db, owner, response_id))
        return _decoded(row)

    async def delete(self, owner: str, response_id: str) -> None:
        """Forget a response.

        Raises:
            NotFoundError: there is none, or it is somebody else's.
        """

        def work(db: sqlite3.Connection) -> None:
            row = self._row(db, owner, response_id)
            db.execute("DELETE FROM responses WHERE id = ?", (response_id,))
            self._num_bytes -= row["num_bytes"]

        await self._call(work)

    async def chain(self, owner: str, response_id: str, *, max_bytes: int) -> list[StoredResponse]:
        """Read a response and all that it continues, oldest first.

        Args:
            owner: whose they must be.
            max_bytes: more than this cannot be a prompt.

        Raises:
            NotFoundError: one is missing; `param` is previous_response_id.
            InvalidRequestError: together they are too long.
        """

        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            rows: list[sqlite3.Row] = []
            num_bytes = 0
            wanted: str | None = response_id
            while wanted is not None:
                row = self._row(db, owner, wanted, param="previous_response_id")
                rows.append(row)
                num_bytes += row["num_bytes"]
                if num_bytes > max_bytes:
                    raise InvalidRequestError(
                        f"The conversation that ends in {response_id} is over {max_bytes} bytes; "
                        "start a new one, or raise --max-body-mb.",
                        param="previous_response_id",
                    )
                wanted = row["previous_id"]
            now = time.time()
            db.executemany(
                "UPDATE responses SET used_s = ? WHERE id = ?", [(now, row["id"]) for row in rows]
            )
            return rows[::-1]

        return [_decoded(row) for row in await self._call(work)]

    def close(self) -> None:
        """Close the database; what was being stored is finished first."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
        if self._database is not None:
            self._database.close()

    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        database = self._database
        if database is None:
            raise NotFoundError(
                "Responses are not stored on this server (--responses-max-mb 0); send the whole "
                "conversation as input.",
                param="previous_response_id",
            )
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, work, database)
        except sqlite3.Error as error:
            raise LingflashError(f"The store of responses failed: {error}.") from None

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.row_factory = sqlite3.Row
        # One server to a file: it keeps count of what is stored.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = ON")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version not in (0, _VERSION) or (version == 0 and tables):
            raise sqlite3.DatabaseError("it is a database of something else, or of another version")
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
        total = db.execute("SELECT total(num_bytes) FROM responses").fetchone()[0]
        self._num_bytes = int(total)
        self._evict(db)

    def _put(
        self,
        db: sqlite3.Connection,
        owner: str,
        body: dict[str, Any],
        input_items: list[dict[str, Any]],
    ) -> bool:
        encoded = msgspec.json.encode(body)
        items = msgspec.json.encode(input_items)
        num_bytes = len(encoded) + len(items) + _ROW_BYTES
        if num_bytes > self._max_bytes:
            return False
        now = time.time()
        previous = body.get("previous_response_id")
        db.execute(
            "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (body["id"], owner, now, now, previous, num_bytes, encoded, items),
        )
        self._num_bytes += num_bytes
        self._evict(db)
        return True

    def _evict(self, db: sqlite3.Connection) -> None:
        oldest = time.time() - self._max_age_s
        gone = db.execute(
            "DELETE FROM responses WHERE created_s < ? RETURNING num_bytes", (oldest,)
        ).fetchall()
        self._num_bytes -= sum(row["num_bytes"] for row in gone)
        while self._num_bytes > self._max_bytes:
            row = db.execute(
                "DELETE FROM responses WHERE id = "
                "(SELECT id FROM responses ORDER BY used_s, created_s LIMIT 1) RETURNING num_bytes"
            ).fetchone()
            self._num_bytes -= row["num_bytes"]

    def _row(
        self, db: sqlite3.Connection, owner: str, response_id: str, *, param: str = "response_id"
    ) -> sqlite3.Row:
        row = db.execute(
            "SELECT * FROM responses WHERE id = ? AND owner = ? AND created_s >= ?",
            (response_id, owner, time.time() - self._max_age_s),
        ).fetchone()
        if row is None:
            raise NotFoundError(
                f"There is no response {response_id!r} here; it was never stored, is deleted, or "
                "was dropped for its age or for space.",
                param=param,
            )
        return row


def _decoded(row: sqlite3.Row) -> StoredResponse:
    return StoredResponse(msgspec.json.decode(row["body"]), msgspec.json.decode(row["input_items"]))
