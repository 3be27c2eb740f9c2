"""Stored keys of vendors: who may use which, master keys, their rotation and their absence."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from sqlalchemy import update

from accounts_support import new_caller, opened
from lingflash.core.errors import ConfigError, InvalidRequestError, LingflashError, NotFoundError
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.accounts.service import open_accounts
from lingflash.gateway.accounts.vault import Vault, read_master_keys
from lingflash.store.tables import byok_key

OLD, NEW = "01" * 32, base64.b64encode(b"2" * 32).decode()
SECRET = "sk-novita-0123456789abcdefghij"


def masters_of(text: str):
    return read_master_keys(AccountsConfig(master_key_variable="M"), {"M": text}, Path())


@pytest.fixture
async def accounts(sqlite_url):
    accounts = await opened(sqlite_url, OLD)
    yield accounts
    await accounts.close()


async def test_start_when_rows_need_a_master_key_that_is_not_there_then_refused(sqlite_url):
    accounts = await opened(sqlite_url, OLD)
    await accounts.vault.add({"key": SECRET, "provider": "novita"})
    await accounts.close()
    for key in ("", NEW):
        with pytest.raises(ConfigError, match="1 stored keys of vendors are encrypted under"):
            await opened(sqlite_url, key)
    await (await opened(sqlite_url, f"{NEW} {OLD}")).close()


async def test_store_when_there_is_no_master_key_then_refused(sqlite_url):
    accounts = await opened(sqlite_url)
    with pytest.raises(InvalidRequestError, match="without a master key"):
        await accounts.vault.add({"key": SECRET, "provider": "novita"})
    await accounts.close()


async def test_rotate_when_new_key_is_first_then_old_one_can_go(accounts):
    caller = await new_caller(accounts)
    for number in range(3):
        await accounts.vault.add({"key": f"{SECRET}{number}", "provider": "novita"})
    both = Vault(accounts.database, masters_of(f"{NEW},{OLD}"))
    assert await both.rotate() == 3
    assert await both.rotate() == 0
    alone = Vault(accounts.database, masters_of(NEW))
    await alone.check()
    found = await alone.for_attempt(caller, "novita", ["ling"])
    assert [each.secret for each in found] == [f"{SECRET}{number}" for number in range(3)]


async def test_rotate_when_an_old_key_is_missing_then_nothing_changes(accounts):
    await accounts.vault.add({"key": SECRET, "provider": "novita"})
    with pytest.raises(LingflashError, match="cannot be decrypted"):
        await Vault(accounts.database, masters_of(NEW)).rotate()
    await accounts.vault.check()


async def test_row_when_ciphertext_is_moved_or_changed_then_does_not_open(accounts):
    caller = await new_caller(accounts)
    first = await accounts.vault.add({"key": SECRET, "provider": "a"})
    second = await accounts.vault.add({"key": SECRET + "x", "provider": "b"})

    def move(connection):
        own = connection.execute(byok_key.select().where(byok_key.c.id == first["id"])).one()
        connection.execute(
            update(byok_key)
            .where(byok_key.c.id == second["id"])
            .values(ciphertext=own.ciphertext, nonce=own.nonce)
        )

    await accounts.database.write(move)
    with pytest.raises(LingflashError, match="cannot be decrypted; store it anew"):
        await accounts.provider_keys(caller, "b", ["ling"])


@pytest.mark.parametrize(
    ("fields", "names", "found"),
    [
        ({}, "ling", [False]),
        ({"allowed_models": ["ling"]}, "ling:free", [False]),
        ({"allowed_models": ["other"]}, "ling", []),
        ({"allowed_models": ["alias"]}, "ling alias", [False]),
        ({"allowed_models": ["alias"]}, "ling:free alias:free", [False]),
        ({"allowed_models": ["alias:free"]}, "ling alias", []),
        ({"allowed_models": ["other"], "is_byok_only": True}, "ling", [True]),
        ({"is_required": True}, "ling", [True]),
        ({"allowed_api_key_hashes": ["0" * 64]}, "ling", []),
        ({"disabled": True}, "ling", []),
    ],
)
async def test_key_when_asked_for_then_only_where_it_covers(accounts, fields, names, found):
    caller = await new_caller(accounts)
    await accounts.vault.add({"key": SECRET, "provider": "novita", **fields})
    keys = await accounts.provider_keys(caller, "novita", names.split())
    assert [each.is_required for each in keys] == found
    assert await accounts.provider_keys(caller, "other", names.split()) == []


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "é", "x" * 5000])
async def test_store_when_key_fits_no_header_then_refused_without_it(accounts, key):
    with pytest.raises(InvalidRequestError) as caught:
        await accounts.vault.add({"key": key, "provider": "novita"})
    assert len(key) < 3 or key not in caught.value.message


async def test_row_when_there_is_none_then_says_so(accounts):
    for work in (
        accounts.vault.get("x"),
        accounts.vault.delete("x"),
        accounts.vault.update("x", {}),
    ):
        with pytest.raises(NotFoundError):
            await work


@pytest.mark.parametrize("text", ["short", "zz" * 32, OLD + "00", "sentinel" * 8])
def test_master_key_when_it_is_none_then_refused_without_it(text):
    with pytest.raises(ConfigError, match="not 32 bytes long") as caught:
        masters_of(text)
    assert text not in caught.value.message


def test_master_key_when_in_a_file_then_read_and_its_errors_name_it(tmp_path):
    path = tmp_path / "master"
    config = AccountsConfig(master_key_file=path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_master_keys(config, {}, Path())
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_master_keys(config, {}, Path())
    path.write_bytes(os.urandom(32) + b"\xff")
    with pytest.raises(ConfigError, match=r"no text|not 32 bytes"):
        read_master_keys(config, {}, Path())
    path.write_text(f"{NEW}\n{OLD}\n")
    assert len(read_master_keys(config, {}, Path()).by_id) == 2


@pytest.mark.parametrize("name", ["database", "redis", "master_key"])
def test_variable_when_it_is_named_and_empty_then_refused(name):
    config = AccountsConfig(**{f"{name}_variable": "NAMED"})
    with pytest.raises(ConfigError, match="names NAMED, which is not set or empty"):
        config.secret(name, {"NAMED": " "})
    assert config.secret(name, {"NAMED": " x "}) == "x"


async def test_files_when_named_without_a_full_path_then_beside_the_config_file(tmp_path):
    (tmp_path / "masters").write_text(OLD)
    config = AccountsConfig(database="sqlite:///own.db", master_key_file=Path("masters"))
    accounts = await open_accounts(config, {}, tmp_path)
    await accounts.vault.add({"key": SECRET, "provider": "novita"})
    await accounts.close()
    assert (tmp_path / "own.db").exists()
    for url in ("postgresql://x@y/z", "sqlite:////full/path.db", "sqlite://"):
        assert AccountsConfig(database=url).database_url({}, tmp_path) == url
