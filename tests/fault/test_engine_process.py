"""The engine in its own process: answers, aborts, crashes, restarts, bad starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest
import pytest_asyncio

from engine_support import finish, new_engine, request, tokens_of
from lingflash.core.config import EngineConfig
from lingflash.core.errors import (
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    ModelLoadError,
    QueueFullError,
)
from lingflash.core.types import EngineRequest, GrammarSpec
from lingflash.link.ipc import IpcEngineClient
from models_support import CHECKPOINT

PROMPT = [(11 * t) % 500 for t in range(20)]


def config(**changes):
    options = {"model": str(CHECKPOINT), "max_model_len": 512, "max_num_seqs": 4, "device": "cpu"}
    return EngineConfig(**(options | {"max_num_batched_tokens": 64} | changes))


@contextlib.asynccontextmanager
async def engine(max_restarts=0, **changes):
    client = IpcEngineClient(config(**changes), max_restarts=max_restarts)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared():
    """One engine for the tests that leave it whole."""
    async with engine(batch_invariant=True, max_num_waiting=4) as client:
        yield client


async def collect(client, wanted):
    return [event async for event in await client.submit(wanted)]


async def until(condition, timeout_s=20.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def idle(client):
    await until(
        lambda: (
            client.stats.num_running == client.stats.num_waiting == 0
            and client.stats.free_blocks == client.stats.num_blocks > 0
            and client.stats.free_state_slots == client.stats.num_state_slots
        )
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_requests_when_sent_together_then_answers_equal_those_of_an_engine_in_process(shared):
    client = shared
    wanted = {f"r{i}": PROMPT[: 3 + i] for i in range(6)}
    rules = {"temperature": 0.0, "max_tokens": 9, "ignore_eos": True}
    expected = {}
    for name, ids in wanted.items():
        loop = new_engine(batch_invariant=True)
        loop.add(request(name, ids, **rules))
        expected |= tokens_of(finish(loop))
    assert client.is_ready
    assert (client.info.vocab_size, client.info.max_model_len) == (512, 512)
    answers = await asyncio.gather(
        *(collect(client, request(name, ids, **rules)) for name, ids in wanted.items())
    )
    assert tokens_of([e for events in answers for e in events]) == expected
    await until(lambda: client.stats.generated_tokens >= 6 * 9)
    await idle(client)


@pytest.mark.asyncio(loop_scope="module")
async def test_request_when_invalid_or_too_many_then_submit_raises_the_right_class(shared):
    client = shared
    with pytest.raises(ContextLengthError):
        await client.submit(request("long", [1] * 600))
    with pytest.raises(InvalidRequestError, match="token ids from 0 to 511"):
        await client.submit(request("odd", [5000]))
    streams = [
        await client.submit(request(f"r{i}", PROMPT, max_tokens=400, ignore_eos=True))
        for i in range(8)
    ]
    with pytest.raises(QueueFullError):
        await client.submit(request("late", PROMPT))
    with pytest.raises(InvalidRequestError, match="already running"):
        await client.submit(request("r0", PROMPT))
    for stream in streams:
        await anext(stream)
        await stream.aclose()
    await idle(client)


@pytest.mark.asyncio(loop_scope="module")
async def test_stream_when_left_early_then_the_request_is_aborted(shared):
    client = shared
    stream = await client.submit(request("r", PROMPT, max_tokens=480, ignore_eos=True))
    generated = client.stats.generated_tokens
    await anext(stream)
    await stream.aclose()
    with pytest.raises(InvalidRequestError, match="already running"):
        await client.submit(request("r", PROMPT))
    await until(lambda: client.stats.generated_tokens > generated)
    await idle(client)
    assert client.stats.generated_tokens < generated + 100
    second = await client.submit(request("r", PROMPT, max_tokens=3, ignore_eos=True))
    assert len([e async for e in second]) == 3


@pytest.mark.asyncio(loop_scope="module")
async def test_abort_when_called_then_the_stream_ends_as_aborted(shared):
    client = shared
    stream = await client.submit(request("r", PROMPT, n=2, max_tokens=480, ignore_eos=True))
    await anext(stream)
    client.abort("r")
    client.abort("unknown")
    ends = [e.finish_reason async for e in stream if e.finish_reason]
    assert ends == ["aborted", "aborted"]
    await idle(client)


async def test_engine_when_killed_then_requests_end_with_an_error_and_it_is_dead_for_good():
    async with engine() as client:
        stream = await client.submit(request("r", PROMPT, n=2, max_tokens=480, ignore_eos=True))
        await anext(stream)
        os.kill(client.pid, signal.SIGKILL)
        events = [e async for e in stream]
        ends = [e for e in events if e.finish_reason]
        assert [e.error_code for e in ends] == ["engine_dead", "engine_dead"]
        await asyncio.wait_for(client.wait_dead(), 10)
        assert not client.is_ready
        with pytest.raises(EngineDeadError):
            await client.submit(request("s", PROMPT))


async def test_engine_when_killed_with_restarts_left_then_serves_again():
    async with engine(max_restarts=1) as client:
        first = client.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: not client.is_ready)
        await until(lambda: client.is_ready, 60)
        assert client.pid != first
        assert len(await collect(client, request("r", PROMPT, max_tokens=3, ignore_eos=True))) == 3
        os.kill(client.pid, signal.SIGKILL)
        await asyncio.wait_for(client.wait_dead(), 10)


@pytest.mark.asyncio(loop_scope="module")
async def test_engine_when_the_group_gets_sigint_or_sigterm_then_goes_on(shared):
    client = shared
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(client.pid, number)
    assert len(await collect(client, request("r", PROMPT, max_tokens=3, ignore_eos=True))) == 3


async def test_start_when_the_model_cannot_be_loaded_then_raises_what_the_engine_said(tmp_path):
    client = IpcEngineClient(config(model=str(tmp_path)), max_restarts=3)
    with pytest.raises(ModelLoadError, match=r"config\.json does not exist"):
        await client.start()
    await client.stop()


async def test_engine_when_its_server_vanishes_then_ends_by_itself():
    client = IpcEngineClient(config())
    await client.start()
    engine = client._process
    process = engine._process
    client._stopping = True
    engine._writer.transport.abort()
    await until(lambda: process.poll() is not None)


@pytest.mark.asyncio(loop_scope="module")
async def test_submit_when_the_model_has_no_tokenizer_then_grammars_are_refused_alone(shared):
    free = asyncio.create_task(collect(shared, request("free", PROMPT, max_tokens=5)))
    wanted = EngineRequest(
        request_id="g", prompt_token_ids=PROMPT, grammar=GrammarSpec("regex", "a")
    )
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        await shared.submit(wanted)
    assert (await free)[-1].finish_reason in ("length", "stop")
    await idle(shared)
