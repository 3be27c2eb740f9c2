"""Load generator and soak against a real HTTP server with a scripted engine, honest and leaking."""

import asyncio
import dataclasses
import random

import pytest

from api_support import TOKENIZER, RunningServer, engine_info, write_toy_model
from lingflash.api.config import ServerConfig
from lingflash.bench.over_http import soak as soak_module
from lingflash.bench.over_http.serve import (
    Lengths,
    one_request,
    percentile,
    run_clients,
    serve_load,
)
from lingflash.bench.over_http.soak import find_leaks, read_metrics, run_soak, soak
from lingflash.bench.over_http.soak_clients import Limits, _malformed, find_limits, send_malformed
from lingflash.core.errors import ConfigError, EngineError
from lingflash.link.http_client import Address, BadAnswer, call, open_request
from lingflash.link.scripted import Behaviour, ScriptedEngine

MANY = TOKENIZER.encode("a") * 200
IDLE = {
    "kv_blocks_free": 8.0, "kv_blocks_total": 8.0, "state_slots_free": 2.0,
    "state_slots_total": 2.0, "num_requests_running": 0.0, "num_requests_waiting": 0.0,
    "asyncio_tasks": 6.0, "http_requests_in_flight": 0.0,
}  # fmt: skip


@pytest.fixture
def server(tmp_path):
    config = ServerConfig(model_folder=write_toy_model(tmp_path), served_model_names=("toy",))
    info = engine_info(vocab_size=max(TOKENIZER.vocab_size, 256))
    running = RunningServer(
        {(): MANY}, config=config, info=info, behaviour=Behaviour(delay_s=0.001)
    )
    yield running
    running.stop()


@pytest.fixture
def address(server):
    return Address.parse(server.base_url)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "https://x", "http://x/v1", "http://x:y"])
def test_address_when_the_url_is_wrong_then_it_is_refused(url):
    with pytest.raises(ConfigError, match="--url"):
        Address.parse(url)


def test_address_when_it_has_a_key_then_requests_carry_it():
    data = Address.parse("http://h:1/", "secret").encode("POST", "/p", b"{}")
    assert data.startswith(b"POST /p HTTP/1.1\r\nHost: h:1\r\n")
    assert b"Authorization: Bearer secret\r\n" in data
    assert data.endswith(b"Content-Length: 2\r\n\r\n{}")


