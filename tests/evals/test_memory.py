"""Ten thousand items with 64 in flight, against the real server around a scripted engine."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import httpx
import pytest

from evals_support import write_choices
from lingflash.core.hub import bundled_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MOST_BYTES = 500e6
# Its own peak, by itself: wait4's of a child counts its parent's memory from before the exec.
PROGRAM = """
import re, sys
from pathlib import Path
from lingflash.cli import main
peak = Path(sys.argv.pop(1))
try:
    main()
finally:
    peak.write_text(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_eval_when_there_are_ten_thousand_items_then_it_stays_under_500_megabytes(tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    module = "lingflash.bench.over_http.scripted_server"
    server = subprocess.Popen([sys.executable, "-m", module, str(bundled_folder()), str(port), "0"])
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
                break
            except httpx.HTTPError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        questions = write_choices(tmp_path / "q.jsonl", 10_000)
        command = [
            *(sys.executable, "-c", PROGRAM, str(tmp_path / "peak"), "eval", "file"),
            *(str(questions), "--kind", "choice", "--base-url", url, "--model", model),
            *("--concurrency", "64", "--max-tokens", "16", "--out", str(tmp_path / "out.jsonl")),
        ]
        subprocess.run(command, check=True)
        assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 10_001
        peak = int((tmp_path / "peak").read_text()) * 1024
        print(f"{peak / 1e6:.0f} MB at most")
        assert 50e6 < peak < MOST_BYTES
    finally:
        server.terminate()
        server.wait(30)
