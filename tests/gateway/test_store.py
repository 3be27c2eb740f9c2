"""Databases: their tables are migrated once, and what cannot be used is said in one sentence."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select, text

from lingflash.core.errors import CapacityError, ConfigError
from lingflash.store.database import Database
from lingflash.store.migrate import scripts
from lingflash.store.tables import metadata, process


async def test_tables_when_migrated_then_as_the_code_has_them(database_url):
    database = Database(database_url)
    await database.open()

    def difference(connection):
        return compare_metadata(MigrationContext.configure(connection), metadata)

    assert await database.read(difference) == []
    await database.close()


async def test_open_when_many_processes_start_at_once_then_tables_are_made_once(database_url):
    code = (
        "import asyncio, sys\n"
        "from lingflash.store.database import Database\n"
        "asyncio.run(Database(sys.argv[1]).open())\n"
    )
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, database_url, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for each in started:
        _, errors = await each.communicate()
        assert each.returncode == 0, errors.decode()
    database = Database(database_url)
    await database.open()
    versions = await database.read(
        lambda c: c.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    )
    assert versions == [scripts().get_current_head()]
    await database.close()


async def test_open_when_a_newer_version_made_the_tables_then_says_so(database_url):
    database = Database(database_url)
    await database.open()
    await database.write(
        lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    )
    await database.close()
    with pytest.raises(ConfigError, match="version 9999, which this lingflash does not know"):
        await Database(database_url).open()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gateway.db", "no URL; allowed: sqlite:///FILE"),
        ("mysql://root@localhost/x", "of the kind 'mysql'; allowed: sqlite"),
        ("sqlite://", "no file, so that what it counts would be lost"),
        ("sqlite:///:memory:", "no file"),
        ("sqlite:////nowhere/at/all.db", "cannot be written: No such file"),
        ("sqlite:////tmp", "cannot be written: Is a directory"),
        ("postgresql://ling:sentinel@127.0.0.1:1/x", "Give a database that can be used"),
        ("postgresql://ling@no-such-host.invalid/x", "Give a database that can be used"),
    ],
)
async def test_open_when_url_is_wrong_then_one_sentence_without_the_password(url, says):
    with pytest.raises(ConfigError) as caught:
        await Database(url).open()
    assert says in caught.value.message
    assert "sentinel" not in caught.value.message
    assert "\n" not in caught.value.message


async def test_open_when_file_is_no_database_then_says_so(tmp_path):
    (tmp_path / "x.db").write_text("This is a letter, not a database. " * 40)
    with pytest.raises(ConfigError, match="file is not a database"):
        await Database(f"sqlite:///{tmp_path}/x.db").open()


async def test_file_when_made_then_for_its_owner_alone(sqlite_url, tmp_path):
    database = Database(sqlite_url)
    await database.open()
    modes = {stat.S_IMODE(each.stat().st_mode) for each in Path(tmp_path).glob("gateway.db*")}
    await database.close()
    assert modes == {0o600}


async def test_write_when_disk_is_full_then_one_error_and_nothing_written(sqlite_url):
    database = Database(sqlite_url)
    await database.open()

    # What SQLite says when the disk is full, it says when it may take no more pages.
    def fill(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        for number in range(10_000):
            connection.execute(insert(process).values(id=f"{number:032}", beat=0))

    with pytest.raises(CapacityError, match="disk is full"):
        await database.write(fill)
    assert await database.read(lambda c: c.execute(select(process)).all()) == []
    await database.close()


async def test_write_when_it_fails_then_undone_and_error_names_no_value(database_url):
    database = Database(database_url)
    await database.open()

    def twice(connection):
        for _ in range(2):
            connection.execute(insert(process).values(id="sentinel", beat=0))

    with pytest.raises(CapacityError) as caught:
        await database.write(twice)
    assert "sentinel" not in caught.value.message
    assert await database.read(lambda c: c.execute(select(process)).all()) == []
    await database.close()


async def test_postgres_when_it_is_restarted_then_the_next_call_works(postgres):
    database = Database(postgres.new_database())
    await database.open()
    kill = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    other = Database(database.url.set(drivername="postgresql").render_as_string(False))
    await other.write(lambda c: c.execute(kill))
    assert await database.read(lambda c: c.execute(text("SELECT 1")).scalar()) == 1
    await other.close()
    await database.close()
