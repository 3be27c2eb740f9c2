"""The store of responses: owners, limits, chains, a file that survives."""

from __future__ import annotations

import sqlite3
import time

import pytest

from lingflash.api.responses.store import ResponseStore
from lingflash.core.errors import ConfigError, InvalidRequestError, NotFoundError

ITEMS = [{"id": "msg_1", "type": "message"}]


def body(name, *, previous=None, text=""):
    return {"id": name, "status": "completed", "previous_response_id": previous, "text": text}


@pytest.fixture
def make_store(tmp_path):
    stores = []

    def make(path=None, max_bytes=2**20, max_age_s=3600.0):
        path = tmp_path / path if path else None
        stores.append(ResponseStore(path, max_bytes=max_bytes, max_age_s=max_age_s))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


async def test_store_when_a_response_is_put_then_its_owner_reads_it_and_nobody_else(make_store):
    store = make_store()
    assert await store.put("me", body("a"), ITEMS)
    assert (await store.get("me", "a")).body == body("a")
    assert (await store.get("me", "a")).input_items == ITEMS
    for attempt in (store.get("you", "a"), store.delete("you", "a"), store.get("", "a")):
        with pytest.raises(NotFoundError):
            await attempt
    with pytest.raises(NotFoundError):
        await store.chain("you", "a", max_bytes=2**20)
    await store.delete("me", "a")
    with pytest.raises(NotFoundError):
        await store.get("me", "a")


async def test_store_when_opened_again_then_what_was_stored_is_there(make_store, tmp_path):
    store = make_store("db")
    await store.put("me", body("a"), ITEMS)
    assert (tmp_path / "db").stat().st_mode & 0o077 == 0
    store.close()
    again = make_store("db")
    assert (await again.get("me", "a")).body == body("a")
    mode = sqlite3.connect(tmp_path / "other").execute("PRAGMA journal_mode").fetchone()[0]
    assert mode == "delete"  # so that the next line says something
    again.close()
    assert sqlite3.connect(tmp_path / "db").execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_store_when_the_file_is_no_database_of_ours_then_a_clear_error(make_store, tmp_path):
    (tmp_path / "text").write_text("this is no database at all, but long enough to be read as one")
    with sqlite3.connect(tmp_path / "foreign") as db:
        db.execute("CREATE TABLE t (x)")
    for name in ("text", "foreign", "no/such/folder"):
        with pytest.raises(ConfigError, match="--responses-db"):
            make_store(name)


def test_store_when_a_second_server_takes_the_file_then_a_clear_error(make_store):
    make_store("db")
    with pytest.raises(ConfigError, match="locked"):
        make_store("db")


async def test_store_when_over_its_size_then_the_longest_unused_goes_first(make_store):
    store = make_store(max_bytes=5000)
    for name in ("a", "b", "c"):
        await store.put("me", body(name, text="x" * 1000), ITEMS)
    await store.chain("me", "a", max_bytes=2**20)  # a use of it
    await store.put("me", body("d", text="x" * 1000), ITEMS)
    await store.get("me", "a")
    with pytest.raises(NotFoundError):
        await store.get("me", "b")
    assert not await store.put("me", body("e", text="x" * 6000), ITEMS)
    await store.get("me", "d")


async def test_store_when_over_its_age_then_gone(make_store, monkeypatch):
    store = make_store(max_age_s=100)
    await store.put("me", body("a"), ITEMS)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 101)
    with pytest.raises(NotFoundError):
        await store.get("me", "a")
    await store.put("me", body("b"), ITEMS)
    assert (await store.get("me", "b")).body == body("b")


async def test_chain_when_a_link_is_missing_or_it_is_too_long_then_refused(make_store):
    store = make_store()
    await store.put("me", body("a"), ITEMS)
    await store.put("me", body("b", previous="a"), ITEMS)
    await store.put("me", body("c", previous="b"), ITEMS)
    chain = await store.chain("me", "c", max_bytes=2**20)
    assert [one.body["id"] for one in chain] == ["a", "b", "c"]
    with pytest.raises(InvalidRequestError) as long:
        await store.chain("me", "c", max_bytes=500)
    assert long.value.param == "previous_response_id"
    await store.delete("me", "b")
    with pytest.raises(NotFoundError) as missing:
        await store.chain("me", "c", max_bytes=2**20)
    assert missing.value.param == "previous_response_id"
    assert "'b'" in missing.value.message


async def test_store_when_its_limit_is_zero_then_disabled(make_store):
    store = make_store(max_bytes=0)
    assert not store.is_enabled
    with pytest.raises(NotFoundError, match="responses-max-mb"):
        await store.chain("me", "a", max_bytes=1)
