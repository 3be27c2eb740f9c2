"""Every number of the gateway's file with what is no number for it; and with the most it may be."""

from __future__ import annotations

import math
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from accounts_support import end_of, new_caller, opened, served, start_of
from api_support import wait_until
from gateway_support import gateway_tables
from lingflash.core.errors import ConfigError
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.config import tables as all_tables
from lingflash.gateway.config.load import read_config

# The class of each table, and how to come to it in the file.
TABLES = {
    "server": (all_tables.ServerTable, lambda file: file.setdefault("server", {})),
    "deadlines": (all_tables.DeadlinesTable, lambda file: file.setdefault("deadlines", {})),
    "breaker": (all_tables.BreakerTable, lambda file: file.setdefault("breaker", {})),
    "requests": (all_tables.RequestsTable, lambda file: file.setdefault("requests", {})),
    "accounts": (AccountsConfig, lambda file: file.setdefault("accounts", {})),
    "directory": (
        all_tables.DirectoryTable,
        lambda file: file.setdefault(
            "directory", [{"name": "d", "kind": "dns", "host": "replicas.invalid"}]
        )[0],
    ),
    "endpoint": (all_tables.EndpointTable, lambda file: file["model"][0]["endpoint"][0]),
    "price": (all_tables.PriceTable, lambda file: file["model"][0]["endpoint"][0]["price"][0]),
}
NUMBERS = [
    (table, each.name)
    for table, (cls, _) in TABLES.items()
    for each in fields(cls)
    if {int, float, Decimal} & {*get_args(hint := get_type_hints(cls)[each.name]), hint}
]
NONE = ["nan", "inf", "-inf", "sNaN", "-1", "-1e-9", "-1e400", "1e400", "1e999999", "1" + "0" * 400]
MOST = [10**12, 10**6, 65535, 1000, 600, 100, 60, 8]


def file_with(**values):
    file = gateway_tables({"One": "http://127.0.0.1:9/v1"})
    for name, value in values.items():
        table, _, key = name.partition(".")
        TABLES[table][1](file)[key] = value
    return file


def read(file):
    return read_config(file, {"HOUSE_KEY": "k"}, file="gateway.toml", folder=Path())


def test_tables_then_every_one_of_the_file_is_walked():
    known = {cls for cls, _ in TABLES.values()}
    others = {all_tables.UpstreamTable, all_tables.ModelTable}  # no numbers
    in_file = {each for each in vars(all_tables).values() if str(each).endswith("Table'>")}
    assert in_file | {AccountsConfig} == known | others
    assert len(NUMBERS) >= 30


@pytest.mark.parametrize("text", NONE)
@pytest.mark.parametrize(("table", "key"), NUMBERS)
def test_number_when_it_is_none_then_one_sentence_that_names_it(table, key, text):
    value = int(text) if text.lstrip("-").isdecimal() else Decimal(text)
    with pytest.raises(ConfigError) as caught:
        read(file_with(**{f"{table}.{key}": value}))
    message = caught.value.message
    assert key in message
    assert "\n" not in message
    assert len(message) < 300


def the_most(table, key):
    """The largest number that the file takes there."""
    for value in MOST:
        try:
            read(file_with(**{f"{table}.{key}": value}))
        except ConfigError:
            continue
        return value
    raise AssertionError(f"{table}.{key} takes no number")


async def test_numbers_when_each_is_the_most_that_it_may_be_then_requests_are_served(
    make_gateway, sqlite_url
):
    # A port cannot be chosen here, and no upstream of the file names the directory.
    most = {
        f"{t}.{k}": the_most(t, k)
        for t, k in NUMBERS
        if (t, k) != ("server", "port") and t != "directory"
    }
    assert all(map(math.isfinite, most.values()))

    def tables(file):
        for name, value in most.items():
            table, _, key = name.partition(".")
            if table != "accounts":
                TABLES[table][1](file)[key] = value
        return file

    gateway = make_gateway(tables=tables)
    assert gateway.post().status_code == 200
    assert gateway.stream()[0] == 200
    wait_until(lambda: gateway.leaked() == [])
    config = {k.partition(".")[2]: v for k, v in most.items() if k.startswith("accounts.")}
    accounts = await opened(sqlite_url, **config)
    await served(accounts, start_of(await new_caller(accounts)), end_of())
    await accounts.close()


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e400", "1e999999999", "1e-999999999", "x"])
async def test_keys_limit_when_it_is_no_money_then_refused_at_once(sqlite_url, text):
    accounts = await opened(sqlite_url)
    if text == "1e-999999999":  # nothing, told at length
        assert (await new_caller(accounts, limit=text)).name == "test"
    else:
        with pytest.raises(Exception, match=r"^limit is .*; allowed: "):
            await new_caller(accounts, limit=text)
    await accounts.close()
