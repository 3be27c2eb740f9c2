"""The model through the GPU's plans and kernels; without a GPU in Triton's interpreter."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from lingflash.models import forward_batch
from lingflash.models.forward_batch import make_forward_batch
from models_support import BLOCK, GOLDEN, load, new_cache

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _planned_for_a_gpu(monkeypatch):
    for name in ("plan_lightning", "plan_mla"):
        plan = partial(getattr(forward_batch, name), for_gpu=True)
        monkeypatch.setattr(forward_batch, name, plan)


def test_golden_logits_when_steps_mix_decoding_and_prompts_then_are_met_by_the_kernels():
    golden = load_file(GOLDEN / "golden.safetensors")
    short, long = (golden[f"L{n}.input_ids"].flatten().tolist() for n in (64, 200))
    model = load(device=DEVICE)
    cache = new_cache(model)

    def step(*parts):
        batch = make_forward_batch(
            [ids[lo:hi] for ids, _, lo, hi in parts],
            [lo for _, _, lo, _ in parts],
            [list(range(1 + 15 * slot, 15 + 15 * slot)) for _, slot, _, _ in parts],
            [slot for _, slot, _, _ in parts],
            [],
            block_size=BLOCK,
            device=DEVICE,
        )
        logits = model.logits(model.forward(batch, cache)).cpu()
        expected = [
            golden[f"L{len(ids)}.logits"].reshape(len(ids), -1)[lo:hi] for ids, _, lo, hi in parts
        ]
        assert (logits - torch.cat(expected)).abs().max() < 5e-4

    step((short, 0, 0, 20), (long, 1, 0, 9))
    step((short, 0, 20, 21), (long, 1, 9, 79), (short, 2, 0, 5))
    step((short, 0, 21, 22), (short, 2, 5, 6))
    step((short, 0, 22, 30), (long, 1, 79, 82), (short, 2, 6, 7))
