"""The compared models in vLLM: their configurations, and the process that would time them.

vLLM is not here: a stand-in with its engine's calls says whether the program counts what it times.
"""

from __future__ import annotations

import pytest

from lingflash.bench.on_gpu.peer_configs import MODELS, slice_config
from lingflash.bench.on_gpu.peers import measure_peers
from lingflash.bench.roofline.curves import charts, compared
from lingflash.bench.roofline.shapes import SHAPES
from lingflash.core.errors import ConfigError
from lingflash.records.record import Record

# Two prompts are read in a step; each sequence that has been read gains a token in every step.
STAND_IN = """
import json, pathlib, time
class Out:
    def __init__(self, id): self.request_id = id
class SamplingParams:
    def __init__(self, temperature, ignore_eos, detokenize, max_tokens): self.most = max_tokens
class Engine:
    def __init__(self): self.left, self.unread = {}, []
    def add_request(self, id, prompt, params):
        assert len(set(prompt["prompt_token_ids"])) > 1
        self.unread.append(id); self.left[id] = params.most
    def has_unfinished_requests(self): return bool(self.left)
    def abort_request(self, ids): self.left = {i: n for i, n in self.left.items() if i not in ids}
    def step(self):
        time.sleep(0.0005)
        del self.unread[:2]
        running = [i for i in self.left if i not in self.unread]
        for i in running:
            self.left[i] -= 1
            if not self.left[i]: del self.left[i]
        return [Out(i) for i in running]
class LLM:
    def __init__(self, model, **options):
        assert options["load_format"] == "dummy"
        config = json.loads(pathlib.Path(model, "config.json").read_text())
        if config["model_type"] == "nemotron_h": raise SystemExit(3)
        self.llm_engine = Engine()
    def apply_model(self, function): pass
"""


def weights_of(config):
    """Of all layers and the head, embedding and norms apart, counted from the config alone."""
    c = config
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    keys = c.get("num_key_value_heads")
    kind = c["model_type"]
    if kind == "glm4_moe":
        attention = hidden * c["head_dim"] * (2 * heads + 2 * keys)
        expert = 3 * hidden * c["moe_intermediate_size"]
        moe = (c["n_routed_experts"] + c["n_shared_experts"]) * expert
        moe += hidden * c["n_routed_experts"]
        dense = c["first_k_dense_replace"]
        total = c["num_hidden_layers"] * attention + (c["num_hidden_layers"] - dense) * moe
        total += dense * 3 * hidden * c["intermediate_size"]
    elif kind == "qwen3_5_moe_text":
        k = c["linear_num_key_heads"] * c["linear_key_head_dim"]
        v = c["linear_num_value_heads"] * c["linear_value_head_dim"]
        delta = hidden * (2 * k + 2 * v + 2 * c["linear_num_value_heads"]) + v * hidden
        full = hidden * c["head_dim"] * (3 * heads + 2 * keys)  # queries have gates
        moe = 3 * hidden * c["moe_intermediate_size"] * c["num_experts"]
        moe += 3 * hidden * c["shared_expert_intermediate_size"] + hidden * c["num_experts"]
        by_kind = {"linear_attention": delta, "full_attention": full}
        total = sum(by_kind[name] + moe for name in c["layer_types"])
    elif kind == "nemotron_h":
        inner = c["mamba_num_heads"] * c["mamba_head_dim"]
        groups = 2 * c["n_groups"] * c["ssm_state_size"]
        latent = c["moe_latent_size"]
        by_letter = {
            "M": hidden * (2 * inner + groups + c["mamba_num_heads"]) + inner * hidden,
            "*": hidden * c["head_dim"] * (2 * heads + 2 * keys),
            "E": 2 * latent * c["moe_intermediate_size"] * c["n_routed_experts"]
            + 2 * hidden * latent + hidden * c["n_routed_experts"]
            + 2 * hidden * c["moe_shared_expert_intermediate_size"],
        }  # fmt: skip
        total = sum(by_letter[letter] for letter in c["hybrid_override_pattern"])
    else:
        inner = heads * c["head_dim"]
        lightning = 5 * hidden * inner
        nope, rope, latent = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
        mla = hidden * (c["q_lora_rank"] + latent + rope)
        mla += c["q_lora_rank"] * heads * (nope + rope) + latent * heads * (nope + c["v_head_dim"])
        mla += heads * c["v_head_dim"] * hidden
        count = c["num_hidden_layers"]
        num_mla = count // c["layer_group_size"]
        moe = (c["num_experts"] + 1) * 3 * hidden * c["moe_intermediate_size"]
        moe += hidden * c["num_experts"]
        total = (count - num_mla) * lightning + num_mla * mla + (count - 1) * moe
        total += 3 * hidden * c["intermediate_size"]
    return total + hidden * c["vocab_size"]


