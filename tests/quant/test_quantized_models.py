"""Quantized checkpoints run as the numbers that they stand for, and bad ones are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kernels_support import HERE, kernels_of
from lingflash.core.errors import ModelLoadError, UnsupportedModelError
from lingflash.kernels.cpu.packed import lanes
from lingflash.models.cpu_decoder import CpuDecoder
from lingflash.models.loader import load_model
from lingflash.quant.matrix import QuantizedExperts, QuantizedMatrix, StackedMatrix, linear
from models_support import CPU, feed_in_chunks, load, new_cache
from oracle import write_checkpoint
from quant_support import WIDE, quantize, write_dense

IDS = torch.randint(0, 120, (40,), generator=torch.Generator().manual_seed(5)).tolist()
FORMATS = ("fp8", "int4", "int4-fp8")
INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
QKV = "model.layers.0.attention.query_key_value.weight"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("quantized")
    source = write_checkpoint(root / "bf16", WIDE)
    return {"bf16": source} | {f: quantize(source, root / f, f) for f in FORMATS}


def rewrite(folder, copy, change, config=None):
    """A copy in one file with its tensors, and its quantization_config, changed."""
    copy.mkdir()
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    if config is not None:
        config(raw["quantization_config"])
    (copy / "config.json").write_text(json.dumps(raw))
    return copy


@pytest.mark.parametrize("name", FORMATS)
def test_logits_when_quantized_then_are_those_of_the_numbers_it_stands_for(
    converted, tmp_path, name
):
    model = load(converted[name])
    expected, _ = feed_in_chunks(load(write_dense(converted[name], tmp_path / "m")), IDS, 1000)
    # Compiled kernels round activations for INT4 to 16 bits.
    tolerance = 1e-4 if name == "fp8" or not lanes() else 4e-4
    for size, invariant in ((1, False), (7, False), (1000, False), (1000, True)):
        logits, _ = feed_in_chunks(model, IDS, size, batch_invariant=invariant)
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("processor", HERE)
@pytest.mark.parametrize("name", ["fp8", "int4-fp8"])
def test_logits_when_batch_invariant_then_have_the_same_bits_in_any_chunks(
    converted, name, processor
):
    with kernels_of(processor):
        model = load(converted[name])
        expected, _ = feed_in_chunks(model, IDS, 1000, batch_invariant=True)
        for size in (1, 7, 16, 33):
            logits, _ = feed_in_chunks(model, IDS, size, batch_invariant=True)
            assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_when_quantized_then_stay_packed_and_the_c_decoder_is_not_used(converted, name):
    model = load(converted[name])
    assert model.is_quantized
    experts = model.layers[1].mlp.w_gate_up
    assert isinstance(experts, QuantizedExperts)
    assert experts.values.dtype == (torch.float8_e4m3fn if name == "fp8" else torch.int32)
    qkvg = model.layers[0].attention.w_qkvg
    assert isinstance(qkvg, torch.Tensor if name == "int4" else QuantizedMatrix)
    assert isinstance(model.w_head, QuantizedMatrix if name == "int4-fp8" else torch.Tensor)
    assert CpuDecoder.create(model, new_cache(model)) is None


def test_bfloat16_when_quantized_then_runs_and_agrees_roughly(converted):
    model = load(converted["int4-fp8"], dtype=torch.bfloat16)
    cache = new_cache(model)
    cache = type(cache)(cache.latents.bfloat16(), cache.states, cache.tail_k, cache.tail_v)
    from models_support import feed

    exact, _ = feed_in_chunks(load(converted["int4-fp8"]), IDS, 1000)
    logits = feed(model, cache, IDS)
    similarity = torch.nn.functional.cosine_similarity(logits, exact)
    assert float(similarity.median()) > 0.99


def test_linear_when_the_matrix_is_cut_into_pieces_then_gives_the_same(monkeypatch):
    from lingflash.quant import matrix
    from lingflash.quant.pack import quantize_fp8, quantize_int4

    weight = torch.randn(300, 64)
    x = torch.randn(3, 64)
    for values, scale, block in (
        (*quantize_fp8(weight, (128, 128)), (128, 128)),
        (*quantize_int4(weight, 32), (1, 32)),
    ):
        whole = QuantizedMatrix(values, scale, block, torch.float32, (300,))
        expected = linear(x, whole)
        monkeypatch.setattr(matrix, "_PIECE_ELEMENTS", 64)
        assert len(whole.pieces()) > 2
        torch.testing.assert_close(linear(x, whole), expected)
        torch.testing.assert_close(expected, x @ whole.dense().T)
        monkeypatch.undo()
    stacked = StackedMatrix((weight[:10], whole))
    torch.testing.assert_close(linear(x, stacked)[:, 10:], expected)
    with pytest.raises(ValueError, match="stacked"):
        stacked.split([5, 305])


def test_mla_when_only_some_matrices_of_a_stack_are_quantized_then_runs(converted, tmp_path):
    """Decided per tensor: kv_b_proj too, which the model keeps as numbers."""
    from lingflash.quant.pack import quantize_fp8

    def change(tensors):
        for name in [n for n in tensors if n.endswith(("q_a_proj.weight", "kv_b_proj.weight"))]:
            values, scale = quantize_fp8(tensors[name], (128, 128))
            tensors[name], tensors[name + "_scale_inv"] = values, scale

    folder = rewrite(converted["fp8"], tmp_path / "m", change)
    model = load(folder)
    assert isinstance(model.layers[1].attention.w_in, StackedMatrix)
    expected, _ = feed_in_chunks(load(write_dense(folder, tmp_path / "d")), IDS, 1000)
    logits, _ = feed_in_chunks(model, IDS, 9)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_compressed_tensors_fp8_when_by_block_or_channel_then_loads(converted, tmp_path):
    def change(tensors):
        for name in [n for n in tensors if n.endswith("_scale_inv")]:
            tensors[name.removesuffix("_inv")] = tensors.pop(name)

    def config(raw):
        raw.clear()
        raw |= {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "type": "float",
                        "num_bits": 8,
                        "strategy": "block",
                        "block_structure": [128, 128],
                    },
                    "input_activations": {"type": "float", "num_bits": 8, "dynamic": True},
                }
            },
        }

    folder = rewrite(converted["fp8"], tmp_path / "m", change, config)
    expected, _ = feed_in_chunks(load(converted["fp8"]), IDS, 1000)
    logits, _ = feed_in_chunks(load(folder), IDS, 1000)
    assert torch.equal(logits, expected)


def test_int4_when_the_checkpoint_has_no_mtp_tensors_then_loads_without(
    converted, tmp_path, caplog
):
    def change(tensors):
        for name in [n for n in tensors if n.startswith("model.layers.4.")]:
            del tensors[name]

    model = load(rewrite(converted["int4"], tmp_path / "m", change))
    assert model.mtp is None
    assert "speculative decoding is unavailable" in caplog.text


def no_change(tensors):
    pass


@pytest.mark.parametrize(
    ("name", "change", "error", "match"),
    [
        ("fp8", lambda t: t.pop(QKV + "_scale_inv"), ModelLoadError, "scale_inv is missing"),
        ("int4-fp8", lambda t: t.pop(QKV + "_scale"), ModelLoadError, "weight_scale is missing"),
        ("int4", lambda t: t.pop(EXPERT + "_scale"), ModelLoadError, "weight_scale is missing"),
        ("int4", lambda t: t.pop(EXPERT + "_shape"), ModelLoadError, "weight_shape is missing"),
        ("int4", lambda t: t.pop(EXPERT + "_packed"), ModelLoadError, r"missing|no place"),
        (
            "fp8",
            lambda t: t.update({QKV + "_scale_inv": torch.ones(1, 2)}),
            ModelLoadError,
            r"is \[1, 2\], which is not one scale per block of 128 x 128",
        ),
        (
            "int4",
            lambda t: t.update({EXPERT + "_scale": torch.ones(96, 3)}),
            ModelLoadError,
            r"is \[96, 3\], which is no grid.*groups of 32",
        ),
        (
            "int4",
            lambda t: t.update({EXPERT + "_shape": torch.tensor([96, 159])}),
            ModelLoadError,
            r"says \[96, 159\].*\[96, 160\]",
        ),
        (
            "int4",
            lambda t: t.update({EXPERT + "_packed": t[EXPERT + "_packed"].long()}),
            ModelLoadError,
            "int32 words",
        ),
        (
            "int4",
            lambda t: t.update({EXPERT + "_scale": t[EXPERT + "_scale"].double()}),
            UnsupportedModelError,
            "scales of dtype F64",
        ),
        (
            "int4",
            lambda t: t.update({EXPERT + "_zero_point": torch.zeros(12, 5, dtype=torch.int32)}),
            UnsupportedModelError,
            "zero points",
        ),
        (
            "int4",
            lambda t: t.update({EXPERT + "_g_idx": torch.zeros(160, dtype=torch.int32)}),
            UnsupportedModelError,
            "actorder",
        ),
        (
            "fp8",
            lambda t: t.update({QKV: t[QKV][:100].clone(), QKV + "_scale_inv": torch.ones(1, 2)}),
            ModelLoadError,
            r"holds a matrix of \[100, 160\]",
        ),
        (
            "fp8",
            lambda t: t.update({"model.norm.weight": torch.ones(160).to(torch.float8_e4m3fn)}),
            ModelLoadError,
            "matrices only",
        ),
    ],
)
def test_tensors_when_malformed_then_one_clear_error(
    converted, tmp_path, name, change, error, match
):
    with pytest.raises(error, match=match):
        load(rewrite(converted[name], tmp_path / "m", change))


def weights_of(raw):
    return raw["config_groups"]["group_0"]["weights"]


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("fp8", lambda q: q.update(quant_method="gptq"), "quant_method is 'gptq'"),
        ("fp8", lambda q: q.update(quant_method=None), "quant_method is None"),
        ("fp8", lambda q: q.pop("weight_block_size"), "weight_block_size is None"),
        ("fp8", lambda q: q.update(weight_block_size=[128]), r"weight_block_size is \[128\]"),
        ("fp8", lambda q: q.update(fmt="e5m2"), "fmt is 'e5m2'"),
        ("fp8", lambda q: q.update(activation_scheme="static"), "activation_scheme is 'static'"),
        ("fp8", lambda q: q.update(scale_fmt="ue8m0"), "scale_fmt is 'ue8m0'"),
        ("int4", lambda q: q.update(format="marlin-24"), "format is 'marlin-24'"),
        ("int4", lambda q: q.update(config_groups={}), "config_groups is missing"),
        ("int4", lambda q: q.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        ("int4", lambda q: q.update(quantization_status="frozen"), "'frozen'"),
        ("int4", lambda q: q.update(sparsity_config={"format": "x"}), "sparsity_config"),
        ("int4", lambda q: weights_of(q).update(symmetric=False), "symmetric is false"),
        ("int4", lambda q: weights_of(q).update(actorder="weight"), "actorder is 'weight'"),
        ("int4", lambda q: weights_of(q).update(group_size=64), "group_size is 64"),
        ("int4", lambda q: weights_of(q).update(num_bits=8), "8 bits"),
        ("int4", lambda q: weights_of(q).update(strategy="channel"), "strategy 'channel'"),
        ("int4", lambda q: weights_of(q).update(dynamic=True), "dynamic is true"),
        (
            "int4",
            lambda q: q["config_groups"]["group_0"].update(input_activations={"dynamic": False}),
            "input_activations",
        ),
        (
            "int4",
            lambda q: q["config_groups"]["group_0"].update(output_activations={}),
            "output_activations",
        ),
    ],
)
def test_config_when_the_format_is_not_computed_then_is_refused_by_name(
    converted, tmp_path, name, config, match
):
    with pytest.raises(UnsupportedModelError, match=match):
        load(rewrite(converted[name], tmp_path / "m", no_change, config))


def test_config_when_it_disagrees_with_the_tensors_then_is_refused(converted, tmp_path):
    def announce(raw):
        raw.clear()
        raw |= {"quant_method": "fp8", "weight_block_size": [128, 128]}

    with pytest.raises(ModelLoadError, match="announces no 4-bit"):
        load(rewrite(converted["int4"], tmp_path / "a", no_change, announce))
    raw = json.loads((converted["bf16"] / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    plain = rewrite(converted["bf16"], tmp_path / "b", no_change)
    (plain / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelLoadError, match="no tensor of the checkpoint is quantized"):
        load(plain)


def test_experts_when_stored_in_different_formats_then_are_refused(converted, tmp_path):
    plain = load_file(next(converted["bf16"].glob("model-00001*")))
    plain |= load_file(next(converted["bf16"].glob("model-00002*")))

    def change(tensors):
        for leaf in ("_packed", "_scale", "_shape"):
            del tensors[EXPERT + leaf]
        tensors[EXPERT] = plain[EXPERT]

    with pytest.raises(UnsupportedModelError, match="different formats"):
        load(rewrite(converted["int4"], tmp_path / "m", change))


def test_flops_when_quantized_then_are_those_of_the_model(converted):
    from lingflash.bench.in_engine.in_process import prefill_flops

    expected = prefill_flops(str(converted["bf16"]), 100)
    for name in FORMATS:
        assert prefill_flops(str(converted[name]), 100) == expected


def test_progress_when_quantized_then_ends_at_all_bytes(converted):
    seen = []
    load_model(
        converted["int4"],
        dtype=torch.float32,
        device=CPU,
        max_model_len=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] > 0
