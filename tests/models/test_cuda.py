"""The same model on an NVIDIA GPU: float32 against the golden numbers, BF16 layer by layer."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from engine_support import finish, new_engine, request, tokens_of
from lingflash import LLM, SamplingParams
from lingflash.cache.memory_ops import HostCopy, LoadState, SaveState, StoreBlocks, ZeroBlocks
from lingflash.core.config import EngineConfig
from lingflash.engine.loop import EngineLoop
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.models.forward_batch import Trace, make_forward_batch
from models_support import BLOCK, CHECKPOINT, GOLDEN, load
from oracle import write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def golden():
    return {k: v.cuda() for k, v in load_file(GOLDEN / "golden.safetensors").items()}


def runner(dtype):
    return ModelRunner.from_config(
        EngineConfig(
            model=str(CHECKPOINT), device="cuda", dtype=dtype, max_num_seqs=4, block_size=BLOCK
        )
    )


def run(runner, ids, sizes, trace=None):
    out, start = [], 0
    runner.cache.forget_slots([1])
    while start < len(ids):
        batch = make_forward_batch(
            [ids[start : start + sizes]],
            [start],
            [list(range(3, 40))],
            [1],
            [],
            block_size=BLOCK,
            device=CUDA,
        )
        out.append(runner.model.logits(runner.model.forward(batch, runner.cache, trace)))
        start += sizes
    return torch.cat(out)


@pytest.mark.parametrize("size", [1, 17, 1000])
@pytest.mark.parametrize("length", [7, 64, 200])
def test_logits_when_in_float32_then_match_the_golden_numbers(golden, length, size):
    ids = golden[f"L{length}.input_ids"].flatten().tolist()
    logits = run(runner("float32"), ids, size)
    assert (logits - golden[f"L{length}.logits"].reshape(logits.shape)).abs().max() < 5e-4


def test_layers_when_in_bf16_with_forced_routing_then_are_close_one_by_one(golden):
    made = runner("bfloat16")
    model, ids = made.model, golden["L64.input_ids"].flatten().tolist()
    batch = make_forward_batch([ids], [0], [list(range(8))], [0], [], block_size=BLOCK, device=CUDA)
    trace = Trace()
    for i, layer in enumerate(model.layers):
        if f"L64.layer{i}.topk_idx" in golden:
            trace.forced_routing[i] = (
                golden[f"L64.layer{i}.topk_idx"].reshape(64, -1).long(),
                golden[f"L64.layer{i}.topk_w"].reshape(64, -1),
            )
        before = golden["L64.embed" if i == 0 else f"L64.layer{i - 1}.hidden"].reshape(64, -1)
        with torch.inference_mode():
            rotary = model.rotary_at(batch.positions)
            out = layer.forward(before.bfloat16(), rotary, batch, made.cache, trace)
        expected = golden[f"L64.layer{i}.hidden"].reshape(64, -1)
        error = (out.float() - expected).norm() / expected.norm()
        assert error < 1.5e-2, (i, error.item())


def test_answers_when_generated_on_the_gpu_then_equal_those_of_the_cpu():
    prompts = [[(11 * t + i) % 500 for t in range(5 + 9 * i)] for i in range(6)]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    answers = [
        [
            o.outputs[0].token_ids
            for o in LLM(str(CHECKPOINT), device=device, dtype="float32").generate(
                prompt_token_ids=prompts, sampling_params=params
            )
        ]
        for device in ("cuda", "cpu")
    ]
    equal = sum(a == b for a, b in zip(*answers, strict=True))
    assert equal >= 5, "more than one near-tie among six answers is not a near-tie"


def test_answers_when_steps_overlap_then_equal_token_for_token_to_the_plain_loop(tmp_path):
    """Sequences end by length, so that both loops make the same batches."""
    # Not the golden model: its shared expert is as wide as two, for which there are no graphs.
    folder = write_checkpoint(tmp_path / "m")
    config = EngineConfig(
        model=str(folder), device="cuda", dtype="bfloat16", max_num_seqs=8, block_size=BLOCK
    )
    made = ModelRunner.from_config(config)
    assert made.can_overlap
    answers, num_ahead = [], []
    for overlaps in (True, False):
        loop = EngineLoop(config, made)
        loop.overlaps = overlaps
        for i in range(6):
            loop.add(
                request(
                    f"r{i}", [(11 * t + i) % 120 for t in range(5 + 9 * i)], seed=i, n=1 + i % 2,
                    max_tokens=60 + 7 * i, ignore_eos=True, temperature=float(i % 3),
                )
            )  # fmt: skip
        events, count = [], 0
        while loop.has_work:
            events += loop.step()
            count += loop._in_flight is not None
        answers.append(tokens_of(events))
        num_ahead.append(count)
        assert loop.stats().free_blocks == loop.stats().num_blocks
    assert answers[0] == answers[1]
    assert num_ahead[0] > 60
    assert num_ahead[1] == 0


def test_host_tier_when_a_prompt_was_evicted_then_comes_back_bit_for_bit():
    model = load(device=CUDA)
    loop = new_engine(model=model, prefix_caching=True, num_blocks=24, num_host_blocks=200)
    bits = torch.randint(-(2**31), 2**31 - 1, loop.runner.cache.states[:, 0].shape).int()
    loop.runner.cache.states[:, 2] = bits.cuda().view(torch.float32)
    blocks = list(range(24 - loop.runner.plan.checkpoint_blocks, 24))
    copy = HostCopy(list(range(100, 100 + len(blocks))))
    memory = loop.runner.memory
    memory.run([SaveState(2, blocks), StoreBlocks(blocks, copy), ZeroBlocks(blocks)])
    while not memory.poll():
        pass
    memory.run([LoadState(copy.blocks, 1, from_host=True)])
    assert torch.equal(loop.runner.cache.states[:, 1].view(torch.int32).cpu(), bits)

    def ask(token_ids):
        loop.add(request("r", token_ids, max_tokens=1, temperature=0.0))
        events = finish(loop)
        torch.cuda.synchronize()
        return events[0].num_cached_tokens

    prompt = [(7 * t) % 500 for t in range(100)]
    assert ask(prompt) == 0
    for content in range(1, 4):
        ask([(content * 11 + 3 * t) % 500 for t in range(180)])
    assert loop.stats().cache_bytes["host"] > 0
    assert ask(prompt) == 96
