"""The `ling` command. Imports nothing heavy: torch is loaded only by the commands that need it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from lingflash import __version__
from lingflash.bench.command import app as bench_app
from lingflash.cli.bill import bill
from lingflash.cli.chat import chat
from lingflash.cli.cluster import app as cluster_app
from lingflash.cli.connect import connect
from lingflash.cli.convert import convert_command
from lingflash.cli.doctor import doctor
from lingflash.cli.gateway import app as gateway_app
from lingflash.cli.options import check_environment, refuse_endless_numbers
from lingflash.cli.report import report
from lingflash.cli.sandbox import sandbox
from lingflash.cli.serve import serve
from lingflash.core.errors import ConfigError, LingflashError
from lingflash.core.extras import naming_extras
from lingflash.evals.command import eval_command
from lingflash.train.command import train_command

app = typer.Typer(
    name="ling",
    help="Run Ling-2.6-flash and its family: serve, chat, see what fits, convert, train, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"lingflash {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    # Typer needs a callback to hang options of the program itself on.
    pass


app.command()(serve)
app.command()(sandbox)
app.command()(chat)
app.command()(connect)
app.command()(bill)
app.command()(doctor)
app.command("convert")(convert_command)
app.command("train")(train_command)
app.add_typer(gateway_app, name="gateway")
app.add_typer(cluster_app, name="cluster")
app.command("eval")(eval_command)
app.command()(report)
app.add_typer(bench_app, name="bench")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 for success, 2 for wrong use, 1 for everything else.

    Args:
        arguments: None takes those of the process.
    """
    sys.exit(report_errors(lambda: _run(arguments)))


def _run(arguments: Sequence[str] | None) -> int:
    check_environment(os.environ)
    command = typer.main.get_command(app)
    refuse_endless_numbers(command)
    args = None if arguments is None else list(arguments)
    result = command.main(args=args, prog_name="ling", standalone_mode=False)
    return result if isinstance(result, int) else 0


def report_errors(work: Callable[[], int | None]) -> int:
    """Run something; print an error of ours as one line instead of a traceback.

    Args:
        work: returns an exit code, None meaning 0.

    Returns:
        The exit code for the process.
    """
    try:
        with naming_extras():
            return work() or 0
    except ConfigError as error:
        return _complain(error.message, 2)
    except LingflashError as error:
        return _complain(error.message, 1)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`ling doctor | head`) has seen enough; nothing may be flushed now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Wrong use of the command line; its class lives in a private module of typer.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _complain(message(), getattr(error, "exit_code", 2))


def _complain(message: str, code: int) -> int:
    line = " ".join(message.split("\n")).strip() if code == 2 else message.strip()
    if line:
        print(f"error: {line}", file=sys.stderr)
    return code
