"""Bad checkpoints: one clear message each, nothing guessed, nothing silently dropped."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingflash.core.errors import ModelLoadError, UnsupportedModelError
from lingflash.core.hub import resolve_model
from lingflash.models import checkpoint
from lingflash.models.checkpoint import read_header
from lingflash.models.config import parse_model_config
from lingflash.models.loader import load_stop_token_ids
from models_support import feed_in_chunks, load
from oracle import SMALL, write_checkpoint

SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
MTP = "model-mtp-layer.safetensors"


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "m")


def edit(path, change):
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def rewrite(folder, file, change):
    """Change a shard's tensors and keep the index true."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)

    def fix(index):
        kept = {n: f for n, f in index["weight_map"].items() if f != file}
        index["weight_map"] = kept | dict.fromkeys(tensors, file)

    edit(folder / INDEX, fix)


def test_shard_when_truncated_then_names_the_file_and_the_sizes(folder):
    data = (folder / SHARD).read_bytes()
    for keep in (0, 5, 100, len(data) // 2, len(data) - 1):
        (folder / SHARD).write_bytes(data[:keep])
        with pytest.raises(ModelLoadError, match=f"{SHARD}.*(truncated|cannot be read)"):
            load(folder)


def test_shard_when_it_is_garbage_then_says_so(folder):
    for garbage in (
        b"\xff" * 64,
        b"<html>not found</html>" * 9,
        struct.pack("<Q", 8) + b"not json",
    ):
        (folder / SHARD).write_bytes(garbage)
        with pytest.raises(ModelLoadError, match=SHARD):
            load(folder)


def test_shard_when_a_tensor_entry_is_corrupt_then_names_it(folder):
    data = (folder / SHARD).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight" if "model.norm.weight" in header else next(iter(header))][
        "shape"
    ] = [3]
    body = json.dumps(header).encode().ljust(length)[:length]
    (folder / SHARD).write_bytes(data[:8] + body + data[8 + length :])
    with pytest.raises(ModelLoadError, match=r"corrupt|cannot be read"):
        load(folder)


def test_index_when_it_names_a_missing_file_then_says_the_download_is_incomplete(folder):
    (folder / SHARD).unlink()
    with pytest.raises(ModelLoadError, match=f"not there: {SHARD}.*incomplete"):
        load(folder)


def test_index_when_it_points_to_the_wrong_file_then_names_the_tensor(folder):
    edit(folder / INDEX, lambda raw: raw["weight_map"].update({"model.norm.weight": MTP}))
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight"):
        load(folder)


def test_index_when_it_is_not_json_then_says_so(folder):
    (folder / INDEX).write_text("{")
    with pytest.raises(ModelLoadError, match="weight_map"):
        load(folder)


def test_tensor_when_missing_then_is_named(folder):
    rewrite(folder, SHARD, lambda t: t.pop("model.word_embeddings.weight"))
    with pytest.raises(ModelLoadError, match=r"1 tensors are missing: model\.word_embeddings"):
        load(folder)


def test_tensor_when_unused_then_is_named(folder):
    rewrite(folder, SHARD, lambda t: t.update({"model.surprise": torch.ones(2)}))
    with pytest.raises(ModelLoadError, match=r"no place in the model: model\.surprise"):
        load(folder)


def test_tensor_when_of_a_wrong_shape_then_both_shapes_are_said(folder):
    rewrite(folder, SHARD, lambda t: t.update({"model.word_embeddings.weight": torch.ones(3, 48)}))
    with pytest.raises(ModelLoadError, match=r"is \[3, 48\], needed is \[128, 48\]"):
        load(folder)


def test_tensor_when_quantized_then_is_refused_by_dtype(folder):
    rewrite(
        folder,
        SHARD,
        lambda t: t.update(
            {"model.word_embeddings.weight": torch.ones(128, 48).to(torch.float8_e4m3fn)}
        ),
    )
    with pytest.raises(UnsupportedModelError, match="F8_E4M3"):
        load(folder)


