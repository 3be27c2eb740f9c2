"""The GPU's decode step against the model's own forward pass: on a GPU, or in the interpreter."""

from __future__ import annotations

import copy

import pytest
import torch

from lingflash.core.anchors import ANCHOR
from lingflash.models.cuda_decoder import CudaDecoder, DecodeInputs
from lingflash.models.forward_batch import make_forward_batch
from models_support import BLOCK, load, new_cache
from oracle import write_checkpoint
from quant_support import quantize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Widths that the quantized kernels take.
WIDTHS = {
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "moe_shared_expert_intermediate_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "layer_group_size": 3,
    "num_experts": 4,
    "n_group": 2,
    "topk_group": 1,
}


def inputs(token_ids, starts, tables, slots) -> DecodeInputs:
    def put(values):
        return torch.tensor(values, device=DEVICE)

    blocks = [table[start // BLOCK] for table, start in zip(tables, starts, strict=True)]
    return DecodeInputs(
        token_ids=put(token_ids),
        positions=put(starts),
        slot_mapping=put([b * BLOCK + s % BLOCK for b, s in zip(blocks, starts, strict=True)]),
        state_slots=put(slots),
        tail_offsets=put([start % ANCHOR for start in starts]),
        lengths=put([start + 1 for start in starts]),
        block_tables=put(tables),
        max_length=len(tables[0]) * BLOCK,
    )


@pytest.mark.parametrize(
    ("fmt", "num_seqs", "changes"),
    [
        ("bf16", 2, {}),
        ("fp8", 1, {}),
        ("fp8", 2, {"q_lora_rank": None, "num_shared_experts": 0}),
        ("int4", 2, {}),
        ("int4-fp8", 1, {}),
    ],
)
def test_decode_steps_when_launched_then_are_those_of_the_model(tmp_path, fmt, num_seqs, changes):
    folder = write_checkpoint(tmp_path / "m", WIDTHS | changes)
    if fmt != "bf16":
        folder = quantize(folder, tmp_path / "q", fmt, 128)
    model = load(folder, dtype=torch.bfloat16, device=DEVICE)
    cache = new_cache(model)
    # One row's kernels are slow in the interpreter: one step, at which the tail is full.
    steps, lens = (1, [15]) if num_seqs == 1 else (3, [13, 29])
    slots = [2, 1][:num_seqs]
    tables = [[5, 7, 9], [3, 4, 11]][:num_seqs]
    prompts = [[(7 * t + i) % 120 for t in range(n)] for i, n in enumerate(lens)]

    def run(cache, tokens, starts):
        batch = make_forward_batch(
            tokens, starts, tables, slots, [], block_size=BLOCK, device=DEVICE
        )
        return model.logits(model.forward(batch, cache))

    run(cache, prompts, [0] * num_seqs)
    expected_cache = copy.deepcopy(cache)
    decoder = CudaDecoder(model, cache)
    for step in range(steps):
        tokens = [(11 * step + i) % 120 for i in range(num_seqs)]
        starts = [n + step for n in lens]
        expected = run(expected_cache, [[t] for t in tokens], starts)
        got = decoder.logits(decoder.forward(inputs(tokens, starts, tables, slots)))
        assert got.shape == expected.shape
        error = (got - expected).norm() / expected.norm()
        assert error < 0.05, (step, error)
    # Positions 15 and 31 were passed: states were folded and tails begun anew.
    got, expected = (c.states[:, slots] for c in (cache, expected_cache))
    assert (got - expected).norm() < 0.03 * expected.norm()
