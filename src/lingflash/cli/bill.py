"""`ling bill`: what a session cost, step by step and tool by tool, asked of a running gateway."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lingflash.cli.chat import KEY_VARIABLE
from lingflash.core.errors import ConfigError, EngineError, LingflashError

_FORMATS = ("table", "json", "csv", "tools-csv")
_COUNTS = ("prompt_tokens", "cached_tokens", "new_tokens", "completion_tokens", "reasoning_tokens")


def bill(
    session: Annotated[str, typer.Argument(help="The session's id.")],
    url: Annotated[str, typer.Option("--url", help="The gateway.")] = "http://127.0.0.1:8080",
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar=KEY_VARIABLE, help="The key whose session it is."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="table, json, csv (steps) or tools-csv (results).")
    ] = "table",
    key_hash: Annotated[
        str | None, typer.Option("--key-hash", help="With a management key: whose session it is.")
    ] = None,
) -> None:
    """Show what a session cost: by step, by tool, for sending again, and what the cache saved."""
    if form not in _FORMATS:
        raise ConfigError(f"--format is {form!r}; allowed: {', '.join(_FORMATS)}.")
    query = {} if key_hash is None else {"api_key_hash": key_hash}
    if form in ("csv", "tools-csv"):
        query |= {"format": "csv", "table": "steps" if form == "csv" else "tool_results"}
    path = f"/api/v1/sessions/{quote(session, safe='')}?{urlencode(query)}"
    body = asyncio.run(_get(url, api_key, path))
    if form == "table":
        print_bill(json.loads(body), console_for_tables())
    else:
        typer.echo(body.rstrip("\n"))


async def _get(url: str, api_key: str | None, path: str) -> str:
    """The body of an answer.

    Raises:
        LingflashError: there is none, or it is an error.
    """
    from lingflash.link.http_client import Address, BadAnswer, call

    base = url.rstrip("/").removesuffix("/v1").removesuffix("/api")
    address = Address.parse_any(base, api_key)
    try:
        status, raw = await call(address, "GET", path)
    except (OSError, BadAnswer) as error:
        raise EngineError(f"{url} cannot be reached or broke off: {error}.") from None
    body = raw.decode("utf-8", "replace")
    if status == 200:
        return body
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "it is no gateway of lingflash"
    raise LingflashError(f"{url} answered {status}: {message}")


def console_for_tables() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    return Console(width=None if sys.stdout.isatty() else 160)


def print_bill(bill: dict[str, Any], console: Console) -> None:
    """Write a bill for people."""
    steps = Table(title=f"session {bill['session_id']}", title_justify="left", box=SIMPLE_HEAD)
    names = ["step", "where", "prompt", "cached", "new", "output", "thinking", "cost", "again"]
    runs_code = any(each["code_calls"] for each in bill["steps"])
    for name in [*names, *(("code",) if runs_code else ())]:
        steps.add_column(name, justify="left" if name == "where" else "right")
    for each in bill["steps"]:
        where = each["endpoint"] if each["outcome"] == "completed" else each["outcome"]
        counts = [f"{each[name]:,}" for name in _COUNTS]
        money = (f"${each['cost_usd']}", f"${each['resent_usd']}")
        code = f"{each['code_calls']} in {each['code_seconds']:g} s"
        steps.add_row(str(each["step"]), where, *counts, *money, *((code,) if runs_code else ()))
    console.print(steps)
    if bill["tools"]:
        tools = Table("tool", box=SIMPLE_HEAD)
        for name in ("results", "tokens", "first", "again", "together"):
            tools.add_column(name, justify="right")
        for each in bill["tools"]:
            money = (f"${each[name]}" for name in ("first_usd", "resent_usd", "total_usd"))
            tools.add_row(each["tool"], str(each["results"]), f"{each['tokens']:,}", *money)
        console.print(tools)
    totals = bill["totals"]
    per_task = totals["output_tokens_per_finished_task"]
    for label, text in (
        ("cost", f"${totals['cost_usd']}"),
        ("paid for re-sending", f"${totals['paid_for_resending_usd']}"),
        ("saved by the cache", f"${totals['saved_by_cache_usd']}"),
        ("finished tasks", str(totals["finished_tasks"])),
        ("output tokens per finished task", "-" if per_task is None else f"{per_task:,}"),
    ):
        console.print(f"{label:<32}{text}", highlight=False)