def test_mtp_when_all_tensors_are_absent_then_loads_without(folder, caplog):
    (folder / MTP).unlink()
    edit(
        folder / INDEX,
        lambda raw: raw.update(weight_map={n: f for n, f in raw["weight_map"].items() if f != MTP}),
    )
    model = load(folder)
    assert model.mtp is None
    assert "speculative decoding is unavailable" in caplog.text
    feed_in_chunks(model, [1, 2, 3], 2)


def test_mtp_when_some_tensors_are_absent_then_is_an_error(folder):
    rewrite(folder, MTP, lambda t: t.pop("model.layers.4.enorm.weight"))
    with pytest.raises(ModelLoadError, match=r"missing: model\.layers\.4\.enorm\.weight"):
        load(folder)


def test_single_file_when_there_is_no_index_then_loads_the_same(folder, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    (one / "config.json").write_text((folder / "config.json").read_text())
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    save_file(tensors, one / "model.safetensors")
    expected, _ = feed_in_chunks(load(folder), [1, 2, 3], 3)
    actual, _ = feed_in_chunks(load(one), [1, 2, 3], 3)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"architectures": ["BailingMoeV3ForCausalLM"]}, UnsupportedModelError, "V3.*KDA"),
        ({"architectures": ["LlamaForCausalLM"]}, UnsupportedModelError, "LlamaForCausalLM"),
        ({"architectures": None}, UnsupportedModelError, "names nothing"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act is 'gelu'"),
        ({"score_function": "softmax"}, UnsupportedModelError, "score_function"),
        (
            {"num_attention_heads": 0, "num_kv_heads_for_linear_attn": 0},
            ModelLoadError,
            "num_attention_heads is 0; 1 or more",
        ),
        ({"use_bias": True}, UnsupportedModelError, "use_bias"),
        ({"rope_interleave": False}, UnsupportedModelError, "rope_interleave"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, UnsupportedModelError, "llama3"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            ModelLoadError,
            "original_max_position_embeddings",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                    "mscale_all_dim": 1.0,
                }
            },
            UnsupportedModelError,
            "mscale_all_dim",
        ),
        ({"hidden_size": "48"}, ModelLoadError, "hidden_size is '48'"),
        ({"num_experts": 0}, ModelLoadError, "num_experts is 0"),
        ({"n_group": 3}, ModelLoadError, "n_group"),
        ({"topk_group": 9}, ModelLoadError, "topk_group"),
        ({"group_norm_size": 5}, ModelLoadError, "group_norm_size"),
        ({"num_experts_per_tok": 7}, ModelLoadError, "num_experts_per_tok"),
        ({"num_kv_heads_for_linear_attn": 2}, UnsupportedModelError, "num_kv_heads"),
        ({"num_nextn_predict_layers": 2}, ModelLoadError, "num_nextn_predict_layers"),
        ({"norm_topk_prob": "yes"}, ModelLoadError, "norm_topk_prob"),
        ({"eos_token_id": "x"}, ModelLoadError, "eos_token_id"),
    ],
)
def test_config_when_a_value_would_change_the_answer_then_is_refused(changes, error, match):
    with pytest.raises(error, match=match):
        parse_model_config(SMALL | changes)


def test_config_when_a_field_is_missing_then_is_named():
    for key in ("vocab_size", "kv_lora_rank", "num_experts_per_tok", "layer_group_size"):
        raw = {k: v for k, v in SMALL.items() if k != key}
        with pytest.raises(ModelLoadError, match=key):
            parse_model_config(raw)


def test_config_when_a_key_is_unknown_then_warns(caplog):
    parse_model_config(SMALL | {"colour": "blue"})
    assert "colour" in caplog.text


