"""`ling gateway`: the place in front of servers and vendors; `check` explains its routes."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lingflash.cli.gateway_keys import app as keys_app
from lingflash.cli.options import new_event_loop
from lingflash.core.errors import ConfigError

if TYPE_CHECKING:
    from lingflash.gateway.config.load import GatewayConfig
    from lingflash.gateway.routing.catalog import Endpoint
    from lingflash.gateway.routing.plan import Plan
    from lingflash.gateway.state import GatewayState

app = typer.Typer(
    help="Keys, limits, routes and bills in front of `ling serve` and of vendors.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys_app, name="keys")

_ADDRESS = ("host_name", "port_name")
_DIALECTS = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/responses": "responses",
    "/messages": "messages",
}


@app.callback(invoke_without_command=True)
def gateway(
    context: typer.Context,
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="The gateway's TOML file.")
    ] = Path("gateway.toml"),
    ui: Annotated[
        bool | None, typer.Option("--ui/--no-ui", help="The page at /ui; over the file's `ui`.")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; SIGHUP reads the file again. See docs/gateway.md."""
    if context.invoked_subcommand is not None:
        return
    # Late: these take longer to import than `ling --help` may take in all.
    from lingflash.core.log import setup_logging, tell
    from lingflash.gateway.accounts.routes import accounts_router
    from lingflash.gateway.accounts.service import open_accounts
    from lingflash.gateway.config.load import load_config
    from lingflash.gateway.server import serve_gateway
    from lingflash.httpd.page import PAGE_PATH
    from lingflash.httpd.server import bind_socket

    def load() -> GatewayConfig:
        return load_config(config, os.environ)

    loaded = load()
    if ui is not None:
        loaded = replace(loaded, server=replace(loaded.server, ui=ui))
    server = loaded.server
    setup_logging(server.log_level)
    names = {name: f"{config}: server.{name.removesuffix('_name')}" for name in _ADDRESS}
    with bind_socket(server.host, server.port, **names) as sock:
        host, port = sock.getsockname()[:2]

        async def run() -> None:
            accounts = await open_accounts(loaded.accounts, os.environ, config.parent)
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{port}"

            def announce(_: GatewayState) -> None:
                if server.has_page:
                    tell(f"the page is on {url}{PAGE_PATH}")
                tell(f"gateway to {', '.join(loaded.upstreams)} on {url}/v1 and /api/v1")

            await serve_gateway(
                loaded,
                accounts,
                sock,
                close=accounts.close,
                reload=load,
                routers=(accounts_router(accounts),),
                on_ready=announce,
            )

        with asyncio.Runner(loop_factory=new_event_loop()) as runner:
            runner.run(run())


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The gateway's TOML file.")],
    request: Annotated[
        Path | None,
        typer.Option("--request", metavar="FILE", help="JSON body of a request to explain."),
    ] = None,
    path: Annotated[
        str, typer.Option("--path", help="Where that request is sent.")
    ] = "/v1/chat/completions",
) -> None:
    """Read a file, say what is wrong with it, and explain the routes that requests would take."""
    from lingflash.gateway.config.load import load_config

    config = load_config(file, os.environ)
    typer.echo(
        f"{file}: ok, {len(config.upstreams)} upstreams, {len(config.catalog.models)} models"
    )
    if request is not None:
        _explain(config, _read_request(request), path)
        return
    for name in config.catalog.names():
        _explain(config, {"model": name}, None)


def _explain(config: GatewayConfig, body: dict[str, Any], path: str | None) -> None:
    """Print the route of a new session's first request, with every endpoint in its place."""
    from lingflash.gateway.config.tables import DIALECTS
    from lingflash.gateway.routing.plan import plan_of_file

    today = datetime.now(UTC).date()
    dialects = list(DIALECTS) if path is None else [_dialect_of(path)]
    for dialect in dialects:
        plan = plan_of_file(config.catalog, body, dialect, today)
        if path is None and not plan.candidates:
            continue
        shown = ", ".join(each.name for each in plan.wanted)
        typer.echo(f"\n{shown}, {dialect}: rule {plan.rule}")
        _print_plan(plan)


def _print_plan(plan: Plan) -> None:
    for i, each in enumerate(plan.candidates, 1):
        typer.echo(f"  {i}. {_told(each.endpoint)}, with {each.key.name}")
    if not plan.candidates:
        typer.echo("  nobody may serve it")
    for endpoint, why in plan.excluded:
        typer.echo(f"  -  {endpoint.id}: {why}")


def _told(endpoint: Endpoint) -> str:
    price = endpoint.price(datetime.now(UTC).date())
    dollars = f"${price.prompt / 1e6:g} in, ${price.completion / 1e6:g} out per million tokens"
    return f"{endpoint.id} ({endpoint.provider}: {dollars})"


def _dialect_of(path: str) -> str:
    end = path.removeprefix("/api").removeprefix("/v1")
    if end not in _DIALECTS:
        paths = ", ".join(f"/v1{each}" for each in _DIALECTS)
        raise ConfigError(f"--path is {path!r}; allowed: {paths}.", param="path")
    return _DIALECTS[end]


def _read_request(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--request {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"--request {path} is no JSON: {error}.") from None
    if not isinstance(body, dict):
        raise ConfigError(f"--request {path} is no JSON object.")
    return body
