"""`ling gateway` killed with 64 streams on it: the budget holds, and every request has its row."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import httpx
import pytest
from sqlalchemy import select

from gateway_upstream import CACHED_TOKENS, PROMPT_TOKENS, upstream_in_a_thread
from lingflash.store.database import Database
from lingflash.store.tables import generation

MAIN = (sys.executable, "-c", "from lingflash.cli import main; main()")
WORDS = 20
# Of the prices below, as the upstream counts: 6 new, 4 cached and 20 output tokens.
COST_PICO = (PROMPT_TOKENS - CACHED_TOKENS) * 100_000 + CACHED_TOKENS * 20_000 + WORDS * 300_000
LIMIT_PICO = 150 * COST_PICO

FILE = """
[server]
port = 0

[accounts]
database = "{database}"
lease_s = 3
progress_s = 0.1

[[upstream]]
name = "Novita"
base_url = "{url}"
dialects = ["chat"]
allow_private_address = true

[[model]]
name = "test/model"

[[model.endpoint]]
upstream = "Novita"
context_tokens = 8192

[[model.endpoint.price]]
prompt = 0.10
completion = 0.30
cache_read = 0.02
"""


@pytest.fixture
def gateways(tmp_path, database_url):
    """A function that starts a gateway on the one database; those that are left are killed."""
    started = []

    def start(upstream) -> tuple[subprocess.Popen[bytes], str]:
        (tmp_path / "gateway.toml").write_text(FILE.format(url=upstream.url, database=database_url))
        log = tmp_path / f"log{len(started)}"
        with log.open("w") as out:
            started.append(subprocess.Popen([*MAIN, "gateway"], stderr=out, cwd=tmp_path))
        deadline = time.monotonic() + 60
        while " on http" not in log.read_text():
            assert started[-1].poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (line,) = [each for each in log.read_text().splitlines() if each.startswith("gateway to ")]
        return started[-1], line.split(" on ")[1].split("/v1")[0]

    yield start
    for each in started:
        if each.poll() is None:
            each.kill()
            each.wait()


async def ask_until(url: str, key: str, seen: Counter[str], done: asyncio.Event) -> None:
    """A client that asks again and again; counts what it saw by how that ended."""
    body = {
        "model": "test/model",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": WORDS,
        "stream": True,
    }
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        while not done.is_set():
            try:
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
            except httpx.TransportError:
                seen["broken"] += 1
                return
            seen[str(answer.status_code)] += 1
            seen["whole"] += answer.status_code == 200 and "[DONE]" in answer.text
            if answer.status_code == 402:
                await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_gateway_when_killed_under_64_streams_then_budget_holds_and_one_row_each(
    gateways, database_url, tmp_path
):
    with upstream_in_a_thread(words=WORDS, pause_s=0.02) as upstream:
        process, url = gateways(upstream)
        made = subprocess.run(
            [*MAIN, "gateway", "keys", "create", "a", "--limit", f"{LIMIT_PICO}e-12"],
            cwd=tmp_path, check=True, capture_output=True, text=True, env=dict(os.environ),
        )  # fmt: skip
        key, seen, done = made.stdout.strip(), Counter(), asyncio.Event()
        clients = [asyncio.create_task(ask_until(url, key, seen, done)) for _ in range(64)]
        async with asyncio.timeout(90):
            while seen["whole"] < 60:
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done.set()
        await asyncio.gather(*clients)
        _, url = gateways(upstream)
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as client:
            async with asyncio.timeout(60):
                while True:
                    data = (await client.get(f"{url}/api/v1/key")).json()["data"]
                    if data["limits"]["running"] == 0:
                        break
                    await asyncio.sleep(0.1)
        sent_tokens, num_asked = upstream.sent_tokens, len(upstream.requests)
    database = Database(database_url)
    await database.open()
    rows = await database.read(lambda c: c.execute(select(generation)).mappings().all())
    await database.close()
    outcomes = Counter(row["outcome"] for row in rows)
    assert data["budgets"][0]["reserved_usd"] == 0
    spent = sum(row["cost_prompt"] + row["cost_completion"] for row in rows)
    assert spent <= LIMIT_PICO
    assert data["usage"] == spent / 1e12
    # Every answer that a client saw to its end, and at most those that it saw no more.
    assert seen["whole"] <= outcomes["completed"] <= seen["whole"] + seen["broken"]
    assert outcomes["killed"] > 0
    assert outcomes["completed"] + outcomes["killed"] == len(rows) - outcomes["refused"]
    assert num_asked <= outcomes["completed"] + outcomes["killed"]
    for row in rows:
        if row["outcome"] == "completed":
            assert row["cost_prompt"] + row["cost_completion"] == COST_PICO
        assert row["tokens_completion"] <= WORDS
    counted = sum(row["tokens_completion"] for row in rows)
    assert outcomes["completed"] * WORDS <= counted <= sent_tokens
    assert seen["402"] <= outcomes["refused"]