@pytest.mark.parametrize("model", MODELS)
def test_config_then_its_weights_are_the_rooflines_and_a_rank_has_a_quarter(model):
    whole = weights_of(slice_config(model, 1, "bf16"))
    assert whole == pytest.approx(SHAPES[model].total, rel=2e-3)
    part = weights_of(slice_config(model, 4, "fp8"))
    # Routers and latents are on every rank.
    assert whole / 4 < part < whole / 4 * 1.05


def test_config_then_blocks_of_fp8_fit_into_a_ranks_width():
    by_row = set()
    for model in MODELS:
        config = slice_config(model, 4, "fp8")
        if config["quantization_config"]["quant_method"] == "compressed-tensors":
            by_row.add(model)
        else:
            assert config["moe_intermediate_size"] % 128 == 0
    assert by_row == {"GLM-4.5-Air", "Nemotron-3-Super"}
    assert "quantization_config" not in slice_config("GLM-4.5-Air", 4, "bf16")


def test_config_when_a_model_cannot_be_split_then_it_says_what():
    with pytest.raises(ConfigError, match=r"--ranks is 3, by which GLM-4.5-Air's .* of \d+ cannot"):
        slice_config("GLM-4.5-Air", 3, "fp8")


def measured(models=MODELS):
    record = Record("curves", None)
    record.settings = {"kind": "measured", "model": "Ling-2.6-flash", "gpu": {"name": "H200"}}
    measure_peers(
        record, python=None, models=models, format_name="fp8", batch=4, lengths=[64, 128],
        repeats=2, ranks=4,
    )  # fmt: skip
    return record


def test_peers_when_vllm_is_not_there_then_a_note_says_how():
    record = measured()
    assert record.results == {}
    [note] = record.notes
    assert note.startswith("not run: GLM-4.5-Air, Ling-2.6-flash, ")
    assert "--vllm-python" in note


def test_peers_when_vllm_is_there_then_each_is_timed_and_one_that_fails_is_named(
    tmp_path, monkeypatch, capfd
):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(STAND_IN)
    (tmp_path / "vllm-0.26.0.dist-info").mkdir()
    (tmp_path / "vllm-0.26.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.26.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    record = measured(["GLM-4.5-Air", "Nemotron-3-Super"])
    assert record.settings["vllm"] == "0.26.0"
    assert set(record.results) == {
        f"{phase} GLM-4.5-Air vllm {length}" for phase in ("decode", "prefill")
        for length in (64, 128)
    }  # fmt: skip
    for name, series in record.results.items():
        # A step takes half a millisecond or more.
        assert len(series.samples) == 2
        assert 0 < max(series.samples) < (4 if name.startswith("decode") else 128) / 0.0005
    assert record.notes == [
        "not measured in vLLM: Nemotron-3-Super: its process ended with 3; the log above says why"
    ]


def test_curves_when_peers_were_measured_then_ratios_are_to_glm_in_vllm():
    def series(value):
        return {"median": value}

    record = {
        "settings": {"kind": "measured", "model": "Ling-2.6-flash"},
        "results": {
            "decode c65536": series(900.0), "decode Ling-2.6-flash vllm 65536": series(600.0),
            "decode GLM-4.5-Air vllm 65536": series(200.0),
        },
    }  # fmt: skip
    lines = {line.name: line for line in charts([record])[1].lines if line.kind == "measured"}
    assert {name: line.points for name, line in lines.items()} == {
        "Ling-2.6-flash": [(65536, 4.5)], "Ling-2.6-flash in vLLM": [(65536, 3.0)],
        "GLM-4.5-Air in vLLM": [(65536, 1.0)],
    }  # fmt: skip
    table = compared([record])
    assert "4.50x" in table
    assert "3.00x" in table
