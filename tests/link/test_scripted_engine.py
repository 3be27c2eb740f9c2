"""The scripted engine keeps the laws of EngineClient that tests of the server rely on."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest

from api_support import END, engine_info
from lingflash.core.errors import EngineDeadError, QueueFullError
from lingflash.core.types import EngineRequest, SamplingParams
from lingflash.link.client import EngineClient
from lingflash.link.scripted import Behaviour, ScriptedEngine


def request(name="r", **sampling):
    return EngineRequest(
        request_id=name, prompt_token_ids=[1, 2], sampling=SamplingParams(**sampling)
    )


async def started(script=None, info=None, **behaviour):
    engine = ScriptedEngine(
        script or {(): [5, 6, 7]}, info or engine_info(), Behaviour(**behaviour)
    )
    client: EngineClient = engine  # it is one, says the type checker
    await client.start()
    return engine


async def collect(engine, req):
    return [event async for event in await engine.submit(req)]


async def test_submit_when_accepted_then_tokens_and_one_finish_per_choice():
    engine = await started()
    events = await collect(engine, request(n=3))
    assert sum(event.finish_reason is not None for event in events) == 3
    for choice in range(3):
        mine = [event for event in events if event.choice == choice]
        assert [i for event in mine for i in event.token_ids] == [5, 6, 7]
        assert mine[-1].finish_reason == "stop"
        assert mine[-1].stop_token_id == END
    await engine.stop()
    await engine.stop()


async def test_submit_when_prompt_is_in_the_mapping_then_its_own_script():
    engine = await started({(1, 2): [9], (): [5]})
    events = await collect(engine, request())
    assert events[0].token_ids == [9]
    await engine.stop()


@pytest.mark.parametrize(
    ("sampling", "token_ids", "reason"),
    [
        ({"max_tokens": 2}, [5, 6], "length"),
        ({"max_tokens": 0}, [], "length"),
        ({"stop_token_ids": (6,)}, [5], "stop"),
        ({"stop_token_ids": (6,), "min_tokens": 2}, [5, 6, 7], "stop"),
    ],
)
async def test_submit_when_sampling_limits_then_honoured(sampling, token_ids, reason):
    engine = await started()
    events = await collect(engine, request(**sampling))
    assert [i for event in events for i in event.token_ids] == token_ids
    assert events[-1].finish_reason == reason
    await engine.stop()


async def test_abort_when_running_then_ends_as_aborted_and_frees_the_slot():
    engine = await started(hang=True)
    stream = await engine.submit(request())
    engine.abort("unknown")
    engine.abort("r")
    assert [event.finish_reason async for event in stream] == ["aborted"]
    assert engine.stats.num_running == 0
    await engine.stop()


async def test_stream_when_the_reader_is_cancelled_then_the_request_is_aborted():
    engine = await started(hang=True)
    task = asyncio.create_task(collect(engine, request()))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert engine.aborted == ["r"]
    await engine.stop()


async def test_queue_when_full_then_refused_and_waiting_ones_run_later():
    info = dataclasses.replace(engine_info(), max_num_seqs=1, max_num_waiting=1)
    engine = await started(info=info, hang=True)
    first = await engine.submit(request("a"))
    second = await engine.submit(request("b"))
    with pytest.raises(QueueFullError):
        await engine.submit(request("c"))
    assert (engine.stats.num_running, engine.stats.num_waiting) == (1, 1)
    engine.behaviour.hang = False
    assert [e.finish_reason async for e in first][-1] == "stop"
    assert [e.finish_reason async for e in second][-1] == "stop"
    await engine.stop()


async def test_die_when_running_then_error_events_and_no_new_requests():
    engine = await started(hang=True)
    stream = await engine.submit(request())
    engine.die(for_good=True)
    events = [event async for event in stream]
    assert events[-1].error_code == "engine_dead"
    assert not engine.is_ready
    await asyncio.wait_for(engine.wait_dead(), 1)
    with pytest.raises(EngineDeadError):
        await engine.submit(request())
    await engine.stop()


async def test_take_ready_when_events_wait_then_all_of_them_at_once():
    engine = await started()
    stream = await engine.submit(request())
    await asyncio.sleep(0.05)
    first = await anext(aiter(stream))
    rest = stream.take_ready()
    assert [i for event in (first, *rest) for i in event.token_ids] == [5, 6, 7]
    assert stream.take_ready() == []
    await engine.stop()


async def test_punctual_when_the_loop_is_held_up_then_what_is_due_comes_at_once():
    engine = await started({(): [5] * 40}, delay_s=0.005, is_punctual=True)
    stream = await engine.submit(request())
    await anext(stream)
    time.sleep(0.05)  # the loop itself is held up
    await anext(stream)
    assert len(stream.take_ready()) >= 8
    await engine.stop()