def test_config_when_quantized_then_is_refused_by_name(folder):
    edit(
        folder / "config.json", lambda raw: raw.update(quantization_config={"quant_method": "fp8"})
    )
    with pytest.raises(UnsupportedModelError, match="'fp8'"):
        load(folder)


def test_stop_ids_when_both_files_name_some_then_are_joined(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [126, 127]}')
    assert load_stop_token_ids(folder, parse_model_config(SMALL | {"eos_token_id": 5})) == [
        5,
        126,
        127,
    ]


def test_stop_ids_when_out_of_range_or_no_ids_then_are_refused(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": "end"}')
    with pytest.raises(ModelLoadError, match="eos_token_id is 'end'"):
        load_stop_token_ids(folder, parse_model_config(SMALL))
    (folder / "generation_config.json").write_text('{"eos_token_id": 999}')
    with pytest.raises(ModelLoadError, match="outside the vocabulary"):
        load_stop_token_ids(folder, parse_model_config(SMALL))


def test_name_when_nothing_of_it_exists_then_says_what_is_possible(tmp_path):
    with pytest.raises(ModelLoadError, match="neither a folder nor a hub id"):
        resolve_model("no such thing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelLoadError, match="is a file"):
        resolve_model(str(tmp_path / "file"))


def test_hub_id_when_offline_and_not_cached_then_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match="offline"):
        resolve_model("nobody/no-such-model")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_theta", 0),
        ("rope_theta", -1.0),
        ("rope_theta", float("nan")),
        ("rope_theta", 10**400),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 0.0),
        ("routed_scaling_factor", float("inf")),
        ("routed_scaling_factor", -2.5),
        ("hidden_size", 10**12),
        ("num_experts", 10**9),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 0),
        ("vocab_size", 10**11),
        ("max_position_embeddings", 10**18),
        ("intermediate_size", -1),
        ("q_lora_rank", 0),
        ("first_k_dense_replace", -1),
        ("partial_rotary_factor", float("nan")),
        ("eos_token_id", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": float("inf"),
                          "original_max_position_embeddings": 4096}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "beta_fast": float("nan"),
                          "original_max_position_embeddings": 4096}),
    ],
)  # fmt: skip
def test_config_when_a_number_is_none_to_compute_with_then_refused_by_name(name, value):
    with pytest.raises(ModelLoadError, match=name) as caught:
        parse_model_config(SMALL | {name: value})
    assert len(caught.value.message) < 400


def test_model_when_config_has_more_experts_than_there_are_tensors_then_refused_at_once(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_experts": 2**16, "num_hidden_layers": 2000}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="tensors, but 2000 layers"):
        load(folder)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"shape": [1] * 9}, "corrupt"),
        ({"shape": [-4, -2]}, "corrupt"),
        ({"data_offsets": [32, 0]}, "corrupt"),
        ({"data_offsets": [0, 10**30], "shape": [25 * 10**28]}, "truncated"),
        ({"shape": "x" * 10}, "corrupt"),
        ({"dtype": ["F32"]}, "corrupt"),
    ],
)
def test_header_when_an_entry_cannot_be_then_says_so(tmp_path, entry, says):
    header = {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]} | entry}
    path = tmp_path / "model.safetensors"
    body = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body + bytes(32))
    with pytest.raises(ModelLoadError, match=says):
        read_header(path)


def test_header_when_it_lists_too_many_tensors_then_refused_before_it_is_parsed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "_MAX_TENSORS", 1000)
    item = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    body = b"{" + b",".join(item % i for i in range(1001)) + b"}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(body)) + body)
    with pytest.raises(ModelLoadError, match="1,001 tensors; at most 1,000"):
        read_header(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_load_when_a_file_is_a_pipe_then_refused_and_not_waited_for(folder, name):
    if name != "model.safetensors":
        path = folder / name
    else:
        path = next(folder.glob("*.safetensors"))
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(ModelLoadError, match="is a pipe"):
        load_stop_token_ids(folder, load(folder).config)
