"""The texts beside this file: pools of words, wordings, names of arguments."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any


def read_text(file: str) -> str:
    """A file of this folder."""
    return resources.files("lingflash.train.data").joinpath(file).read_text(encoding="utf-8")


def read_table(file: str) -> dict[str, Any]:
    """A TOML file of this folder."""
    return tomllib.loads(read_text(file))


WORDINGS: dict[str, list[str]] = read_table("wordings.toml")
POOLS = {name: tuple(words.split()) for name, words in read_table("pools.toml").items()}
# Verbs that mean the same, the plainest first.
VERB_GROUPS = tuple(tuple(line.split()) for line in read_text("verbs.txt").splitlines())
NAMES = read_table("names.toml")
