"""`ling gateway keys` and `ling bill`, as they are typed."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

from accounts_support import accounts_app, end_of, opened, served, start_of
from lingflash.cli import app as ling
from lingflash.cli import report_errors
from lingflash.cli.gateway_keys import app as keys
from lingflash.gateway.accounting import Part
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.accounts.vault import Vault, read_master_keys
from lingflash.httpd.server import bind_socket
from lingflash.store.database import Database


@pytest.fixture
def file(sqlite_url, tmp_path) -> str:
    """A gateway's file; what these commands do not need of it, its upstreams, is not there."""
    path = tmp_path / "gateway.toml"
    path.write_text('[accounts]\ndatabase = "sqlite:///gateway.db"\nmaster_key_file = "masters"\n')
    return str(path)


def run(app, *arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def failed(capsys, app, *arguments: str) -> tuple[int, str]:
    """Exit code and message, as the command line gives them."""
    import typer

    command = typer.main.get_command(app)
    code = report_errors(lambda: command.main(args=list(arguments), standalone_mode=False))
    return code, capsys.readouterr().err


def test_keys_when_made_listed_changed_and_revoked_then_a_gateway_sees_it(sqlite_url, file):
    db = ("--config", file)
    secret = run(
        keys, "create", "agent", "--limit", "2.5", "--reset", "daily", "--rpm", "60", *db
    ).strip()
    assert secret.startswith("sk-ling-")
    listed = run(keys, "list", *db)
    assert "agent" in listed
    assert "$2.5 daily" in listed
    assert secret not in listed

    async def caller():
        accounts = await opened(sqlite_url)
        try:
            return (await accounts.keys.find("agent")), await accounts.authenticate(secret)
        finally:
            await accounts.close()

    key, _ = asyncio.run(caller())
    assert (key.balance.limit_pico, key.balance.limit_reset, key.rpm) == (25 * 10**11, "daily", 60)
    run(keys, "update", "agent", "--no-limit", "--disable", "--model", "ling", *db)
    assert "disabled" in run(keys, "list", *db)
    run(keys, "update", key.hash[:8], "--enable", "--name", "robot", *db)
    assert asyncio.run(_find(sqlite_url, "robot")).allowed_models == ["ling"]
    assert f"revoked robot ({key.label})" in run(keys, "revoke", "robot", *db)
    assert "robot" not in run(keys, "list", *db)


async def _find(url, name):
    accounts = await opened(url)
    try:
        return await accounts.keys.find(name)
    finally:
        await accounts.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "a", "--limit", "much"), "limit is 'much'; allowed: dollars, such as 2.5."),
        (("create", "a", "--limit", "nan"), "limit"),
        (("create", "a", "--limit", "-1"), "limit is -1; allowed: 0 to 1000000 dollars"),
        (("create", "a", "--reset", "yearly"), "allowed: daily, weekly, monthly"),
        (("create", "a", "--expires", "soon"), "expires is 'soon'; allowed: a time such as"),
        (("create", ""), "name is empty"),
        (("revoke", "agnt"), "There is no key 'agnt'; did you mean agent?"),
        (("revoke", "twin"), "2 keys are 'twin'; give the hash of one"),
        (("update", "agent"), "Nothing to change was given"),
        (("rotate-master",), "cannot be read: No such file"),
    ],
)
def test_keys_when_wrong_then_one_sentence(file, capsys, arguments, says):
    for name in ("agent", "twin", "twin"):
        run(keys, "create", name, "--config", file)
    code, said = failed(capsys, keys, *arguments, "--config", file)
    assert code in (1, 2)
    assert says in said
    assert len(said.strip().split("\n")) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: No such file"),
        ("[accounts", "is not TOML"),
        ("accounts = 1", "accounts is 1; it must be a table"),
        (
            "[accounts]\ndatabse = 'x'",
            "accounts.databse is not a known key; did you mean",
        ),
        ("[accounts]\ndatabase = 'mysql://u:sentinel@h/x'", "of the kind 'mysql'"),
        ("[accounts]\ndatabase_variable = 'NOT_SET'", "names NOT_SET, which is not set or empty"),
    ],
)
def test_keys_when_file_is_wrong_then_one_sentence(tmp_path, capsys, text, says):
    path = tmp_path / "gateway.toml"
    if text is not None:
        path.write_text(text)
    code, said = failed(capsys, keys, "list", "--config", str(path))
    assert code == 2
    assert says in said
    assert "sentinel" not in said


