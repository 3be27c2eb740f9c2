"""One database, SQLite or PostgreSQL, behind the same few calls.

    database = Database("sqlite:///gateway.db")
    await database.open()  # connects, migrates
    rows = await database.read(lambda connection: connection.execute(query).all())
    await database.write(change)  # one transaction: committed at the end, undone by an exception
    await database.close()

What is run is an ordinary function of an ordinary connection. For SQLite it runs in a thread, as a
whole: a hop to a thread for each statement costs more than the statement. For PostgreSQL it runs
here, and waits as a coroutine does.

On SQLite a writer takes the write lock at the beginning (BEGIN IMMEDIATE), so that what it read is
true until it commits. On PostgreSQL rows that must stay true are read FOR UPDATE.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Table, create_engine, event
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from lingflash.core.errors import CapacityError, ConfigError, LingflashError
from lingflash.protocol.unicode import replace_escaped_surrogates
from lingflash.store.migrate import migrate

T = TypeVar("T")

_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
_ALLOWED = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
# A lock that is held longer than this is held by somebody who hangs.
_BUSY_MS = 10_000


class Database:
    """A pool of connections.

    Args:
        url: without a driver, such as sqlite:///gateway.db.
        pool_size: connections at once, at most.

    Raises:
        ConfigError: the URL is of no database that can be used.
    """

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.url = _parse(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._engine: Engine | AsyncEngine
        options: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": 0,
            # Parameters hold hashes and ciphertexts, which are for no log and no error.
            "hide_parameters": True,
            "json_serializer": _to_json,
            "json_deserializer": msgspec.json.decode,
        }
        if self.is_sqlite:
            self._engine = create_engine(self.url, **options)
            _prepare_sqlite(self._engine)
            self._readers = ThreadPoolExecutor(pool_size - 1, "sqlite-read")
            # SQLite has one writer; who waits for it here need not poll for it there.
            self._writer = ThreadPoolExecutor(1, "sqlite-write")
        else:
            self._engine = create_async_engine(self.url, pool_pre_ping=True, **options)

    async def open(self) -> None:
        """Connect, and bring the tables to what this version knows.

        Raises:
            ConfigError: it cannot be reached, or a newer lingflash made its tables.
        """
        try:
            if self.is_sqlite:
                _create_file(Path(self.url.database or ""))
            await self.write(migrate)
        except CapacityError as error:
            await self.close()
            raise ConfigError(
                f"{self.shown_url}: {error.message} Give a database that can be used, as "
                f"{_ALLOWED}.",
                param="database",
            ) from None
        except LingflashError:
            await self.close()
            raise

    def upsert(
        self, table: Table, keys: Sequence[str], changes: Mapping[str, Any] | Sequence[str]
    ) -> Any:
        """An INSERT that changes the row instead if there is one with the same keys.

        Args:
            changes: columns with what they become, or those that become what was to be inserted.
        """
        insert = (sqlite_insert if self.is_sqlite else postgres_insert)(table)
        if not isinstance(changes, Mapping):
            changes = {name: insert.excluded[name] for name in changes}
        return insert.on_conflict_do_update(index_elements=keys, set_=changes)

    def compiled(self, statement: Any) -> tuple[str, Sequence[str]]:
        """A statement as text, and its parameters in the order in which exec_driver_sql takes them.

        They go to the driver as they are: numbers and texts alone.
        """
        made = statement.compile(dialect=self._engine.dialect)
        return str(made), made.positiontup

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return self.url.set(drivername=self.url.get_backend_name()).render_as_string(True)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run something that only reads; all of it sees one state.

        Raises:
            CapacityError: the database does not answer.
        """
        return await self._run(work, is_writing=False)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run a transaction: committed at the end, undone by an exception.

        Raises:
            CapacityError: the database does not answer, or its disk is full; nothing was written.
        """
        return await self._run(work, is_writing=True)

    async def _run(self, work: Callable[[Connection], T], *, is_writing: bool) -> T:
        with _translated():
            if isinstance(self._engine, AsyncEngine):
                async with self._engine.begin() as connection:
                    return await connection.run_sync(work)
            engine, threads = self._engine, self._writer if is_writing else self._readers

            def run() -> T:
                with engine.connect() as connection, connection.begin():
                    raw: Any = connection.connection.dbapi_connection
                    raw.execute("BEGIN IMMEDIATE" if is_writing else "BEGIN")
                    return work(connection)

            return await asyncio.get_running_loop().run_in_executor(threads, run)

    async def close(self) -> None:
        """Close all connections."""
        if isinstance(self._engine, AsyncEngine):
            await self._engine.dispose()
            return
        for threads in (self._writer, self._readers):
            await asyncio.to_thread(threads.shutdown)
        self._engine.dispose()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error, PoolTimeoutError, OSError, TimeoutError) as error:
        raise CapacityError(f"The database failed: {_reason(error)}.") from None


def _reason(error: BaseException) -> str:
    """What the database said, in one line and without what it was given."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    inner = getattr(cause, "__cause__", None)  # the driver's own error behind SQLAlchemy's
    text = str(inner or cause).splitlines() or [type(cause).__name__]
    if "disk is full" in text[0] or "No space left" in text[0]:
        return "its disk is full"
    return text[0].rstrip(".")


def _to_json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # half of a surrogate pair, which is no text anywhere
        return replace_escaped_surrogates(json.dumps(value))


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # What was given may hold a password.
        raise ConfigError(
            f"The database is no URL; allowed: {_ALLOWED}.", param="database"
        ) from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ConfigError(
            f"The database is of the kind {parsed.drivername!r}; allowed: {_ALLOWED}.",
            param="database",
        )
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(
            f"The database has no file, so that what it counts would be lost; allowed: {_ALLOWED}.",
            param="database",
        )
    return parsed.set(drivername=driver)


def _create_file(path: Path) -> None:
    """Make the file for its owner alone; what SQLite puts beside it gets the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigError(
            f"The database's file {path} cannot be written: {error.strerror}.", param="database"
        ) from None


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # BEGIN is written in _run
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={_BUSY_MS}",
            "journal_mode=WAL",
            # A commit outlives the process; a power cut may take the last ones, whole.
            "synchronous=NORMAL",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