async def answer_with(data):
    """Ask a server that sends these bytes and closes."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, open_request(Address("127.0.0.1", port), "GET", "/") as answer:
        return [event async for event in answer.events()]


async def test_events_when_chunks_split_an_event_then_it_is_put_together():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b'8\r\ndata: {"\r\n' + b'd\r\na":1}\n\ndata: \r\n' + b"8\r\n[DONE]\n\n\r\n0\r\n\r\n"
    assert await answer_with(head + chunks) == ['{"a":1}', "[DONE]"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndata: x",
        b"HTTP/1.1 200 OK\r\n\r\ndata: x",
    ],
)
async def test_events_when_the_answer_is_cut_off_then_it_is_an_error(data):
    with pytest.raises(BadAnswer):
        await answer_with(data)


async def test_one_request_when_streamed_then_every_token_is_counted_and_timed(address):
    timing = await one_request(address, [5, 6, 7], 20)
    assert timing.error is None
    assert timing.num_tokens == 20
    assert timing.ttft_s is not None
    assert len(timing.itl_s) == 19
    assert timing.ttft_s + sum(timing.itl_s) <= timing.e2e_s


async def test_one_request_when_refused_or_short_then_it_is_an_error_not_a_result(address):
    assert "status 400" in ((await one_request(address, [10**7], 3)).error or "")
    assert "200 of 300 tokens" in ((await one_request(address, [5], 300)).error or "")


async def test_run_clients_when_done_then_each_request_was_sent_once(address, server):
    _, timings = await run_clients(address, 4, 10, Lengths((1, 9), (1, 9)), seed=1)
    assert len(timings) == len(server.engine.requests) == 10
    assert all(timing.error is None for timing in timings)


async def test_serve_load_when_run_then_percentiles_and_goodput_are_there(server):
    record = await serve_load(
        url=server.base_url, model="x", api_key=None, num_clients=2, num_requests=4,
        lengths=Lengths((1, 9), (5, 9)), slo_ttft_ms=1e6, slo_tpot_ms=1e6, seed=1,
        serve_flags=[], out=None, allow_dirty=False,
    )  # fmt: skip
    assert len(record.results["ttft"].samples) == 4
    derived = record.derived
    assert derived["goodput, requests/s within the limits"] == derived["requests/s"] > 0
    assert derived["failed requests"] == 0


def test_percentile_when_interpolated_then_it_lies_between_neighbours():
    assert percentile([1.0], 99) == 1.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert 2.9 < percentile([1.0, 2.0, 3.0], 99) < 3.0


@pytest.mark.parametrize(
    ("name", "value"),
    [("kv_blocks_free", 7.0), ("state_slots_free", 1.0), ("num_requests_running", 1.0),
     ("num_requests_waiting", 3.0), ("asyncio_tasks", 7.0), ("http_requests_in_flight", 1.0)],
)  # fmt: skip
def test_find_leaks_when_a_gauge_is_off_then_it_is_named(name, value):
    assert find_leaks(IDLE, IDLE) == []
    (leak,) = find_leaks(IDLE | {name: value}, IDLE)
    assert leak.startswith(name)


def test_find_leaks_when_a_gauge_is_missing_then_nothing_is_proven():
    metrics = {name: value for name, value in IDLE.items() if name != "kv_blocks_free"}
    assert find_leaks(metrics, IDLE) == ["/metrics has no kv_blocks_free"]


async def test_find_limits_when_the_server_has_text_then_it_says_so(address):
    assert (await find_limits(address)).has_text


async def test_send_malformed_when_every_kind_is_sent_then_each_is_refused(address, monkeypatch):
    limits = dataclasses.replace(await find_limits(address), max_model_len=4096)
    seen = set()
    for seed in range(300):
        rng = random.Random(seed)
        method, path, body = _malformed(random.Random(seed), limits)
        if (key := (method, path, body[:12], len(body) > 9000, body[-30:])) in seen:
            continue
        seen.add(key)
        assert await send_malformed(address, rng, limits) == "refused"
        if len(seen) > 60:
            break


async def test_soak_when_the_server_is_honest_then_it_is_clean(address):
    limits = await find_limits(address)
    summary = await soak(address, seconds=2.0, num_clients=6, seed=3, limits=limits)
    assert summary.failures == []
    assert summary.leaks == []
    assert summary.outcomes["ask_stream: answered"]


async def test_soak_when_a_block_stays_behind_then_it_is_reported(address, server, monkeypatch):
    honest = ScriptedEngine.stats.fget
    leak_after = len(server.engine.requests) + 3

    def leaking(self):
        stats = honest(self)
        lost = int(len(self.requests) > leak_after)
        return dataclasses.replace(stats, free_blocks=stats.free_blocks - lost)

    monkeypatch.setattr(ScriptedEngine, "stats", property(leaking))
    monkeypatch.setattr(soak_module, "_IDLE_TIMEOUT_S", 0.5)
    summary = await soak(address, seconds=1.0, num_clients=4, seed=3, limits=Limits(True))
    assert summary.leaks == ["kv_blocks_free is 99 of 100"]
    assert not summary.is_clean


async def test_soak_when_answers_fail_then_they_are_failures(address, server):
    server.engine.behaviour.fail_after_tokens = 1
    summary = await soak(address, seconds=0.5, num_clients=2, seed=3, limits=Limits(True))
    assert summary.failures
    assert not summary.is_clean


async def test_soak_when_the_server_goes_away_then_it_gives_up_soon_and_proves_nothing(
    address, server
):
    timer = asyncio.get_running_loop().call_later(0.3, server.stop)
    async with asyncio.timeout(20):
        summary = await soak(address, seconds=60, num_clients=2, seed=3, limits=Limits(True))
    timer.cancel()
    assert 100 <= len(summary.failures) < 200
    assert summary.leaks
    assert not summary.is_clean


async def test_run_soak_when_the_server_runs_elsewhere_then_it_is_used_and_left_alone(server):
    assert await run_soak(
        url=server.base_url, model="x", api_key=None, minutes=0.01, num_clients=2, seed=1,
        serve_flags=[], out=None, allow_dirty=False,
    )  # fmt: skip
    assert (await call(Address.parse(server.base_url), "GET", "/ready"))[0] == 200


async def test_run_soak_when_our_server_cannot_start_then_its_words_are_shown():
    with pytest.raises(EngineError, match="neither a folder nor a hub id"):
        await run_soak(
            url=None, model="no such model", api_key=None, minutes=0.01, num_clients=1, seed=1,
            serve_flags=[], out=None, allow_dirty=False,
        )  # fmt: skip


async def test_read_metrics_when_read_then_the_gauges_have_their_short_names(address):
    assert set(IDLE) <= set(await read_metrics(address))
