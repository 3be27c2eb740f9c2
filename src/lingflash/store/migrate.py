"""Brings a database's tables to what this version knows; run at every start."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.engine import Connection

from lingflash.core.errors import ConfigError

# Of PostgreSQL's advisory locks: "lingflash" in no standard at all.
_LOCK = 0x11F6_F1A5


def scripts() -> ScriptDirectory:
    """The migrations in this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def migrate(connection: Connection, to: str | None = None) -> None:
    """Run what is missing, inside the connection's transaction: all of it or nothing.

    Two processes that start at once run it once: on SQLite the transaction holds the write lock, on
    PostgreSQL an advisory one.

    Args:
        to: the version to stop at; the newest if None.

    Raises:
        ConfigError: a newer lingflash made the tables.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
    directory = scripts()
    current = MigrationContext.configure(connection).get_current_revision()
    head = to or directory.get_current_head()
    if current == head:
        return
    try:
        if current is not None:
            directory.get_revision(current)
    except CommandError:
        raise ConfigError(
            f"The database's tables are of version {current}, which this lingflash does not know; "
            f"its own is {head}. Install the lingflash that made them, or give another database.",
            param="database",
        ) from None

    def upgrade(revision: object, context: object) -> object:
        return directory._upgrade_revs(head or "", revision)  # pyright: ignore  # alembic's own commands call it so

    config = Config()
    with EnvironmentContext(config, directory, fn=upgrade, as_sql=False) as environment:
        environment.configure(connection=connection, transactional_ddl=True)
        environment.run_migrations()
