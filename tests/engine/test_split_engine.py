"""The engine over two processes: the answers of one, and one clear end when a rank dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest
import torch

from lingflash.core.config import EngineConfig
from lingflash.core.errors import ConfigError, EngineError
from lingflash.core.types import EngineRequest, SamplingParams
from lingflash.engine.loop import EngineLoop
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.engine.run.ranks import decode, encode
from lingflash.link.ipc import IpcEngineClient
from lingflash.models.forward_batch import make_forward_batch
from models_support import CPU


def new_loop(size, **changes):
    options = {"max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 32, "seed": 1}
    config = EngineConfig(
        device="cpu",
        dtype="float32",
        memory_fraction=0.2,
        tensor_parallel_size=size,
        **(options | changes),
    )
    return EngineLoop(config, ModelRunner.from_config(config))


def answers(loop):
    """Four requests, more than fit into one step, two with a common beginning."""
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 2000, (n,), generator=generator).tolist() for n in (50, 7, 33)]
    prompts.append(prompts[0][:40] + prompts[1])
    found = {str(i): [] for i in range(4)}
    for i, prompt in enumerate(prompts):
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=12,
            ignore_eos=True,
            logprobs=1,
            prompt_logprobs=1 if i == 1 else None,
        )
        loop.add(EngineRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling))
    while loop.has_work:
        for event in loop.step():
            assert event.finish_reason != "error", event.error_message
            found[event.request_id] += [(t.token_id, t.logprob) for t in event.logprobs or []]
            found[event.request_id] += [
                (t.token_id, t.logprob) for t in event.prompt_logprobs or [] if t is not None
            ]
    return found


def test_engine_when_split_then_answers_as_one_process_and_ends_if_a_rank_dies():
    expected = answers(new_loop(1))
    loop = new_loop(2)
    for _ in range(2):
        found = answers(loop)
        for key, tokens in expected.items():
            assert [t for t, _ in found[key]] == [t for t, _ in tokens]
            for (_, a), (_, b) in zip(found[key], tokens, strict=True):
                assert a == pytest.approx(b, abs=1e-3)
    assert loop.stats().prefix_hit_tokens > 60, "the second time from states of all ranks"
    with pytest.raises(ConfigError, match="already"):
        new_loop(2)
    process = loop.runner.model._ranks._processes[0]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    request = EngineRequest(request_id="x", prompt_token_ids=[5, 6, 7])
    loop.add(request)
    start = time.monotonic()
    with pytest.raises(EngineError, match="rank of the split model has failed"):
        loop.step()
    assert time.monotonic() - start < 30
    loop.runner.model._ranks.close()


def test_size_when_the_model_cannot_be_split_then_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="group_norm_size"):
        new_loop(8)
    with pytest.raises(ConfigError, match="runs in one process"):
        EngineConfig(tensor_parallel_size=2, batch_invariant=True)
    with pytest.raises(ConfigError, match="1 to 64"):
        EngineConfig(tensor_parallel_size=0)


def test_message_when_sent_then_comes_back_the_same():
    batch = make_forward_batch(
        [[1, 2, 3], [4]], [0, 20], [[0], [1, 2]], [0, 1], [2, 3], block_size=16, device=CPU
    )
    call, (again, rows) = decode(encode(("forward", (batch, torch.ones(2, 3).bfloat16()))), CPU)
    assert call == "forward"
    assert rows.dtype == torch.bfloat16
    assert torch.equal(again.token_ids, batch.token_ids)
    assert torch.equal(again.slot_mapping, batch.slot_mapping)
    assert again.num_tokens == 4


async def test_engine_process_when_a_rank_is_killed_then_restarts_and_leaves_nothing_behind():
    config = EngineConfig(
        device="cpu",
        dtype="float32",
        max_model_len=512,
        max_num_seqs=2,
        memory_fraction=0.2,
        tensor_parallel_size=2,
        seed=1,
    )
    engine = IpcEngineClient(config, 1)
    await engine.start()

    async def ask(count, kill=None):
        sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, seed=0)
        request = EngineRequest(
            request_id=str(count), prompt_token_ids=[5, 6, 7], sampling=sampling
        )
        tokens = []
        async for event in await engine.submit(request):
            tokens += event.token_ids
            if event.finish_reason is not None:
                return len(tokens), event.finish_reason, event.error_code
            if kill is not None and len(tokens) >= 10:
                kill.kill()
                kill = None
        raise AssertionError("no finish reason")

    try:
        (child,) = psutil.Process(engine.pid).children()
        assert await ask(4) == (4, "length", None)
        count, *end = await ask(400, kill=child)
        assert count < 400
        assert end == ["error", "engine_dead"]
        while not engine.is_ready:
            await asyncio.sleep(0.1)
        assert await ask(5) == (5, "length", None)
        children = psutil.Process(engine.pid).children()
        assert len(children) == 1
    finally:
        await engine.stop()
    _, alive = psutil.wait_procs([child, *children], timeout=20)
    assert not alive
