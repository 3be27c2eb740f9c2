"""An engine that hangs, cannot be understood or cannot be started: what its server makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import sys

import pytest
from test_engine_process import PROMPT, collect, config, until

from engine_support import request
from lingflash.core.errors import DeadlineExceededError, EngineDeadError, QueueFullError
from lingflash.core.types import EngineRequest, SamplingParams
from lingflash.link import engine_process, ipc, messages
from lingflash.link.ipc import IpcEngineClient
from models_support import CHECKPOINT


@contextlib.asynccontextmanager
async def engine(max_restarts=0, hang_timeout_s=120.0, **changes):
    client = IpcEngineClient(config(**changes), max_restarts, hang_timeout_s=hang_timeout_s)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


def late(name, timeout_s):
    return EngineRequest(
        request_id=name,
        prompt_token_ids=PROMPT,
        sampling=SamplingParams(max_tokens=480, ignore_eos=True),
        timeout_s=timeout_s,
    )


async def test_engine_when_stopped_then_it_is_named_killed_and_started_again(caplog):
    async with engine(1, hang_timeout_s=3.0) as client:
        stream = await client.submit(request("r", PROMPT, max_tokens=480, ignore_eos=True))
        await anext(stream)
        first = client.pid
        os.kill(first, signal.SIGSTOP)
        ends = [e.error_code async for e in stream if e.finish_reason]
        assert ends == ["engine_dead"]
        assert not client.is_ready
        assert "hangs: it has not answered" in client.trouble
        await until(lambda: client.is_ready, 60)
        assert client.pid != first
        assert client.trouble is None
        assert len(await collect(client, request("s", PROMPT, max_tokens=3, ignore_eos=True))) == 3
    assert "--engine-hang-timeout-s 3" in caplog.text


async def test_engine_when_a_step_hangs_then_its_time_is_told_and_it_is_killed(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(engine_process, "_WORKER", "slow_worker")
    async with engine(0, hang_timeout_s=3.0) as client:
        stream = await client.submit(request("r", PROMPT, max_tokens=2, ignore_eos=True))
        ends = [e.error_code async for e in stream if e.finish_reason]
        assert ends == ["engine_dead"]
        death = await asyncio.wait_for(client.wait_dead(), 20)
        assert "hangs: it has been at one step for" in death.message


async def test_request_when_the_engine_hangs_then_its_deadline_holds_all_the_same(monkeypatch):
    monkeypatch.setattr(ipc, "_DEADLINE_GRACE_S", 0.3)
    async with engine() as client:
        stream = await client.submit(late("running", 1.0))
        await anext(stream)
        os.kill(client.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineExceededError):
            await client.submit(late("waiting", 0.2))
        async with asyncio.timeout(5):
            ends = [e.error_code async for e in stream if e.finish_reason]
        assert ends == ["deadline_exceeded"]
        os.kill(client.pid, signal.SIGCONT)
        await until(lambda: not client._calls)
        assert client._num_unanswered == 0
        assert len(await collect(client, request("s", PROMPT, max_tokens=3, ignore_eos=True))) == 3


async def test_requests_when_the_engine_hangs_then_their_number_is_bounded():
    async with engine(max_num_waiting=3) as client:
        os.kill(client.pid, signal.SIGSTOP)
        tasks = [asyncio.create_task(client.submit(request(f"r{i}", PROMPT))) for i in range(7)]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError):
            await client.submit(request("late", PROMPT))
        tasks[0].cancel()  # its client leaves, but the engine still has it to answer
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await client.submit(request("late", PROMPT))
        os.kill(client.pid, signal.SIGCONT)
        streams = await asyncio.gather(*tasks, return_exceptions=True)
        for stream in streams[1:]:
            await stream.aclose()
        await until(lambda: not client._calls)
        assert client._num_unanswered == 0
        assert len(await collect(client, request("s", PROMPT, max_tokens=3, ignore_eos=True))) == 3


async def test_request_when_it_cannot_be_encoded_then_it_leaves_nothing():
    async with engine() as client:
        with pytest.raises(ValueError, match="cannot be sent"):
            await client.submit(request("huge", [2**64]))
        assert client._calls == {}
        assert client._num_unanswered == 0
        assert len(await collect(client, request("huge", PROMPT, max_tokens=2))) > 0


async def test_engine_when_it_cannot_understand_then_it_is_dead(caplog):
    async with engine(1) as client:
        first = client.pid
        client._process.send({"type": "Submit", "request": {"request_id": 1.5}})
        await until(lambda: client.pid != first and client.is_ready, 60)
        assert len(await collect(client, request("r", PROMPT, max_tokens=3, ignore_eos=True))) == 3


async def test_engine_when_it_says_what_cannot_be_understood_then_it_is_dead(monkeypatch):
    async with engine() as client:
        monkeypatch.setattr(client, "_take", lambda message: 1 / 0)
        with pytest.raises(EngineDeadError):
            await client.submit(request("r", PROMPT))
        death = await asyncio.wait_for(client.wait_dead(), 20)
        assert "cannot be understood (ZeroDivisionError" in death.message


async def test_start_when_the_engine_says_what_cannot_be_understood_then_it_ends(monkeypatch):
    client = IpcEngineClient(config())
    monkeypatch.setattr(client, "_take", lambda message: 1 / 0)
    with pytest.raises(EngineDeadError, match="cannot be understood"):
        await asyncio.wait_for(client.start(), 60)
    await client.stop()


async def test_restart_when_there_are_no_descriptors_then_it_is_tried_again(monkeypatch, caplog):
    async with engine(4) as client:
        calls, make = [], socket.socketpair

        def exhausted():
            calls.append(1)
            if len(calls) <= 2:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return make()

        monkeypatch.setattr(engine_process.socket, "socketpair", exhausted)
        os.kill(client.pid, signal.SIGKILL)
        await until(lambda: not client.is_ready)
        await until(lambda: client.is_ready, 60)
        assert len(calls) == 3
        assert "SIGKILL (perhaps the kernel's out-of-memory killer)" in caplog.text
        assert len(await collect(client, request("r", PROMPT, max_tokens=3, ignore_eos=True))) == 3


async def test_restart_when_it_never_can_be_then_dead_with_the_reason(monkeypatch):
    async with engine(2) as client:
        exhausted = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        def no_memory(*args, **kwargs):
            raise exhausted

        monkeypatch.setattr(engine_process.subprocess, "Popen", no_memory)
        os.kill(client.pid, signal.SIGKILL)
        death = await asyncio.wait_for(client.wait_dead(), 20)
        assert "no restarts are left" in death.message
        assert "Cannot allocate memory" in death.message
        assert "Cannot allocate memory" in client.trouble


async def test_restart_when_something_unforeseen_happens_then_dead_with_the_reason(monkeypatch):
    async with engine(2) as client:
        monkeypatch.setattr(client._restarts, "next_pause_s", lambda *args: 1 / 0)
        os.kill(client.pid, signal.SIGKILL)
        death = await asyncio.wait_for(client.wait_dead(), 20)
        assert "ZeroDivisionError" in death.message


async def test_engine_when_it_dies_while_the_server_drains_then_it_is_not_started_again(caplog):
    async with engine(3) as client:
        client.drain()
        first = client.pid
        os.kill(first, signal.SIGKILL)
        death = await asyncio.wait_for(client.wait_dead(), 20)
        assert "shutting down" in death.message
        assert client.pid == first


async def test_engine_when_it_hangs_while_it_is_stopped_then_it_is_killed_in_time():
    async with engine(0) as client:
        process = client._process
        os.kill(client.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.stop(), 0.2)
        assert await process._has_ended(5)


async def test_server_when_killed_while_the_engine_loads_then_that_ends_without_a_word(
    monkeypatch, capfd
):
    process = await engine_process.EngineProcess.launch()
    process.send(messages.Start(config(model="ling-nano")))
    process._writer.transport.abort()
    assert await process._has_ended(60)
    assert capfd.readouterr().err == ""


async def test_restart_when_the_checkpoint_was_replaced_then_dead_with_the_reason(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(CHECKPOINT, folder)
    async with engine(3, model=str(folder)) as client:
        (folder / "generation_config.json").write_text("{}")
        os.kill(client.pid, signal.SIGKILL)
        death = await asyncio.wait_for(client.wait_dead(), 20)
        assert f"the files of {folder} were changed" in death.message
