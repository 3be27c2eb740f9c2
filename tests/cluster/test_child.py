"""A replica's server as a child process: where it listens, how it ends, with whom."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import psutil
import pytest

from api_support import wait_until
from lingflash.cluster import child as module
from lingflash.cluster.child import ServeChild
from lingflash.cluster.config import ReplicaTable
from lingflash.protocol.replicas import Health

# What `ling serve` says and answers; its second SIGTERM would show.
SERVER = """
import http.server, json, os, signal, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        key = self.headers.get("authorization")
        body = json.dumps({"status": "ready", "model": key, "capacity": 4}).encode()
        self.send_response(200); self.send_header("content-length", len(body)); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Ready)
def stop(*args):
    print("draining", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *args: os._exit(3))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGALRM, lambda *args: os._exit(0))
print(f"serving toy on http://127.0.0.1:{server.server_port}/v1", file=sys.stderr, flush=True)
server.serve_forever()
"""
REPLICA = ReplicaTable(model="toy", drain_timeout_s=5.0)
READY = Health(ready=True, model="Bearer tok", capacity=4)


@pytest.fixture
def start(monkeypatch):
    started = []

    def start(script=SERVER):
        command = [sys.executable, "-c", script]
        monkeypatch.setattr(module, "_command", lambda replica, host: command)
        started.append(ServeChild(REPLICA, "127.0.0.1", "tok"))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each._process.wait(10)


async def test_child_when_it_says_where_it_listens_then_it_is_asked_with_the_token(start):
    child = start()
    assert await child.health() == Health(ready=False)
    await asyncio.to_thread(wait_until, lambda: child.url, 20)
    assert await child.health() == READY
    assert child.why_ended() is None


async def test_child_when_it_is_drained_twice_then_it_has_one_signal_and_ends(start):
    child = start()
    await asyncio.to_thread(wait_until, lambda: child.url, 20)
    await asyncio.gather(child.drain(), child.drain())
    assert child.why_ended() == (
        f"ling serve ended with exit code 0: serving toy on {child.url}/v1 / draining"
    )
    assert await child.health() == Health(ready=False)


async def test_child_when_it_cannot_start_then_its_last_words_are_told(start):
    child = start("import sys; sys.exit('error: no such model')")
    await asyncio.to_thread(wait_until, lambda: child.why_ended() and child._lines, 20)
    assert child.why_ended() == "ling serve ended with exit code 1: error: no such model"


async def test_child_when_it_is_slow_to_answer_then_it_is_as_it_was_and_later_hangs(
    start, monkeypatch
):
    child = start()
    await asyncio.to_thread(wait_until, lambda: child.url, 20)
    assert await child.health() == READY

    async def nothing(address):
        return None

    monkeypatch.setattr(module, "probe", nothing)
    assert await child.health() == READY
    child._heard_s -= module._DEAF_S
    assert await child.health() == Health(ready=False)
    assert child.why_ended() is None
    child._heard_s -= module._HUNG_S
    assert child.why_ended() == "ling serve hangs: it has not answered for 60 s"


def test_serve_child_when_its_parent_is_killed_then_it_ends():
    """What it runs asks a server that never answers, so it would not end by itself."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.settimeout(60)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        parent = f"""
import os, subprocess, sys
words = [sys.executable, "-m", "lingflash.cluster.serve_child", str(os.getpid())]
child = subprocess.Popen([*words, "chat", "--url", "{url}"], stdin=subprocess.PIPE)
child.stdin.write(b"hi")
child.stdin.close()
print(child.pid, flush=True)
sys.stdin.read()
"""
        process = subprocess.Popen(
            [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        child = psutil.Process(int(process.stdout.readline()))
        with sock.accept()[0]:
            assert child.status() != psutil.STATUS_ZOMBIE
            process.kill()
            process.communicate()
            wait_until(lambda: not child.is_running() or child.status() == "zombie", 20)
