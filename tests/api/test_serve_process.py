"""`ling serve` with a real engine process: death, restart, broken checkpoints, exit codes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading

import httpx
import psutil
import pytest

from api_support import wait_until
from lingflash.core.hub import bundled_folder


class Serve:
    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from lingflash.cli import main; main()", "serve", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        self.url = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.said += line
            if line.startswith("serving "):
                self.url = line.split(" on ")[1].strip().removesuffix("/v1")

    def wait_serving(self):
        wait_until(lambda: self.url or self.process.poll() is not None, timeout_s=30)
        assert self.url, self.said

    def wait(self, timeout_s=20):
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def engine(self):
        (child,) = psutil.Process(self.process.pid).children()
        return child


@pytest.fixture
def serve():
    started = []

    def start(*arguments):
        started.append(Serve("--port", "0", "--max-num-seqs", "4", *arguments))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.wait()


def is_ready(url):
    return httpx.get(url + "/ready").status_code == 200


def test_serve_when_the_engine_is_killed_then_restarted_as_told_and_then_exit_1(serve):
    server = serve("--engine-restarts", "1")
    server.wait_serving()
    server.engine().kill()
    wait_until(lambda: not is_ready(server.url))
    wait_until(lambda: is_ready(server.url), timeout_s=30)
    answer = httpx.post(server.url + "/v1/completions", json={"prompt": [3], "max_tokens": 2})
    assert answer.status_code == 200
    server.engine().kill()
    assert server.wait() == 1
    assert "error: The engine is gone and no restarts are left. The engine process " in server.said
    assert "was ended by SIGKILL (perhaps the kernel's out-of-memory killer).\n" in server.said
    assert "Traceback" not in server.said


def test_serve_when_the_checkpoint_is_truncated_then_one_line_and_exit_1(serve, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder(), folder)
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:100_000])
    server = serve(str(folder))
    assert server.wait(30) == 1
    assert server.said.startswith(f"error: {shard} is truncated")
    assert server.said.count("\n") == 1


def test_serve_when_stopped_while_loading_then_exit_0_and_no_engine_stays(serve):
    server = serve()
    parent = psutil.Process(server.process.pid)
    wait_until(lambda: parent.children() or server.process.poll() is not None, timeout_s=20)
    child = parent.children()[0]
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0, server.said
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert "Traceback" not in server.said
