"""Fixtures of the programs' tests: installed programs, and cells to run them in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from clients_support import missing_client
from program_cell import Cell, Record
from program_install import NotInstalledError, install

SERVE = Path(__file__).parent / "program_serve.py"


@pytest.fixture
def installed():
    """Install a lock; gives the folder of its commands.

    SKIP_PROGRAMS names those that this machine's registries do not give, separated by spaces.
    """

    def get(lock):
        if lock in os.environ.get("SKIP_PROGRAMS", "").split():
            pytest.skip(f"SKIP_PROGRAMS names {lock}")
        try:
            return install(lock)
        except NotInstalledError as error:
            missing_client(f"{lock} cannot be installed here: {error}")

    return get


@pytest.fixture
def make_cell(tmp_path):
    """Start a cell around the scripted server or, without a scenario, around ling-nano."""
    cells = []

    def make(scenario=None, *flags):
        folder = tmp_path / str(len(cells))
        folder.mkdir()
        record = Record(folder / "record.jsonl")
        if scenario is None:
            command = [sys.executable, str(SERVE), "ling-nano", *flags]
        else:
            path = folder / "scenario.json"
            path.write_text(json.dumps({"context": 262_144, **scenario(folder / "work")}))
            command = [sys.executable, str(SERVE), "scripted", str(path), str(record.path)]
        cells.append(Cell(folder, command, record))
        return cells[-1]

    yield make
    for cell in cells:
        cell.close()
