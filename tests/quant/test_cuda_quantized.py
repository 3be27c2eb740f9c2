"""Quantized and split models on NVIDIA GPUs give what they give on the CPU."""

from __future__ import annotations

import pytest
import torch

from lingflash import LLM, SamplingParams
from lingflash.core.hub import bundled_folder
from lingflash.models.forward_batch import make_forward_batch
from models_support import CPU, load, new_cache
from oracle import write_checkpoint
from quant_support import WIDE, quantize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


@pytest.mark.parametrize("name", ["fp8", "int4", "int4-fp8"])
def test_logits_when_quantized_on_the_gpu_then_are_those_of_the_cpu(tmp_path, name):
    folder = quantize(write_checkpoint(tmp_path / "m", WIDE), tmp_path / "q", name)
    found = []
    for device in (CPU, torch.device("cuda")):
        model = load(folder, device=device)
        cache = new_cache(model)
        tensors = (cache.latents, cache.states, cache.tail_k, cache.tail_v)
        cache = type(cache)(*(t.to(device) for t in tensors))
        ids = [(7 * t) % 120 for t in range(40)]
        batch = make_forward_batch(
            [ids], [0], [list(range(3))], [1], [], block_size=16, device=device
        )
        found.append(model.logits(model.forward(batch, cache)).cpu())
    torch.testing.assert_close(found[1], found[0], atol=5e-4, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two NVIDIA GPUs")
@pytest.mark.parametrize("name", [None, "int4"])
def test_answers_when_split_over_two_gpus_then_are_those_of_one(tmp_path, name):
    folder = bundled_folder()
    if name is not None:
        folder = quantize(folder, tmp_path / "q", name)
    prompts = [[(11 * t + i) % 500 for t in range(5 + 9 * i)] for i in range(6)]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    answers = []
    for size in (1, 2):
        llm = LLM(str(folder), device="cuda", dtype="float32", tensor_parallel_size=size)
        outputs = llm.generate(prompt_token_ids=prompts, sampling_params=params)
        answers.append([o.outputs[0].token_ids for o in outputs])
        if size > 1:
            llm._loop.runner.model._ranks.close()
    equal = sum(a == b for a, b in zip(*answers, strict=True))
    assert equal >= 5, "more than one near-tie among six answers is not a near-tie"
