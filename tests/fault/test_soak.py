"""Many clients with random lengths, aborts and malformed requests leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time

import httpx
import pytest

from api_support import RunningServer, engine_info, write_toy_model
from lingflash.api.config import ServerConfig
from lingflash.link.scripted import Behaviour

NUM_CLIENTS = 32
MALFORMED = [
    b"",
    b"{",
    b'{"prompt": 5}',
    b'{"prompt": [1], "frobnicate": 1}',
    b'{"prompt": [1], "top_p": 7}',
    b'{"prompt": [999999999]}',
    b'{"model": "nope", "prompt": [1]}',
    b'{"prompt": ' + json.dumps([1] * 300_000).encode() + b"}",
]


async def _client(base_url, number, until, statuses):
    rng = random.Random(number)
    async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:
        while time.monotonic() < until:
            kind = rng.random()
            if kind < 0.15:
                response = await client.post("/v1/completions", content=rng.choice(MALFORMED))
                statuses.append(response.status_code)
                continue
            body = {
                "prompt": [[3] * rng.randint(1, 300)] * rng.choice([1, 1, 1, 2]),
                "max_tokens": rng.randint(1, 60),
                "n": rng.choice([1, 1, 1, 3]),
                "stream": rng.random() < 0.5,
                "ignore_eos": True,
            }
            work = asyncio.create_task(_ask(client, body, statuses))
            if kind < 0.45:
                await asyncio.sleep(rng.random() * 0.1)
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)


async def _ask(client, body, statuses):
    async with client.stream("POST", "/v1/completions", json=body) as response:
        await response.aread()
        statuses.append(response.status_code)


def soak(base_url, seconds):
    statuses = []

    async def run():
        until = time.monotonic() + seconds
        await asyncio.gather(*(_client(base_url, i, until, statuses) for i in range(NUM_CLIENTS)))

    asyncio.run(run())
    return statuses


def metrics(base_url):
    values = {}
    for line in httpx.get(base_url + "/metrics").text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    return values


def assert_nothing_is_left(base_url, before):
    deadline = time.monotonic() + 10
    while True:
        after = metrics(base_url)
        left = {
            name: (before[name], after[name])
            for name in (
                "lingflash_num_requests_running",
                "lingflash_num_requests_waiting",
                "lingflash_kv_blocks_free",
                "lingflash_state_slots_free",
                "lingflash_http_requests_in_flight",
                "lingflash_asyncio_tasks",
            )
            if before[name] != after[name]
        }
        if not left:
            return after
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_soak_when_the_engine_is_scripted_then_nothing_is_left(tmp_path):
    server = RunningServer(
        {(): [5] * 1000},
        config=ServerConfig(model_folder=write_toy_model(tmp_path)),
        info=engine_info(max_num_waiting=8),
        behaviour=Behaviour(delay_s=0.001),
    )
    try:
        server.complete([1], max_tokens=1)
        before = metrics(server.base_url)
        statuses = soak(server.base_url, 4)
        after = assert_nothing_is_left(server.base_url, before)
        assert set(statuses) <= {200, 400, 404, 429}
        assert {200, 400} <= set(statuses)
        assert after["lingflash_requests_aborted_total"] > 0
        assert not server.state.in_flight
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_soak_when_the_engine_is_real_then_nothing_is_left():
    seconds = float(os.environ.get("SOAK_SECONDS", "300"))
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from lingflash.cli import main; main()"),
            *("serve", "--port", "0", "--max-num-waiting", "16", "--log-level", "warning"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        base_url = ""
        while not base_url:
            line = process.stderr.readline()
            assert line, "the server ended before it could serve"
            if line.startswith("serving "):
                base_url = line.split(" on ")[1].strip().removesuffix("/v1")
        httpx.post(base_url + "/v1/completions", json={"prompt": [3], "max_tokens": 1}, timeout=60)
        time.sleep(1)  # for the engine's next gauges
        before = metrics(base_url)
        statuses = soak(base_url, seconds)
        after = assert_nothing_is_left(base_url, before)
        assert set(statuses) <= {200, 400, 404, 429}
        assert after["lingflash_requests_aborted_total"] > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
