"""Java's HttpClient as it is: over cleartext it offers `Upgrade: h2c` with its first request."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients_support import missing_client
from program_cell import KEY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SOURCE = Path(__file__).parent / "drivers" / "Streaming.java"


def test_java_client_when_streaming_with_its_defaults_then_every_answer_is_whole(make_cell):
    if shutil.which("javac") is None:
        missing_client("no JDK is installed; tests/install-debian.sh installs it")
    cell = make_cell(lambda _: {"tool": "none", "turns": [], "other": "I am here.", "keys": [KEY]})
    # One source file is compiled and run at once, with a small heap.
    done = cell.run(["java", "-Xmx256m", str(SOURCE)])
    print(done)
    assert done.code == 0
    said = ["one: I am here.", "two: I am here.", "several: I am here.", "several: I am here."]
    assert done.out.splitlines() == said
    assert cell.record.refused() == []
