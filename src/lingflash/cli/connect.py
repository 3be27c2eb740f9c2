"""`ling connect`: the settings that make a program use a running server."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from lingflash.api.config import ServerConfig
from lingflash.cli.connect_program import Program, Settings
from lingflash.cli.connect_programs import PROGRAMS
from lingflash.core.errors import ConfigError
from lingflash.core.settings import nearest, settings_of

KEY_VARIABLE = settings_of(ServerConfig)["api_keys"].variable
# What a server without keys is sent: clients refuse to start without one.
NO_KEY = "none"


def connect(
    program: Annotated[
        str | None, typer.Argument(help="Such as codex or claude-code; all are listed without it.")
    ] = None,
    url: Annotated[
        str, typer.Option("--url", help="The running server.")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar=KEY_VARIABLE, help="Key for it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="One of its names; the first if left out.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the program's settings file, and show how.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --write: also change settings that are there.")
    ] = False,
) -> None:
    """Print or write the settings of a program, and say what the server lacks for it."""
    if program is None:
        typer.echo(_list_programs())
        return
    if program not in PROGRAMS:
        raise ConfigError(
            f"{program!r} is not among the programs{nearest(program, PROGRAMS)} "
            "`ling connect` lists those that were tried.",
            param="program",
        )
    if force and not write:
        raise ConfigError("--force changes what --write does; give both.", param="force")
    from lingflash.cli.connect_check import ask_server

    chosen = PROGRAMS[program]
    key = ((api_key or "").split() or [None])[0]  # the variable may hold several, for `ling serve`
    server = asyncio.run(ask_server(url, key, model))
    settings = Settings(
        url=server.url, model=server.model, key=key or NO_KEY, context=server.context
    )
    if write:
        from lingflash.cli.connect_files import write_settings

        write_settings(chosen, settings, force=force, say=typer.echo)
    typer.echo(describe(chosen, settings, with_files=not write))
    lacks = server.lacks_for(chosen)
    for sentence in lacks:
        typer.echo(f"lacks: {sentence}", err=True)
    if lacks:
        raise typer.Exit(1)


def describe(program: Program, settings: Settings, *, with_files: bool = True) -> str:
    """The settings as text: files, variables, code, what to start, what to know."""
    from lingflash.cli.connect_files import home_path

    blocks = [f"{program.title} (tried: {program.package} {program.version})"]
    for name, text in program.files.items() if with_files else ():
        blocks.append(f"# {home_path(name)}\n{settings.fill(text).rstrip()}")
    if program.environment:
        blocks.append("# variables\n" + "\n".join(export_lines(program, settings)))
    if program.code:
        blocks.append(f"# {program.language}\n{settings.fill(program.code).rstrip()}")
    if program.start:
        blocks.append(f"# start\n{settings.fill_shell(program.start)}")
    if program.notes:
        blocks.append(program.notes)
    return "\n\n".join(blocks) + "\n"


def export_lines(program: Program, settings: Settings) -> list[str]:
    """The program's variables as a shell takes them."""
    return [
        f"export {name}={settings.fill_shell(value)}" for name, value in program.environment.items()
    ]


def _list_programs() -> str:
    width = max(map(len, PROGRAMS))
    lines = (
        f"{each.name:<{width}}  {each.title}, {each.package} {each.version}"
        for each in PROGRAMS.values()
    )
    return "\n".join(lines)
