"""`ling gateway keys`: keys of a gateway, made and revoked in its database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lingflash.cli.bill import console_for_tables
from lingflash.core.errors import ConfigError

if TYPE_CHECKING:
    from lingflash.gateway.accounts.keys import Key
    from lingflash.store.database import Database

T = TypeVar("T")

app = typer.Typer(
    help="Make, list, change and revoke the keys of a gateway.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The gateway's file, for its database.")
]
_CONFIG = Path("gateway.toml")
LimitOption = Annotated[
    str | None,
    typer.Option(metavar="USD", help="What it may spend in a window; none if not given."),
]
ResetOption = Annotated[
    str | None, typer.Option(help="When the window begins anew, in UTC: daily, weekly, monthly.")
]
ByokOption = Annotated[
    bool | None,
    typer.Option(
        "--include-byok/--no-include-byok", help="Count what vendors take of brought keys, too."
    ),
]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", help="A model that it may use; all if not given.")
]
RpmOption = Annotated[int | None, typer.Option(help="Requests per minute.")]
TpmOption = Annotated[int | None, typer.Option(help="Tokens per minute.")]
ConcurrencyOption = Annotated[int | None, typer.Option(help="Requests at once.")]
ExpiresOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="When it ends, such as 2027-01-31T12:00:00Z.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="To know it by.")],
    limit: LimitOption = None,
    reset: ResetOption = None,
    include_byok: ByokOption = None,
    model: ModelOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    concurrency: ConcurrencyOption = None,
    expires: ExpiresOption = None,
    management: Annotated[
        bool, typer.Option("--management", help="It manages keys, and runs no model.")
    ] = False,
    config: ConfigOption = _CONFIG,
) -> None:
    """Make a key and print it; it is shown this once and kept nowhere."""
    fields = _fields(limit, reset, include_byok, model, rpm, tpm, concurrency, expires)
    fields |= {"name": name, "is_management": management}
    secret, _ = _with_database(config, lambda keys, _: keys.create(fields))
    typer.echo(secret)


@app.command("list")
def list_keys(config: ConfigOption = _CONFIG) -> None:
    """Show all keys, what they may and what they have used."""
    names = ("name", "key", "hash", "spent", "limit", "requests/min", "tokens/min", "state")
    table = Table(*names, box=SIMPLE_HEAD)
    for key in _with_database(config, lambda keys, _: keys.all()):
        table.add_row(*map(str, _row(key)))
    console_for_tables().print(table)


@app.command()
def update(
    key: Annotated[str, typer.Argument(help="Its name, its hash, or how that begins.")],
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    limit: LimitOption = None,
    reset: ResetOption = None,
    include_byok: ByokOption = None,
    model: ModelOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    concurrency: ConcurrencyOption = None,
    expires: ExpiresOption = None,
    disable: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Refuse it for now, or no more.")
    ] = None,
    no_limit: Annotated[bool, typer.Option("--no-limit", help="Take the limit away.")] = False,
    config: ConfigOption = _CONFIG,
) -> None:
    """Change a key; what it has spent stays."""
    fields = _fields(limit, reset, include_byok, model, rpm, tpm, concurrency, expires)
    fields |= {} if name is None else {"name": name}
    fields |= {} if disable is None else {"disabled": disable}
    fields |= {"limit": None} if no_limit else {}
    if not fields:
        raise ConfigError("Nothing to change was given; see `ling gateway keys update --help`.")

    async def change(keys: Any, _: Any) -> Key:
        return await keys.update((await keys.find(key)).hash, fields)

    changed = _with_database(config, change)
    typer.echo(f"changed {changed.name} ({changed.label})")


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Its name, its hash, or how that begins.")],
    config: ConfigOption = _CONFIG,
) -> None:
    """Delete a key for good; a running gateway refuses it from its next request on."""

    async def remove(keys: Any, _: Any) -> Key:
        found = await keys.find(key)
        await keys.delete(found.hash)
        return found

    gone = _with_database(config, remove)
    typer.echo(f"revoked {gone.name} ({gone.label})")


@app.command("rotate-master")
def rotate_master(
    config: ConfigOption = _CONFIG,
) -> None:
    """Encrypt all stored keys of vendors anew, under the first of the master keys.

    Write the new one before the old ones, and restart running gateways, so that they read both.
    """
    from lingflash.gateway.accounts.vault import Vault, read_master_keys
    from lingflash.gateway.config.load import load_accounts

    masters = read_master_keys(load_accounts(config), os.environ, config.parent)

    async def rotate(_: Any, opened: Database) -> int:
        vault = Vault(opened, masters)
        await vault.check()
        return await vault.rotate()

    count = _with_database(config, rotate)
    typer.echo(f"encrypted {count} keys under {masters.first[0]}; the old master keys can go")


def _with_database(config: Path, work: Callable[[Any, Database], Awaitable[T]]) -> T:
    """Run something with the keys of the database that a gateway's file names."""
    from lingflash.gateway.accounts.keys import Keys
    from lingflash.gateway.config.load import load_accounts
    from lingflash.store.database import Database

    async def run() -> T:
        url = load_accounts(config).database_url(os.environ, config.parent)
        database = Database(url)
        await database.open()
        try:
            return await work(Keys(database), database)
        finally:
            await database.close()

    return asyncio.run(run())


def _fields(
    limit: str | None,
    reset: str | None,
    include_byok: bool | None,
    models: list[str] | None,
    rpm: int | None,
    tpm: int | None,
    concurrency: int | None,
    expires: str | None,
) -> dict[str, Any]:
    from lingflash.gateway.accounts.times import parse_iso

    given = {
        "limit": limit,
        "limit_reset": reset,
        "include_byok": include_byok,
        "allowed_models": models or None,
        "rpm": rpm,
        "tpm": tpm,
        "concurrency": concurrency,
        "expires_at": None if expires is None else parse_iso(expires, "expires"),
    }
    return {name: value for name, value in given.items() if value is not None}


def _row(key: Key) -> tuple[object, ...]:
    from lingflash.gateway.accounts.admission import dollars, wall_ms

    balance = key.balance
    limit = "-" if balance.limit_pico is None else f"${dollars(balance.limit_pico)}"
    state = "management" if key.is_management else "ok"
    if key.expires_at is not None and key.expires_at <= wall_ms():
        state = "expired"
    if key.disabled:
        state = "disabled"
    return (
        key.name,
        key.label,
        key.hash[:12],
        f"${dollars(balance.spent)}",
        limit + (f" {balance.limit_reset}" if balance.limit_reset else ""),
        key.rpm or "-",
        key.tpm or "-",
        state,
    )
