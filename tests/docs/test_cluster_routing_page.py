"""docs/cluster-routing.md has the numbers of the code, and its commands run."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from lingflash.cli import app
from lingflash.gateway.routing import belief, replicas

PAGE = (Path(__file__).parents[2] / "docs" / "cluster-routing.md").read_text(encoding="utf-8")


def test_page_then_its_numbers_are_those_of_the_code():
    assert f"beyond\n{replicas.BOUND} times" in PAGE
    assert replicas.CROWDED == 2
    assert "twice as many answers" in PAGE
    assert f"count as {belief.STATE_TOKENS:,} tokens" in PAGE
    assert f"{belief.MAX_PLACES:,} places" in PAGE
    assert all(f"`{each}`" in PAGE for each in replicas.BALANCES if each != "belief")


def test_page_then_the_flags_of_its_commands_are_there():
    commands = typer.main.get_command(app).commands["cluster"].commands
    shown = re.findall(r"^    ling cluster (\w+)(.*)$", PAGE, re.MULTILINE)
    assert shown
    for name, words in shown:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", words)) <= options
    flags = re.findall(r"`(--[\w-]+)`", PAGE)
    simulate = {o for parameter in commands["simulate"].params for o in parameter.opts}
    assert set(flags) <= simulate
