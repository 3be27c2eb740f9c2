"""`ling cluster`: many replicas of `ling serve`, placed and looked after by Ray."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lingflash.cli.cluster_simulate import simulate, sums

if TYPE_CHECKING:
    from lingflash.cluster.config import ClusterConfig

app = typer.Typer(
    help="Replicas of `ling serve` on many machines, placed by Ray. See docs/cluster.md.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

app.command()(simulate)
app.command()(sums)

File = Annotated[Path, typer.Argument(metavar="[FILE]", help="The cluster's TOML file.")]
_FILE = Path("cluster.toml")


@app.command()
def up(file: File = _FILE) -> None:
    """Place replicas and look after them until SIGTERM, Ctrl-C or `down`; the directory."""
    # Late: these take longer to import than `ling --help` may take in all.
    from lingflash.cluster.controller import Controller
    from lingflash.cluster.ray_environment import prepare
    from lingflash.cluster.server import serve_cluster
    from lingflash.core.extras import require_engine
    from lingflash.core.log import setup_logging, tell
    from lingflash.httpd.server import bind_socket

    config = _load(file)
    if config.ray.address == "local":
        require_engine()
    setup_logging(config.cluster.log_level)
    prepare(config, os.environ)
    from lingflash.cluster.on_ray import RayPlacer

    with bind_socket(config.cluster.host, config.cluster.port) as sock:
        host, port = sock.getsockname()[:2]
        placer = RayPlacer.connect(config)
        scale, model = config.scale, config.replica.model
        shown = f"[{host}]" if ":" in host else host

        def announce() -> None:
            tell(f"cluster of {scale.min} to {scale.most} replicas of {model}")
            tell(f"the directory is on http://{shown}:{port}")

        try:
            # asyncio's own loop: Ray's answers come from threads that know it.
            asyncio.run(serve_cluster(Controller(config, placer), sock, announce))
        finally:
            placer.close()


@app.command()
def status(file: File = _FILE) -> None:
    """Show replicas, machines, and why the last replica failed."""
    from lingflash.cluster.client import ask

    _print_status(ask(_load(file), "GET", "/status"))


@app.command()
def drain(
    replica: Annotated[str, typer.Argument(help="Its id, as `status` shows it.")],
    file: File = _FILE,
) -> None:
    """Put another replica in the place of one, which finishes what it has."""
    from lingflash.cluster.client import ask

    ask(_load(file), "POST", "/drain", {"replica": replica})
    typer.echo(f"{replica} goes when another is ready")


@app.command()
def restart(file: File = _FILE) -> None:
    """Put others in the place of all replicas, a few at a time, without a failed request."""
    from lingflash.cluster.client import ask

    answer = ask(_load(file), "POST", "/restart")
    typer.echo(f"{answer['replacing']} replicas go, each when another is ready")


@app.command()
def down(file: File = _FILE) -> None:
    """Drain all replicas and end the cluster; returns when it has ended."""
    from lingflash.cluster.client import ask, wait_gone

    config = _load(file)
    answer = ask(config, "POST", "/down")
    typer.echo(f"draining {answer['draining']} replicas")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(wait_gone(config))
        typer.echo("down")


def _load(file: Path) -> ClusterConfig:
    from lingflash.cluster.config import load_cluster

    return load_cluster(file, os.environ)


def _print_status(status: dict[str, Any]) -> None:
    predicted = status["predicted_first_token_s"]
    shown = "unknown" if predicted is None else f"{predicted:.2f} s"
    typer.echo(
        f"{status['wanted']} wanted of {status['min']} to {status['max']}; "
        f"a request would wait {shown} for its first token"
    )
    for each in status["replicas"]:
        notes = "" if each["is_current"] else ", to be replaced"
        load = f"{each['sequences']} of {each['capacity']} sequences" if each["capacity"] else "-"
        typer.echo(
            f"  {each['id']}  {each['state']} for {each['for_s']:.0f} s{notes}  "
            f"{each['url'] or each['node'] or '-'}  {load}, {each['sessions']} sessions"
        )
    for each in status["nodes"]:
        state = "alive" if each["alive"] else "gone"
        typer.echo(f"  machine {each['address']}: {state}, {each['cpus']:g} CPUs, "
                   f"{each['gpus']:g} GPUs")  # fmt: skip
    if status["last_error"] is not None:
        typer.echo(f"  the last that failed: {status['last_error']}")
