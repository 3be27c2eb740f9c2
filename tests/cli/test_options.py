"""Options that are made from settings: types, defaults, variables, what a command gets."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import pytest
import typer
from typer.testing import CliRunner

from lingflash.cli import app, main, options
from lingflash.core.errors import ConfigError
from lingflash.core.settings import setting, settings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    VARIABLE_PREFIX: ClassVar[str] = "LINGFLASH_GATEWAY_"

    config_file: Path = setting(MISSING, "Which servers there are.", flag="FILE")
    port: int = setting(9000, "0 takes a free one.")
    policy: Literal["cache", "random"] = setting("cache", "cache or random.")
    servers: tuple[str, ...] = setting((), "A server.", flag="--server")
    weights: dict[str, Any] | None = setting(None, "As JSON.", parse=json.loads, metavar="JSON")
    body_bytes: int = setting(2**20, "In MiB.", flag="--max-body-mb", unit=2**20)
    retry: bool = setting(True, "Ask again.")
    quiet: bool = setting(False, "Say less.")


@pytest.fixture
def run(monkeypatch):
    """Run a command that takes all; give what it got, or its output."""
    monkeypatch.setattr(options, "SETTINGS", (Gateway,))
    got = {}
    app = typer.Typer()

    @app.command()
    @options.takes_options(config=("config_file", "port"))
    def check(config: Gateway) -> None:
        got["config"] = config

    @app.command()
    @options.takes_options()
    def gateway(config: Gateway, dry: Annotated[bool, typer.Option("--dry")] = False) -> None:
        """Say hello."""
        got.update(config=config, dry=dry)

    def run_it(*arguments, env=None, fails=False):
        got.clear()
        result = CliRunner().invoke(app, list(arguments), env=env)
        if isinstance(result.exception, ConfigError):
            raise result.exception
        assert (result.exit_code != 0) == fails, result.output
        return dict(got) if got else result.output

    return run_it


def test_options_when_left_out_then_the_fields_defaults(run):
    assert run("gateway", "f") == {"config": Gateway(config_file=Path("f")), "dry": False}


def test_options_when_typed_then_the_fields_values(run):
    got = run(
        *("gateway", "f", "--dry", "--port", "1", "--policy", "random"),
        *("--server", "a", "--server", "b", "--weights", '{"a": 2}', "--max-body-mb", "0.5"),
        *("--no-retry", "--quiet"),
    )
    wanted = Gateway(
        config_file=Path("f"),
        port=1,
        policy="random",
        servers=("a", "b"),
        weights={"a": 2},
        body_bytes=2**19,
        retry=False,
        quiet=True,
    )
    assert got == {"config": wanted, "dry": True}


def test_options_when_variables_are_set_then_they_stand_for_the_flags(run):
    env = {
        "LINGFLASH_GATEWAY_FILE": "f",
        "LINGFLASH_GATEWAY_PORT": "2",
        "LINGFLASH_GATEWAY_SERVER": "a b",
        "LINGFLASH_GATEWAY_RETRY": "no",
    }
    options.check_environment(env)
    wanted = Gateway(config_file=Path("f"), port=2, servers=("a", "b"), retry=False)
    assert run("gateway", env=env)["config"] == wanted
    assert run("gateway", "--port", "3", env=env)["config"].port == 3
    with pytest.raises(ConfigError, match="did you mean LINGFLASH_GATEWAY_PORT"):
        options.check_environment({"LINGFLASH_GATEWAY_PORTS": "2"})


def test_options_when_only_some_are_asked_for_then_no_others_exist(run):
    assert run("check", "f", "--port", "5")["config"].port == 5
    assert "--policy" in run("check", "f", "--policy", "cache", fails=True)


def test_options_when_needed_and_missing_then_refused(run):
    assert "FILE" in run("gateway", fails=True)


def _number_options(command, path=()):
    """Every option that takes fractions: the words of its command, its flag, how many."""
    for name, below in getattr(command, "commands", {}).items():
        yield from _number_options(below, (*path, name))
    for each in command.params:
        if "float" in str(each.type_descriptor.annotation):
            yield pytest.param(path, each.opts[0], each.nargs, id=" ".join((*path, each.opts[0])))


@pytest.mark.parametrize("wrong", ["nan", "1e400"])
@pytest.mark.parametrize(("path", "flag", "count"), [*_number_options(typer.main.get_command(app))])
def test_number_when_it_is_none_then_refused_before_anything_begins(
    path, flag, count, wrong, capsys
):
    values = ["1"] * (count - 1) + [wrong]
    with pytest.raises(SystemExit) as done:
        main([*path, flag, *values])
    assert done.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert flag in said  # where a least value is given, that is told first
    assert said.endswith(
        ("allowed: a number that is finite.\n", " or equal to 0\n", " or equal to 1\n")
    )


@pytest.mark.parametrize("cls", options.SETTINGS, ids=lambda cls: cls.__name__)
def test_settings_when_a_number_is_none_or_below_all_then_refused(cls):
    defaults = {n: "x" for n, each in settings_of(cls).items() if each.default is MISSING}
    for name, each in settings_of(cls).items():
        kinds = get_args(each.type) or (each.type,)
        if not {int, float} & set(kinds):
            continue
        endless = [float("nan"), float("inf"), float("-inf")] if float in kinds else []
        for wrong in (*endless, -(10**30)):
            with pytest.raises(ConfigError, match=f"^{each.flag} is .*; allowed: "):
                cls(**{**defaults, name: wrong})


def test_help_then_the_settings_helps_defaults_and_variables(run):
    text = " ".join(run("gateway", "--help", env={"COLUMNS": "200"}).split())
    for words in (
        "Say hello.",
        "0 takes a free one. [env var: LINGFLASH_GATEWAY_PORT] [default: 9000]",
        "--retry --no-retry",
        "In MiB. [env var: LINGFLASH_GATEWAY_MAX_BODY_MB] [default: 1.0]",
        "JSON As JSON.",
    ):
        assert words in text
