"""A log that nobody reads stops nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import time

_CHATTY = """
import logging, sys, time
from lingflash.core.log import log_event, setup_logging, tell
setup_logging()
logger = logging.getLogger("lingflash.test")
started = time.monotonic()
for number in range(40_000):
    log_event(logger, "said", {"number": number, "text": "x" * 100})
tell("the last word")
print(time.monotonic() - started, flush=True)
sys.stdin.readline()
log_event(logger, "after", {})
"""


def _chatty(**streams) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _CHATTY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **streams,
    )


def test_log_when_nobody_reads_then_work_goes_on_and_lines_are_counted():
    process = _chatty(stderr=subprocess.PIPE)
    assert float(process.stdout.readline()) < 20  # it would wait for ever
    # Now somebody reads: what was kept, how much was not, and what comes after.
    _, err = process.communicate("go\n", timeout=30)
    assert process.returncode == 0
    lines = err.splitlines()
    assert lines[0].endswith("text=" + "x" * 100)
    assert len(lines) < 40_000
    dropped = [line for line in lines if "event=log_lines_dropped" in line]
    assert (
        sum(int(line.rsplit("=", 1)[1]) for line in dropped) + len(lines) - len(dropped) >= 40_001
    )


def test_log_when_nobody_ever_reads_then_the_process_still_ends():
    process = _chatty(stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdin.write("go\n")
    process.stdin.flush()
    started = time.monotonic()
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - started < 20
    process.stderr.close()


def test_log_when_its_reader_is_gone_or_it_was_never_open_then_the_process_ends_well():
    read, write = os.pipe()
    os.close(read)
    process = _chatty(stderr=write)
    os.close(write)
    assert process.communicate("go\n", timeout=60)[1] is None
    assert process.returncode == 0
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", _CHATTY],
        input="go\n",
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert closed.returncode == 0
