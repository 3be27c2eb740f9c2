"""The server as a process: signals, drain, exit codes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from api_support import parse_events, wait_until

SCRIPT = Path(__file__).parents[1] / "serve_scripted.py"


@pytest.fixture
def start(toy_folder):
    processes = []

    def run(drain_timeout_s, *more):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(toy_folder), str(drain_timeout_s), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        port = int(process.stdout.readline())
        return process, f"http://127.0.0.1:{port}"

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def ask_in_thread(url, results, **fields):
    def ask():
        body = {"prompt": "x", "max_tokens": 1000, **fields}
        results.append(httpx.post(url + "/v1/completions", json=body, timeout=20))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def running(url):
    return "lingflash_num_requests_running 1.0" in httpx.get(url + "/metrics").text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_when_a_request_runs_then_it_finishes_new_ones_get_503_and_exit_is_0(start, number):
    process, url = start(20)
    results = []
    thread = ask_in_thread(url, results, max_tokens=60)
    wait_until(lambda: running(url))
    process.send_signal(number)
    wait_until(lambda: httpx.get(url + "/ready").status_code == 503)
    assert httpx.get(url + "/health").status_code == 200
    refused = httpx.post(url + "/v1/completions", json={"prompt": "x"})
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    thread.join()
    assert results[0].status_code == 200
    assert results[0].json()["choices"][0]["finish_reason"] == "length"
    assert process.wait(5) == 0
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("stream", [False, True])
def test_drain_when_time_is_up_then_aborted_with_an_error_and_exit_is_0(start, stream):
    process, url = start(0.2)
    results = []
    thread = ask_in_thread(url, results, stream=stream)
    wait_until(lambda: running(url))
    process.send_signal(signal.SIGTERM)
    thread.join()
    if stream:
        assert results[0].status_code == 200
        error = parse_events(results[0].content)[-1]["error"]
    else:
        assert results[0].status_code == 503
        error = results[0].json()["error"]
    assert "shutting down" in error["message"]
    assert process.wait(5) == 0


def test_signal_when_sent_twice_then_the_drain_is_cut_short(start):
    process, url = start(60)
    results = []
    thread = ask_in_thread(url, results)
    wait_until(lambda: running(url))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    thread.join()
    assert process.wait(5) == 0


def test_signal_when_nothing_runs_then_a_quick_end(start):
    process, url = start(60)
    with httpx.Client() as client:  # an idle kept-alive connection must not hold it up
        client.get(url + "/health")
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert time.monotonic() - started < 2


def test_signal_when_work_and_half_a_body_are_left_then_it_ends_within_the_limit(start):
    process, url = start(3)
    results = []
    thread = ask_in_thread(url, results)
    wait_until(lambda: running(url))
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        wait_until(lambda: "lingflash_connections_open 3.0" in httpx.get(url + "/metrics").text)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - started < 3.5, "the limit, and time to leave the process"
    thread.join()
    assert "shutting down" in results[0].json()["error"]["message"]
    assert "Traceback" not in process.stderr.read()


def test_engine_when_gone_for_good_then_exit_is_1_with_one_line(start):
    process, _ = start(20, "die")
    assert process.wait(10) == 1
    stderr = process.stderr.read()
    assert "error: The engine is gone and no restarts are left." in stderr
    assert "Traceback" not in stderr
