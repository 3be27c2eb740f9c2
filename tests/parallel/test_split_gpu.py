"""A model split over GPUs: sums, logits at the layers' real shapes, the engine, a killed rank."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from engine_support import finish, request, tokens_of
from lingflash.bench.in_engine.dummy_checkpoint import tensor_shapes
from lingflash.bench.on_gpu.shapes import LING_2_6_FLASH
from lingflash.cache.lease import Lease
from lingflash.core.config import EngineConfig
from lingflash.core.errors import EngineError
from lingflash.core.types import EngineRequest, SamplingParams
from lingflash.engine.loop import EngineLoop
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.engine.run.ways.drawn_graph import DrawnGraph
from lingflash.engine.schedule.step import ScheduledSequence
from lingflash.link.ipc import IpcEngineClient
from lingflash.models.config import parse_model_config
from lingflash.models.forward_batch import make_forward_batch
from quant_support import quantize

RANK = Path(__file__).parents[1] / "split_gpu_rank.py"
SIZES = [n for n in (2, 4) if n <= torch.cuda.device_count()]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not SIZES, reason="no two NVIDIA GPUs on this machine"),
]
# Layers of Ling-2.6-flash's own shapes, few of them, with fewer experts and words.
SHAPE = LING_2_6_FLASH | {
    "num_hidden_layers": 3,
    "layer_group_size": 3,
    "num_experts": 16,
    "vocab_size": 8192,
    "num_nextn_predict_layers": 0,
    "eos_token_id": 7,
}
BLOCK = 64
PROMPT = [(37 * i + 11) % 8000 for i in range(300)]


def write_real_shapes(root):
    root.mkdir()
    (root / "config.json").write_text(json.dumps(SHAPE))
    config = parse_model_config(SHAPE)
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        if name.startswith(f"model.layers.{config.num_hidden_layers}."):
            continue
        noise = torch.randn(shape, device="cuda", generator=generator)
        if name.endswith("expert_bias"):
            tensors[name] = (noise * 0.01).cpu()
        elif name.endswith("norm.weight"):
            tensors[name] = (1 + 0.2 * noise).bfloat16().cpu()
        else:
            scale = 1.0 if "embeddings" in name else shape[-1] ** -0.5
            tensors[name] = (noise * scale).bfloat16().cpu()
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_real_shapes(tmp_path_factory.mktemp("real") / "bf16")


def new_loop(folder, size, **changes):
    options = {"max_num_seqs": 4, "max_model_len": 1024, "block_size": BLOCK, "seed": 1}
    options["dtype"] = "bfloat16"
    config = EngineConfig(
        model=str(folder), device="cuda", memory_fraction=0.12, tensor_parallel_size=size,
        **(options | changes),
    )  # fmt: skip
    return EngineLoop(config, ModelRunner.from_config(config))


def close(loop):
    loop.runner.model._ranks.close()
    del loop
    gc.collect()
    torch.cuda.empty_cache()


class Sequence:
    def __init__(self, lease, token_ids):
        self.lease, self.token_ids = lease, token_ids

    def tokens(self, start, count):
        return self.token_ids[start : start + count]


def graphs_of(loop):
    way = loop.runner.ways[0]
    return way._graphs if isinstance(way, DrawnGraph) else None


def logits_of(loop):
    """Of prompts, and of decode steps of one and of more sequences by graphs."""
    runner, graphs = loop.runner, graphs_of(loop)

    def forward(sequences, counts):
        batch = make_forward_batch(
            [s.token_ids[-n:] for s, n in zip(sequences, counts, strict=True)],
            [len(s.token_ids) - n for s, n in zip(sequences, counts, strict=True)],
            [s.lease.blocks for s in sequences], [s.lease.state_slot for s in sequences], [],
            block_size=BLOCK, device=torch.device("cuda"),
        )  # fmt: skip
        return runner.model.logits(runner.model.forward(batch, runner.cache)).cpu()

    sequences = [Sequence(Lease(s, list(range(8 * s, 8 * s + 8))), PROMPT[s:]) for s in range(3)]
    found = []
    for s in sequences:
        runner.cache.forget_slots([s.lease.state_slot])
        found.append(forward([s], [len(s.token_ids)]))
    for step in range(20):
        for s in sequences:
            s.token_ids.append((101 * step + 5) % 8000)
        for rows in (sequences[:1], sequences[1:]) if step % 2 else (sequences,):
            if graphs is None:
                found.append(forward(rows, [1] * len(rows)))
                continue
            items = [ScheduledSequence(s, len(s.token_ids) - 1, 1, True) for s in rows]
            found.append(graphs.run(items).cpu())
    return found


@pytest.mark.parametrize("size", SIZES)
def test_sums_when_made_by_gpus_then_are_right_and_the_same_on_all(tmp_path, size):
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(rank), str(size), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        for rank in ranks:
            out, errors = rank.communicate(timeout=160)
            assert rank.returncode == 0, errors
            print(out)
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fmt", ["bf16", "fp8", "int4", "int4-fp8"])
def test_logits_when_split_over_gpus_then_are_as_right_as_those_of_one(folder, tmp_path, fmt, size):
    """Beside the same weights in float32: parts add nothing to the error of the format."""
    if fmt != "bf16":
        folder = quantize(folder, tmp_path / fmt, fmt, 128)
    exact = new_loop(folder, 1, prefix_caching=False, dtype="float32")
    expected = logits_of(exact)
    del exact
    gc.collect()
    one = new_loop(folder, 1, prefix_caching=False)
    assert graphs_of(one) is not None
    errors_of_one = errors(logits_of(one), expected)
    del one
    gc.collect()
    loop = new_loop(folder, size, prefix_caching=False)
    assert graphs_of(loop) is not None
    errors_when_split = errors(logits_of(loop), expected)
    close(loop)
    for share in (0.5, 0.9):
        limit, found = (e.quantile(share).item() for e in (errors_of_one, errors_when_split))
        print(f"{fmt}: {share:.0%} of {len(expected)} within {found:.5f}, of one GPU {limit:.5f}")
        assert found < 1.1 * limit


def errors(found, expected):
    return torch.cat(
        [(a - b).norm(dim=-1) / b.norm(dim=-1) for a, b in zip(found, expected, strict=True)]
    )


@pytest.mark.parametrize("size", SIZES)
def test_engine_when_split_over_gpus_then_loops_agree_and_a_killed_rank_ends_it(folder, size):
    loop = new_loop(folder, size)
    assert loop.info.prefix_cache == "untested"
    loop.self_test()
    assert loop.info.prefix_cache == "live"
    assert loop.runner.can_overlap
    free = loop.stats().free_blocks
    answers, num_ahead = [], 0
    for overlaps in (True, False):
        loop.overlaps = overlaps
        for i in range(4):
            loop.add(
                request(
                    f"r{i}", PROMPT[: 40 + 50 * i], seed=i, max_tokens=60 + 7 * i,
                    ignore_eos=True, temperature=float(i % 3),
                )
            )  # fmt: skip
        events = []
        while loop.has_work:
            events += loop.step()
            num_ahead += loop._in_flight is not None
        assert all(e.finish_reason in (None, "length") for e in events)
        answers.append(tokens_of(events))
        loop.reset_prefix_cache()
        assert loop.stats().free_blocks == free
    assert answers[0] == answers[1]
    assert num_ahead > 50
    # Aborted in the middle, the others go on.
    loop.overlaps = True
    for name in ("a", "b"):
        loop.add(request(name, PROMPT[:30], max_tokens=100, ignore_eos=True, temperature=1.0))
    for _ in range(20):
        loop.step()
    loop.abort("a")
    events = finish(loop)
    assert [e.finish_reason for e in events if e.finish_reason] == ["length"]
    # Less memory than four sequences take: some are preempted, and all end.
    runner = loop.runner
    plan = runner.plan
    runner.plan = replace(plan, num_blocks=9, checkpoint_blocks=0, end_blocks=0, max_model_len=512)
    small = EngineLoop(loop._config, runner)
    for i in range(4):
        small.add(request(f"p{i}", PROMPT[: 60 + 50 * i], seed=i, max_tokens=90, ignore_eos=True))
    ended = [e.finish_reason for e in finish(small) if e.finish_reason]
    assert ended == ["length"] * 4
    assert small.stats().num_preemptions > 0
    runner.plan = plan
    # A rank is killed while steps are under way.
    process = loop.runner.model._ranks._processes[0]
    loop.add(request("x", PROMPT[:30], max_tokens=900, ignore_eos=True, temperature=1.0))
    for _ in range(30):
        loop.step()
    os.kill(process.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(EngineError, match="rank of the split model has failed"):
        finish(loop)
    seconds = time.monotonic() - start
    print(f"said after {seconds:.1f} s")
    assert seconds < 20
    close(loop)


@pytest.mark.parametrize("size", SIZES)
async def test_engine_process_when_a_rank_is_killed_then_restarts_with_all_memory(folder, size):
    config = EngineConfig(
        model=str(folder), device="cuda", dtype="bfloat16", memory_fraction=0.12, seed=1,
        max_num_seqs=4, max_model_len=1024, tensor_parallel_size=size,
    )  # fmt: skip
    engine = IpcEngineClient(config, 1)
    free = [torch.cuda.mem_get_info(i)[0] for i in range(size)]
    await engine.start()

    async def ask(count, kill=None):
        sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, seed=0)
        asked = EngineRequest(request_id=str(count), prompt_token_ids=[5, 6], sampling=sampling)
        tokens = []
        async for event in await engine.submit(asked):
            tokens += event.token_ids
            if event.finish_reason is not None:
                return len(tokens), event.finish_reason, event.error_code
            if kill is not None and len(tokens) >= 10:
                kill.kill()
                kill = None
        raise AssertionError("no finish reason")

    try:
        children = psutil.Process(engine.pid).children()
        assert len(children) == size - 1
        assert await ask(4) == (4, "length", None)
        count, *end = await ask(900, kill=children[-1])
        assert count < 900
        assert end == ["error", "engine_dead"]
        while not engine.is_ready:
            await asyncio.sleep(0.1)
        assert await ask(5) == (5, "length", None)
        children += psutil.Process(engine.pid).children()
    finally:
        await engine.stop()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    for i in range(size):
        assert torch.cuda.mem_get_info(i)[0] > free[i] - 2**30
