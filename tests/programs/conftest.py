"""Fixtures of the programs' tests: installed programs, and cells to run them in."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cell import Cell, Record
from clients_support import missing_client
from install import NotInstalledError, install

SERVE = Path(__file__).parent / "serve.py"


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


def write_png(path, size=16):
    """A red square."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\xff\0\0" * size for _ in range(size)))
    data = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
