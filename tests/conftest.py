"""Test-wide setup: the support modules beside the tests can be imported, torch uses few threads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lingflash.core.log import flush_logs

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "programs")]
# Two test workers share two cores; torch must not start a thread per core in each.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _log_written():
    """What a test logs is written before the next one looks at standard error."""
    yield
    flush_logs()
