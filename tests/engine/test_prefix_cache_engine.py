"""The host tier and the self-test in a real engine."""

from __future__ import annotations

import pytest
import torch

from cache_support import check_cache
from engine_support import finish, new_engine, request, tokens_of
from lingflash.cache.memory_ops import (
    CopyState,
    HostCopy,
    LoadBlocks,
    LoadState,
    SaveState,
    StoreBlocks,
    ZeroBlocks,
    ZeroSlot,
)
from lingflash.core.config import EngineConfig
from lingflash.core.errors import ConfigError, NotEnoughMemoryError
from lingflash.engine.memory.cache_memory import CacheMemory
from lingflash.engine.memory.planning import plan_memory
from lingflash.engine.process.self_test import run_self_test
from lingflash.models.forward_batch import CacheTensors

PROMPT = [(7 * t) % 500 for t in range(100)]


def engine(**changes):
    options = {"prefix_caching": True, "batch_invariant": True, "num_blocks": 40}
    return new_engine(**(options | changes))


def ask(loop, token_ids, **sampling):
    options = {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True, "logprobs": 3}
    loop.add(request("r", token_ids, **(options | sampling)))
    return finish(loop)


def settle(loop):
    memory, cache = loop.runner.memory, loop.scheduler.cache
    memory.run(cache.take_ops())
    while memory.host._pending:
        for copy, succeeded in memory.poll():
            cache.host_copied(copy, succeeded=succeeded)


def results(events):
    return [(e.token_ids, e.logprobs) for e in events]


def evict(loop):
    """Others use all of the device's memory."""
    for content in range(1, 4):
        ask(loop, [(content * 11 + 3 * t) % 500 for t in range(180)])
        settle(loop)


def test_host_tier_when_a_prompt_was_evicted_then_comes_back_bit_for_bit():
    loop = engine(num_host_blocks=200, num_blocks=24)
    first = ask(loop, PROMPT)
    evict(loop)
    before = loop.stats().prompt_tokens
    again = ask(loop, PROMPT)
    assert again[0].num_cached_tokens == 96
    assert loop.stats().prompt_tokens - before == 4
    assert results(again) == results(first)
    without = engine(num_blocks=24)
    ask(without, PROMPT)
    for content in range(1, 4):
        ask(without, [(content * 11 + 3 * t) % 500 for t in range(180)])
    cold = ask(without, PROMPT)
    assert cold[0].num_cached_tokens == 0
    assert cold[0].cache_report.result == "blocks_evicted"
    assert results(cold) == results(first)


def test_host_tier_when_a_copy_breaks_in_its_middle_then_nothing_of_it_is_found():
    loop = engine(num_host_blocks=200, num_blocks=24)
    first = ask(loop, PROMPT)
    host = loop.runner.memory.host
    write = host.write

    def breaking(content, places):
        write(torch.full_like(content[:1], 7), places[:1])
        raise OSError("lost power")

    host.write = breaking
    evict(loop)
    check_cache(loop.scheduler.cache)
    assert loop.scheduler.cache._kept.host.num_used == 0
    host.write = write
    again = ask(loop, PROMPT)
    assert again[0].num_cached_tokens == 0
    assert results(again) == results(first)


