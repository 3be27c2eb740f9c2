"""Options of the command line, made from the settings, and what several commands share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from lingflash.api.config import ServerConfig
from lingflash.core.config import BUNDLED_MODEL, EngineConfig
from lingflash.core.errors import ConfigError
from lingflash.core.processor import CpuSettings, choose_processor
from lingflash.core.settings import PREFIX, Setting, nearest, settings_of
from lingflash.sandbox.config import SandboxConfig

SETTINGS = (EngineConfig, ServerConfig, SandboxConfig, CpuSettings)
"""The classes whose settings are variables of the environment, and options of some command."""


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse variables that begin with LINGFLASH_ and mean nothing here, and keys that are none.

    A misspelt setting that does nothing is worse than a refused start, and so is a secret that was
    never filled in: without its key the server would serve everybody.

    Args:
        environ: such as os.environ.

    Raises:
        ConfigError: one is unknown; the message names it and the closest known one. Or one that is
            for a key is set and holds none. Or this processor has not the class of kernels.
    """
    known = {each.variable: each for cls in SETTINGS for each in settings_of(cls).values()}
    for name in sorted(environ):
        if name in known and known[name].is_secret and not environ[name].strip():
            raise ConfigError(
                f"The environment variable {name} is set, but holds no key. Give it one, or unset "
                "it to run without.",
                param=name,
            )
        if name.startswith(PREFIX) and name not in known:
            raise ConfigError(
                f"The environment variable {name} is not known{nearest(name, known)} "
                "Unset it, or see `ling serve --help` for those that are.",
                param=name,
            )
    choose_processor(environ)


def takes_options(**only: Collection[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of its settings.

    A parameter of the command that is annotated with one of SETTINGS becomes the options of that
    class's fields; the command gets the value made from them. Its other parameters are typer's.

    Args:
        only: by the parameter's name the fields that are options; all, if it is not named.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        taken: dict[str, list[Setting]] = {}
        for each in inspect.signature(command).parameters.values():
            hint = hints[each.name]
            if hint in SETTINGS:
                settings = settings_of(hint)
                taken[each.name] = [settings[name] for name in only.get(each.name, settings)]
                parameters += map(_parameter, taken[each.name])
            else:
                parameters.append(each.replace(annotation=hint, kind=each.KEYWORD_ONLY))

        @functools.wraps(command)
        def run(**options: Any) -> None:
            made = {}
            for name, settings in taken.items():
                typed = {each: options.pop(each.name) for each in settings}
                made[name] = hints[name](
                    **{
                        each.name: _read(each, value)
                        for each, value in typed.items()
                        if value is not None and value != []
                    }
                )
            command(**options, **made)

        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]  # what typer reads
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(setting: Setting) -> inspect.Parameter:
    """A setting as a parameter that typer makes an option of."""
    kind, default = setting.type, setting.as_typed(setting.default)
    if get_origin(kind) is tuple:
        kind, default = list[get_args(kind)[0]], None
    elif setting.parse is not None or get_origin(kind) is Literal:
        kind = str
    elif setting.unit != 1:
        kind = float
    if default is None:
        kind = kind | None
    shown: dict[str, Any] = {"envvar": setting.variable, "help": setting.help}
    if setting.flag.startswith("--"):
        is_switch = setting.type in (bool, bool | None) and setting.default is not False
        off = f"/--no{setting.flag[1:]}" if is_switch else ""
        info = typer.Option(setting.flag + off, metavar=setting.metavar, **shown)
    else:
        metavar = setting.flag if default is dataclasses.MISSING else f"[{setting.flag}]"
        info = typer.Argument(metavar=metavar, show_envvar=True, **shown)
    default = inspect.Parameter.empty if default is dataclasses.MISSING else default
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, info],
    )


def refuse_endless_numbers(command: Any) -> None:
    """Let no option of a command, or of those below it, be nan or inf.

    Args:
        command: what typer makes of an app.
    """
    for each in command.params:
        each.callback = functools.partial(_finite, each.callback)
    for below in getattr(command, "commands", {}).values():
        refuse_endless_numbers(below)


def _finite(callback: Callable[..., Any] | None, context: Any, option: Any, value: Any) -> Any:
    numbers = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(each, float) and not math.isfinite(each) for each in numbers):
        shown = ", ".join(map(str, numbers))
        raise ConfigError(f"{option.opts[0]} is {shown}; allowed: a number that is finite.")
    return value if callback is None else callback(context, option, value)


def _read(setting: Setting, typed: Any) -> Any:
    """The field's value from what was typed."""
    if setting.parse is not None:
        return setting.parse(typed)
    if setting.unit != 1:
        return int(typed * setting.unit)
    return tuple(typed) if isinstance(typed, list) else typed


def served_name(model: str) -> str:
    """The name under which a model is served: a folder's last part, or what was given."""
    if model != BUNDLED_MODEL and Path(model).expanduser().is_dir():
        return Path(model).expanduser().resolve().name
    return model


class LoadingBar(AbstractContextManager["LoadingBar"]):
    """A progress bar for reading weights; shows nothing where the output is no terminal.

    Args:
        label: what is loaded.
    """

    def __init__(self, label: str) -> None:
        self._progress = Progress(
            TextColumn("loading {task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not Console(stderr=True).is_terminal,
        )
        self._task = self._progress.add_task(label, total=None)

    def __enter__(self) -> LoadingBar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def update(self, done_bytes: int, total_bytes: int) -> None:
        """Show how many bytes have been read."""
        self._progress.update(self._task, completed=done_bytes, total=total_bytes)
        if done_bytes >= total_bytes:
            self._progress.stop()


def new_event_loop() -> Callable[[], Any] | None:
    """The factory of the faster event loop, None where it is not installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