def test_rotate_master_when_new_key_is_first_then_old_one_can_go(sqlite_url, tmp_path, file):
    old, new = "01" * 32, "02" * 32

    async def vault(key: str) -> tuple[Database, Vault]:
        database = Database(sqlite_url)
        await database.open()
        config = AccountsConfig(master_key_variable="M")
        return database, Vault(database, read_master_keys(config, {"M": key}, Path()))

    async def store() -> None:
        database, opened = await vault(old)
        await opened.add({"key": "sk-novita-0123456789", "provider": "novita"})
        await database.close()

    async def check() -> None:
        database, opened = await vault(new)
        await opened.check()
        await database.close()

    asyncio.run(store())
    (tmp_path / "masters").write_text(f"{new}\n{old}\n")
    assert "encrypted 1 keys under" in run(keys, "rotate-master", "--config", file)
    asyncio.run(check())


@pytest.fixture
def gateway(sqlite_url):
    """Accounts behind a real port, with a session of two steps; its URL and key."""
    ready, stop = threading.Event(), threading.Event()
    found = {}

    async def serve() -> None:
        accounts = await opened(sqlite_url)
        secret, _ = await accounts.keys.create({"name": "a"})
        caller = await accounts.authenticate(secret)
        user = Part(role="user", digest="u", num_bytes=10)
        call = Part(role="assistant", digest="c", num_bytes=10)
        result = Part(role="tool", digest="r", num_bytes=10, name="read")
        for parts, end in (
            ((user,), end_of(100, 10, wire={"finish_reason": "tool_calls"})),
            ((user, call, result), end_of(150, 20, 100, wire={"finish_reason": "stop"})),
        ):
            await served(accounts, start_of(caller, session_id="a/b c", parts=parts), end)
        with bind_socket("127.0.0.1", 0) as sock:
            server = uvicorn.Server(
                uvicorn.Config(accounts_app(accounts), log_config=None, lifespan="off")
            )
            server.capture_signals = lambda: __import__("contextlib").nullcontext()
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            found.update(url=f"http://127.0.0.1:{sock.getsockname()[1]}", key=secret)
            ready.set()
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await serving
        await accounts.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    yield found["url"], found["key"]
    stop.set()
    thread.join(30)


def test_bill_when_session_is_known_then_table_json_and_csv(gateway):
    url, key = gateway
    own = ("--url", f"{url}/v1", "--api-key", key)
    table = run(ling, "bill", "a/b c", *own)
    for text in ("session a/b c", "novita/ling", "read", "paid for re-sending", "$0.000003"):
        assert text in table
    bill = json.loads(run(ling, "bill", "a/b c", "--format", "json", *own))
    assert bill["totals"]["paid_for_resending_usd"] == "0.000003"
    assert run(ling, "bill", "a/b c", "--format", "csv", *own).count("\n") == 3
    assert "read" in run(ling, "bill", "a/b c", "--format", "tools-csv", *own)


def test_bill_when_wrong_then_one_sentence(gateway, capsys):
    url, key = gateway
    for arguments, says in (
        (("x", "--url", url, "--api-key", key), "answered 404: There is no session 'x'"),
        (("x", "--url", url), "answered 401: No API key"),
        (("x", "--url", "http://127.0.0.1:1"), "cannot be reached"),
        (("x", "--format", "pdf"), "allowed: table, json, csv, tools-csv"),
    ):
        code, said = failed(capsys, ling, "bill", *arguments)
        assert code in (1, 2)
        assert says in said
