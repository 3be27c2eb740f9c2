"""One database, SQLite or PostgreSQL, behind the same few calls.

    database = Database("sqlite:///gateway.db")
    await database.open()  # connects, migrates
    async with database.reading() as connection: ...
    async with database.writing() as connection: ...  # one transaction, committed at the end
    await database.close()

On SQLite a writer takes the write lock at the beginning (BEGIN IMMEDIATE), so that what it read is
true until it commits. On PostgreSQL rows that must stay true are read FOR UPDATE.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from lingflash.core.errors import CapacityError, ConfigError, LingflashError
from lingflash.store.migrate import migrate

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
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
        # Parameters hold hashes and ciphertexts, which are for no log and no error.
        self._engine = create_async_engine(
            self.url, pool_size=pool_size, max_overflow=0, hide_parameters=True
        )
        self._write_lock = asyncio.Lock()
        if self.is_sqlite:
            _prepare_sqlite(self._engine)

    async def open(self) -> None:
        """Connect, and bring the tables to what this version knows.

        Raises:
            ConfigError: it cannot be reached, or a newer lingflash made its tables.
        """
        if self.is_sqlite:
            _create_file(Path(self.url.database or ""))
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(is_writing=True)
                async with connection.begin():
                    await connection.run_sync(migrate)
        except LingflashError:
            await self.close()
            raise
        except (DBAPIError, OSError) as error:
            await self.close()
            raise ConfigError(
                f"The database {self.shown_url} cannot be used: {_reason(error)}. "
                f"Give the database one that can, as {_ALLOWED}.",
                param="database",
            ) from None

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return self.url.set(drivername=self.url.get_backend_name()).render_as_string(True)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read with.

        Raises:
            CapacityError: the database does not answer.
        """
        with _translated():
            async with self._engine.connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, undone by an exception.

        Raises:
            CapacityError: the database does not answer, or its disk is full; nothing was written.
        """
        # SQLite has one writer; who waits for it here need not poll for it there.
        waiting = self._write_lock if self.is_sqlite else contextlib.nullcontext()
        with _translated():
            async with waiting, self._engine.connect() as connection:
                await connection.execution_options(is_writing=True)
                async with connection.begin():
                    yield connection

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


@contextlib.contextmanager
def _translated():  # noqa: ANN202
    try:
        yield
    except (DBAPIError, OSError, TimeoutError) as error:
        raise CapacityError(f"The database failed: {_reason(error)}.") from None


def _reason(error: BaseException) -> str:
    """What the database said, in one line and without what it was given."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    inner = getattr(cause, "__cause__", None)  # the driver's own error behind SQLAlchemy's
    text = str(inner or cause).splitlines() or [type(cause).__name__]
    if "disk is full" in text[0] or "No space left" in text[0]:
        return "its disk is full"
    return text[0].rstrip(".")


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
            "The database has no file, so that what it counts would be lost; allowed: "
            f"{_ALLOWED}.",
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


def _prepare_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # BEGIN is written below
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={_BUSY_MS}",
            "journal_mode=WAL",
            # A commit outlives the process; a power cut may take the last ones, whole.
            "synchronous=NORMAL",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        is_writing = connection.get_execution_options().get("is_writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