def test_checkpoint_when_saved_to_blocks_and_loaded_then_every_bit_is_the_same():
    """Also bits that are no number, through the device and through the host tier."""
    loop = engine(num_host_blocks=20)
    memory, states = loop.runner.memory, loop.runner.cache.states
    bits = torch.randint(-(2**31), 2**31 - 1, states[:, 0].shape, dtype=torch.int32)
    states[:, 2] = bits.view(torch.float32)
    count = loop.runner.plan.checkpoint_blocks
    blocks = list(range(30, 30 + count))
    copy = HostCopy(list(range(5, 5 + count)))
    memory.run([SaveState(2, blocks), LoadState(blocks, 1), StoreBlocks(blocks, copy)])
    assert torch.equal(states[:, 1].view(torch.int32), bits)
    while not memory.poll():
        pass
    memory.run([LoadState(copy.blocks, 3, from_host=True)])
    assert torch.equal(states[:, 3].view(torch.int32), bits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_checkpoint_when_blocks_are_of_either_dtype_then_every_bit_is_the_same(dtype):
    tensors = CacheTensors(
        latents=torch.zeros(3, 30, 16, 24, dtype=dtype),
        states=torch.zeros(2, 4, 3, 8, 8),
        tail_k=torch.zeros(2, 4, 3, 16, 8),
        tail_v=torch.zeros(2, 4, 3, 16, 8),
    )
    bits = torch.randint(-(2**31), 2**31 - 1, (2, 3, 8, 8), dtype=torch.int32)
    tensors.states[:, 0] = bits.view(torch.float32)
    count = -(-bits.nbytes // tensors.latents[:, 0].nbytes)
    memory = CacheMemory(tensors, num_host_blocks=count)
    blocks = list(range(20, 20 + count))
    copy = HostCopy(list(range(count)))
    memory.run([SaveState(0, blocks), ZeroSlot(0), StoreBlocks(blocks, copy), ZeroBlocks(blocks)])
    while not memory.poll():
        pass
    others = list(range(10, 10 + count))
    memory.run([LoadBlocks(copy.blocks, others), LoadState(others, 2)])
    memory.run([LoadState(copy.blocks, 3, from_host=True)])
    assert torch.equal(tensors.states[:, 2].view(torch.int32), bits)
    assert torch.equal(tensors.states[:, 3].view(torch.int32), bits)
    assert not tensors.states[:, :2].any()


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_self_test_when_all_is_well_then_live_and_leaves_nothing_behind(batch_invariant):
    loop = engine(batch_invariant=batch_invariant)
    fresh = loop.stats()
    run_self_test(loop)
    assert loop.info.prefix_cache == "live"
    stats = loop.stats()
    assert stats.prefix_cache_live
    assert (stats.num_steps, stats.prompt_tokens, stats.prefix_results) == (0, 0, {})
    assert stats.cache_bytes == fresh.cache_bytes
    assert tokens_of(ask(loop, PROMPT)) == tokens_of(ask(engine(), PROMPT))


def test_self_test_when_nothing_is_found_again_then_says_so_and_switches_the_cache_off(caplog):
    loop = engine()
    loop.scheduler.cache.publish = lambda *args: None
    run_self_test(loop)
    assert loop.info.prefix_cache.startswith("failed: a repeated prompt of 33 tokens found 0")
    assert "switched off" in caplog.text
    assert not loop.stats().prefix_cache_live
    ask(loop, PROMPT)
    assert ask(loop, PROMPT)[0].num_cached_tokens == 0
    assert loop.stats().prefix_results == {"caching_off": 2}


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_self_test_when_a_hit_changes_the_answer_then_the_cache_is_off(batch_invariant):
    loop = engine(batch_invariant=batch_invariant)
    memory, run = loop.runner.memory, loop.runner.memory.run

    def spoiling(ops):
        run(ops)
        for op in ops:
            if isinstance(op, CopyState):  # idle slots are lent
                loop.runner.cache.states[:, op.target] *= -50

    memory.run = spoiling
    run_self_test(loop)
    memory.run = run
    assert "log probabilities" in loop.info.prefix_cache
    assert not loop.scheduler.cache.keeps_prefixes


def test_self_test_when_the_cache_is_off_or_the_context_short_then_is_left_out():
    loop = new_engine()
    run_self_test(loop)
    assert loop.info.prefix_cache == "off"
    loop = engine(max_model_len=32)
    run_self_test(loop)
    assert loop.info.prefix_cache == "untested"


def test_plan_when_a_host_tier_is_asked_for_then_counted_in_blocks():
    config = {"device": "cpu", "max_model_len": 1024, "max_num_seqs": 4}
    plan = plan_memory(EngineConfig(**config, host_cache_gib=0.01))
    assert plan.num_host_blocks == int(0.01 * 2**30) // plan.block_bytes
    assert plan.as_dict()["host cache"] == plan.num_host_blocks * plan.block_bytes
    assert "host cache" in plan.render()
    assert plan_memory(EngineConfig(**config)).num_host_blocks == 0
    with pytest.raises(NotEnoughMemoryError, match="--host-cache-gib"):
        plan_memory(EngineConfig(**config, host_cache_gib=1e6))
    with pytest.raises(ConfigError, match="--host-cache-gib"):
        EngineConfig(host_cache_gib=-1)
    with pytest.raises(ConfigError, match="--host-cache-gib"):
        EngineConfig(host_cache_gib=1, prefix_caching=False)
