"""Models split over processes give the logits of one process; what cannot be split is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lingflash.core.errors import ConfigError
from lingflash.core.hub import bundled_folder
from lingflash.models.checkpoint import read_checkpoint
from lingflash.models.config import load_model_config
from lingflash.models.layers.lightning import layer_decay_rate
from lingflash.models.loader import build_model
from lingflash.parallel.mesh import Mesh
from lingflash.parallel.shard import Shard
from lingflash.quant.scheme import read_formats
from oracle import write_checkpoint
from quant_support import quantize
from tensor_parallel_rank import run_case

RANK = Path(__file__).parents[1] / "tensor_parallel_rank.py"
IDS = torch.randint(0, 120, (37,), generator=torch.Generator().manual_seed(5)).tolist()
# Widths that blocks of 128 divide on each of four ranks.
BLOCKS = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "head_dim": 128,
    "v_head_dim": 128,
    "group_norm_size": 4,
    "moe_intermediate_size": 512,
    "moe_shared_expert_intermediate_size": 512,
    "intermediate_size": 512,
    "num_experts": 4,
}
FOUR = {"group_norm_size": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("split")
    blocks = write_checkpoint(root / "blocks", BLOCKS)
    return {
        "plain": write_checkpoint(root / "plain"),
        "no q_lora_rank, tied": write_checkpoint(
            root / "tied", {"q_lora_rank": None, "tie_word_embeddings": True}
        ),
        "six heads": write_checkpoint(
            root / "six",
            {
                "num_attention_heads": 6,
                "num_kv_heads_for_linear_attn": 6,
                "num_shared_experts": 2,
                "moe_shared_expert_intermediate_size": 40,
            },
        ),
        "four": write_checkpoint(root / "four", FOUR),
        "fp8": quantize(blocks, root / "fp8", "fp8"),
        "int4": quantize(blocks, root / "int4", "int4", 128),
        "int4-fp8": quantize(blocks, root / "int4-fp8", "int4-fp8", 32),
        "nano": bundled_folder(),
        "nano int4": quantize(bundled_folder(), root / "nano", "int4", 32),
    }


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (2, ["plain", "no q_lora_rank, tied", "six heads", "fp8", "int4", "nano int4"]),
        (4, ["four", "int4-fp8", "nano"]),
    ],
)
def test_logits_when_split_then_are_those_of_one_process(folders, tmp_path, size, names):
    cases = {name: (str(folders[name]), IDS) for name in names}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(rank), str(size), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    expected = {name: run_case(folders[name], IDS, Mesh()) for name in names}
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=160)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
    for name in names:
        found = load_file(tmp_path / f"{name}-0.safetensors")
        assert found.keys() == expected[name].keys()
        # Compiled kernels round activations for INT4 to 16 bits, each rank those of its own sums.
        tolerance = 6e-4 if "int4" in name else 2e-4
        for key, value in expected[name].items():
            torch.testing.assert_close(
                found[key],
                value,
                atol=tolerance,
                rtol=1e-4,
                msg=lambda m, n=name, k=key: f"{n} {k}: {m}",
            )
    if "plain" in names:
        first, second = (load_file(tmp_path / f"plain-{rank}.safetensors") for rank in (0, 1))
        for key, value in first.items():
            assert torch.equal(second[key], value)  # all ranks go on with the same numbers


def build(folder, size, rank=0, **changes):
    config = replace(load_model_config(folder), **changes)
    entries = read_checkpoint(folder)
    return build_model(
        config,
        entries,
        read_formats(config.quantization_config, entries),
        dtype=torch.float32,
        device=torch.device("meta"),
        max_model_len=8,
        mesh=Mesh(Shard(rank, size)),
    )


def test_size_when_it_would_split_a_norm_group_then_is_refused_with_the_reason(folders):
    with pytest.raises(ConfigError, match=r"4 groups.*cannot be split between ranks.*1, 2, 4\."):
        build(folders["nano"], 8)
    with pytest.raises(ConfigError, match="group_norm_size"):
        build(folders["plain"], 3)


def test_size_when_it_does_not_divide_heads_widths_or_words_then_is_refused(folders):
    for changes, what in (
        ({"num_attention_heads": 6}, "num_attention_heads"),
        ({"intermediate_size": 58}, "intermediate_size"),
        ({"moe_intermediate_size": 30}, "moe_intermediate_size"),
        ({"vocab_size": 130}, "vocab_size"),
    ):
        with pytest.raises(ConfigError, match=rf"does not divide {what}"):
            build(folders["four"], 4, **changes)


def test_blocks_when_a_rank_would_get_a_part_of_one_then_is_refused(tmp_path):
    folder = quantize(bundled_folder(), tmp_path / "fp8", "fp8")
    with pytest.raises(ConfigError, match=r"inside a quantization block of 128"):
        build(folder, 2)
    folder = quantize(bundled_folder(), tmp_path / "int4", "int4", 128)
    with pytest.raises(ConfigError, match=r"columns of .*down_proj.*block of 128"):
        build(folder, 2)


def test_decay_when_split_then_each_rank_has_its_heads(folders):
    config = load_model_config(folders["nano"])
    whole = layer_decay_rate(config, 2)
    parts = [layer_decay_rate(config.share(Shard(rank, 4)), 2) for rank in range(4)]
    assert torch.equal(torch.cat(parts), whole)


def test_shares_when_put_together_then_are_the_whole_checkpoint(folders):
    """No row or column of a tensor is left out or, unless it is on every rank, held twice."""
    for name in ("four", "fp8", "int4-fp8"):
        seen = {}
        for rank in range(4):
            for tensor, slot in build(folders[name], 4, rank).weight_slots.items():
                cut = slot.cut
                columns = cut.columns or (0, 1)
                width = slot.shape[1] if len(slot.shape) > 1 else 1
                held = seen.setdefault(tensor, torch.zeros(slot.shape[0], width))
                for lo, hi in cut.rows:
                    held[lo:hi, columns[0] : columns[1]] += 1
        for tensor, held in seen.items():
            assert float(held.min()) == float(held.max()), tensor
            assert float(held.max()) in (1.0, 4.0), tensor
