"""The SQLite file of stored responses: calls that may wait for a disk, made one after the other.

A reserve of disk space is kept beside the file. On a disk that is full it is given up, so that the
oldest responses can be dropped and their pages used again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import msgspec

from lingflash.core.errors import ConfigError, InvalidRequestError, NotFoundError

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
CREATE TABLE IF NOT EXISTS items (
    id TEXT NOT NULL,
    owner TEXT NOT NULL,
    response_id TEXT NOT NULL,
    PRIMARY KEY (id, owner)
) STRICT;
CREATE INDEX IF NOT EXISTS by_response ON items (response_id);
CREATE TRIGGER IF NOT EXISTS items_go AFTER DELETE ON responses
BEGIN DELETE FROM items WHERE response_id = OLD.id; END;
"""
_VERSION = 1
# The row's other columns and its place in the indexes.
_ROW_BYTES = 256
# The row of an item of its output, with its place in the indexes.
_ITEM_BYTES = 256

_LOG_BYTES = 128 * 1024  # of the write-ahead log, before it is written back
_RESERVE_BYTES = 2 * _LOG_BYTES
# A response that another server reads at this moment is waited for so long.
_LOCKED_S = 1.0

Row = dict[str, Any]


class ResponseDatabase:
    """Rows by id and owner; sizes and ages are kept within their limits.

    Args:
        path: of the file; None keeps everything in memory.
        max_bytes: limit on what is stored.
        max_age_s: older responses are dropped.

    Raises:
        ConfigError: the file cannot be opened, or is not ours.
    """

    def __init__(self, path: Path | None, *, max_bytes: int, max_age_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._num_bytes = 0
        self._path = path
        self._reserve = None if path is None else path.with_name(path.name + "-reserve")
        try:
            if path is not None:
                _make_private(path)
            self._db = sqlite3.connect(
                ":memory:" if path is None else path,
                check_same_thread=False,
                isolation_level=None,
                timeout=_LOCKED_S,
            )
            self._file = None if path is None else os.stat(path)
            self._prepare()
            self._keep_reserve()
        except (sqlite3.Error, OSError) as error:
            raise _cannot_be_used(path, error) from None

    def put(self, owner: str, body: dict[str, Any], input_items: list[dict[str, Any]]) -> bool:
        """Store a response, if need be in the place of older ones; False if it is too large.

        Raises:
            sqlite3.Error: the disk is full and there is nothing to drop, or it failed.
            OSError: the file is no longer where it was.
        """
        self._check_file()
        encoded = msgspec.json.encode(body)
        items = msgspec.json.encode(input_items)
        ids = [item["id"] for item in body.get("output", ())]
        num_bytes = len(encoded) + len(items) + _ROW_BYTES + _ITEM_BYTES * len(ids)
        if num_bytes > self._max_bytes:
            return False
        now = time.time()
        previous = body.get("previous_response_id")
        row = (body["id"], owner, now, now, previous, num_bytes, encoded, items)
        try:
            self._insert(row, ids)
        except sqlite3.Error as error:
            if not _is_full(error):
                raise
            self._make_room(num_bytes)
            self._insert(row, ids)
        self._num_bytes += num_bytes
        self._evict()
        return True

    def get(self, owner: str, response_id: str, param: str = "response_id") -> Row:
        """Read a response.

        Raises:
            NotFoundError: there is none, or it is somebody else's.
        """
        row = self._db.execute(
            "SELECT * FROM responses WHERE id = ? AND owner = ? AND created_s >= ?",
            (response_id, owner, time.time() - self._max_age_s),
        ).fetchone()
        if row is None:
            raise NotFoundError(
                f"There is no response {response_id!r} here; it was never stored, is deleted, or "
                "was dropped for its age or for space.",
                param=param,
            )
        return dict(row)

    def delete(self, owner: str, response_id: str) -> None:
        """Forget a response.

        Raises:
            NotFoundError: there is none, or it is somebody else's.
        """
        row = self.get(owner, response_id)
        statement = "DELETE FROM responses WHERE id = ?"
        try:
            self._db.execute(statement, (response_id,))
        except sqlite3.Error as error:
            if not _is_full(error):
                raise
            self._give_up_reserve()
            self._db.execute(statement, (response_id,))
        self._num_bytes -= row["num_bytes"]
        self._keep_reserve()

    def chain(self, owner: str, response_id: str, max_bytes: int) -> list[Row]:
        """Read a response and all that it continues, oldest first.

        Raises:
            NotFoundError: one is missing; `param` is previous_response_id.
            InvalidRequestError: together they are over `max_bytes`, so they can be no prompt.
        """
        rows: list[Row] = []
        num_bytes = 0
        wanted: str | None = response_id
        while wanted is not None:
            row = self.get(owner, wanted, "previous_response_id")
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
        # When they were used last is worth no failed request.
        with contextlib.suppress(sqlite3.Error):
            self._db.executemany(
                "UPDATE responses SET used_s = ? WHERE id = ?", [(now, row["id"]) for row in rows]
            )
        return rows[::-1]

    def with_items(self, owner: str, ids: list[str]) -> list[Row]:
        """Read the responses whose outputs have these items, each once."""
        found: dict[str, Row] = {}
        for item_id in ids:
            row = self._db.execute(
                "SELECT responses.* FROM items JOIN responses ON responses.id = response_id "
                "WHERE items.id = ? AND items.owner = ? AND created_s >= ?",
                (item_id, owner, time.time() - self._max_age_s),
            ).fetchone()
            if row is not None:
                found[row["id"]] = dict(row)
        return list(found.values())

    def _insert(self, row: tuple[Any, ...], ids: list[str]) -> None:
        """Write a response and the ids of its output's items, or nothing."""
        self._db.execute("BEGIN")
        try:
            self._db.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._db.executemany(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?)", [(i, row[1], row[0]) for i in ids]
            )
            self._db.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):  # a full disk has ended it already
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _prepare(self) -> None:
        db = self._db
        db.row_factory = sqlite3.Row
        # One server to a file: it keeps count of what is stored.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_BYTES // 4096}")
        db.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        db.execute("PRAGMA secure_delete = ON")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version not in (0, _VERSION) or (version == 0 and tables):
            raise sqlite3.DatabaseError("it is a database of something else, or of another version")
        has_items = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'items'").fetchone()
        if not tables or not has_items:
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        total = db.execute("SELECT total(num_bytes) FROM responses").fetchone()[0]
        self._num_bytes = int(total)
        try:
            self._evict()
        except sqlite3.Error as error:
            if not _is_full(error):
                raise
            self._make_room(0)

    def _evict(self) -> None:
        oldest = time.time() - self._max_age_s
        gone = self._db.execute(
            "DELETE FROM responses WHERE created_s < ? RETURNING num_bytes", (oldest,)
        ).fetchall()
        self._num_bytes -= sum(row["num_bytes"] for row in gone)
        while self._num_bytes > self._max_bytes and self._drop_oldest():
            pass

    def _drop_oldest(self) -> bool:
        row = self._db.execute(
            "DELETE FROM responses WHERE id = "
            "(SELECT id FROM responses ORDER BY used_s, created_s LIMIT 1) RETURNING num_bytes"
        ).fetchone()
        if row is None:
            return False
        self._num_bytes -= row["num_bytes"]
        return True

    def _make_room(self, num_bytes: int) -> None:
        """Drop the oldest responses for one of `num_bytes` on a disk that has no more space.

        A tenth goes with them, so that not every response that follows meets a full disk.
        """
        self._give_up_reserve()
        target = max(0, self._num_bytes - max(2 * num_bytes, self._num_bytes // 10))
        while True:
            # The log is written back each time, or it would take what was freed.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if self._num_bytes <= target or not self._drop_oldest():
                break
        self._keep_reserve()

    def _give_up_reserve(self) -> None:
        if self._reserve is not None:
            self._reserve.unlink(missing_ok=True)

    def _keep_reserve(self) -> None:
        if self._reserve is None or self._reserve.exists():
            return
        # On a full disk there is none until something was deleted.
        with contextlib.suppress(OSError):
            number = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(number, 0, _RESERVE_BYTES)
            except OSError:
                self._reserve.unlink(missing_ok=True)
            finally:
                os.close(number)

    def _check_file(self) -> None:
        if self._path is None or self._file is None:
            return
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            raise OSError(f"{self._path} was removed while the server ran") from None
        if (now.st_dev, now.st_ino) != (self._file.st_dev, self._file.st_ino):
            raise OSError(f"{self._path} was replaced while the server ran")


def _make_private(path: Path) -> None:
    """Make the file, or take the one that is there, readable for this user alone.

    Raises:
        OSError: it cannot be, or is no plain file.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no plain file")
    path.touch(mode=0o600)  # it will hold conversations
    for name in (path, path.with_name(path.name + "-wal")):
        if name.exists():
            name.chmod(0o600)


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _cannot_be_used(path: Path | None, error: Exception) -> ConfigError:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        hint = "Another server uses it; give each a file of its own."
    elif isinstance(error, sqlite3.Error) and _is_full(error):
        hint = "Its disk is full; make room, or give a path on another."
    else:
        hint = "Give the path of a new file, or of one that this server made."
    return ConfigError(
        f"--responses-db {str(path)!r} cannot be used: {error}. {hint}", param="responses_db"
    )
