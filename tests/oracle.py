"""A second implementation of the model to compare with: float64, one sequence, no cache, as the
spec says.

It shares nothing with src/ but config.json's parser and the operators' reference files.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from lingflash.kernels.lightning_attn.reference import lightning_attention_reference
from lingflash.kernels.mla.reference import mla_attention_reference
from lingflash.models.config import ModelConfig, load_model_config

SMALL = {
    "architectures": ["BailingMoeV2_5ForCausalLM"],
    "model_type": "bailing_hybrid",
    "vocab_size": 128,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_kv_heads_for_linear_attn": 4,
    "head_dim": 16,
    "layer_group_size": 2,
    "group_norm_size": 2,
    "kv_lora_rank": 24,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "intermediate_size": 56,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
    "first_k_dense_replace": 1,
    "moe_router_enable_expert_bias": True,
    "max_position_embeddings": 512,
    "rope_theta": 10000,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "use_qk_norm": True,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1,
    "eos_token_id": 127,
}

# Settings of other members of the family, and corners of the rules.
FAMILY = {
    "ling-2.6-flash-like": {},
    "no q_lora_rank": {"q_lora_rank": None},
    "six heads, no power of two": {
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "num_kv_heads_for_linear_attn": 6,
        "group_norm_size": 3,
    },
    "tail layers are MLA": {"num_hidden_layers": 5, "layer_group_size": 3},
    "eight norm groups, deep dense": {"group_norm_size": 8, "first_k_dense_replace": 3},
    "all layers are experts": {"first_k_dense_replace": 0},
    "norm_topk_prob false": {"norm_topk_prob": False},
    "norm_topk_prob null": {"norm_topk_prob": None},
    "no shared expert": {"num_shared_experts": 0},
    "wide shared expert": {"num_shared_experts": 2, "moe_shared_expert_intermediate_size": 40},
    "one group of experts": {"n_group": 1, "topk_group": 1},
    "groups of one expert": {"n_group": 8, "topk_group": 4},
    "no expert bias": {"moe_router_enable_expert_bias": False},
    "linear_silu": {"linear_silu": True},
    "no q/k norm": {"use_qk_norm": False},
    "tied embeddings": {"tie_word_embeddings": True},
    "all channels rotary": {"partial_rotary_factor": 1.0},
    "yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "one layer": {"num_hidden_layers": 1, "layer_group_size": 1},
    "no MTP": {"num_nextn_predict_layers": 0},
}


def tensor_shapes(raw: dict, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint with this config, from the published naming scheme."""
    c, hidden = config, config.hidden_size
    shapes = {
        "model.word_embeddings.weight": (c.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, hidden)
    inner = c.num_attention_heads * c.head_dim
    shared = raw.get("moe_shared_expert_intermediate_size", c.moe_intermediate_size)
    layers = c.num_hidden_layers + c.num_nextn_predict_layers
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes[p + "input_layernorm.weight"] = (hidden,)
        shapes[p + "post_attention_layernorm.weight"] = (hidden,)
        a = p + "attention."
        if i < c.num_hidden_layers and c.layer_kind(i) == "lightning":
            shapes[a + "query_key_value.weight"] = (3 * inner, hidden)
            if c.use_qk_norm:
                shapes[a + "query_layernorm.weight"] = (c.head_dim,)
                shapes[a + "key_layernorm.weight"] = (c.head_dim,)
            shapes[a + "g_proj.weight"] = (inner, hidden)
            shapes[a + "g_norm.weight"] = (inner,)
            shapes[a + "dense.weight"] = (hidden, inner)
        else:
            q = c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
            if c.q_lora_rank is None:
                shapes[a + "q_proj.weight"] = (q, hidden)
            else:
                shapes[a + "q_a_proj.weight"] = (c.q_lora_rank, hidden)
                shapes[a + "q_a_layernorm.weight"] = (c.q_lora_rank,)
                shapes[a + "q_b_proj.weight"] = (q, c.q_lora_rank)
            shapes[a + "kv_a_proj_with_mqa.weight"] = (c.latent_dim, hidden)
            shapes[a + "kv_a_layernorm.weight"] = (c.kv_lora_rank,)
            kv = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
            shapes[a + "kv_b_proj.weight"] = (kv, c.kv_lora_rank)
            shapes[a + "dense.weight"] = (hidden, c.num_attention_heads * c.v_head_dim)
        m = p + "mlp."
        mlps = {}
        if c.is_dense(i):
            mlps[m] = c.intermediate_size
        else:
            shapes[m + "gate.weight"] = (c.num_experts, hidden)
            if c.moe_router_enable_expert_bias:
                shapes[m + "gate.expert_bias"] = (c.num_experts,)
            mlps |= {f"{m}experts.{e}.": c.moe_intermediate_size for e in range(c.num_experts)}
            if c.num_shared_experts:
                mlps[m + "shared_experts."] = shared
        for prefix, width in mlps.items():
            shapes[prefix + "gate_proj.weight"] = (width, hidden)
            shapes[prefix + "up_proj.weight"] = (width, hidden)
            shapes[prefix + "down_proj.weight"] = (hidden, width)
        if i == c.num_hidden_layers:
            for name in ("enorm", "hnorm", "final_layernorm"):
                shapes[f"{p}{name}.weight"] = (hidden,)
            shapes[p + "eh_proj.weight"] = (hidden, 2 * hidden)
    return shapes


def write_checkpoint(folder: Path, changes: dict | None = None, seed: int = 0) -> Path:
    """Write a random checkpoint: two shards, an MTP file, an index; returns the folder."""
    raw = SMALL | (changes or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    config = load_model_config(folder)
    generator = torch.Generator().manual_seed(seed)
    files: dict[str, dict[str, Tensor]] = {}
    mtp = f"model.layers.{config.num_hidden_layers}."
    for i, (name, shape) in enumerate(tensor_shapes(raw, config).items()):
        noise = torch.randn(shape, generator=generator)
        if name.endswith("expert_bias"):
            tensor = noise * 0.1
        elif name.endswith("norm.weight"):
            tensor = (1 + 0.2 * noise).bfloat16()
        else:
            # Unit-size outputs everywhere, so that no part of the model drowns the others.
            scale = 1.0 if "embeddings" in name else shape[-1] ** -0.5
            tensor = (noise * scale).bfloat16()
        file = "model-mtp-layer" if name.startswith(mtp) else f"model-0000{1 + i % 2}-of-00002"
        files.setdefault(file + ".safetensors", {})[name] = tensor
    weight_map = {}
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


class Oracle:
    """The model of a folder, in float64."""

    def __init__(self, folder: Path) -> None:
        self.config = load_model_config(folder)
        self.w: dict[str, Tensor] = {}
        for path in folder.glob("*.safetensors"):
            self.w |= {name: t.double() for name, t in load_file(path).items()}

    def angles(self, dim: int, length: int) -> tuple[Tensor, Tensor]:
        c = self.config
        j = torch.arange(dim // 2).double()
        inv = c.rope_theta ** (-2 * j / dim)
        scale = 1.0
        if c.rope_scaling is not None:
            s = c.rope_scaling
            turns = [
                dim
                * math.log(s.original_max_position_embeddings / (2 * math.pi * r))
                / (2 * math.log(c.rope_theta))
                for r in (32, 1)
            ]
            low, high = max(math.floor(turns[0]), 0), min(math.ceil(turns[1]), dim - 1)
            ramp = ((j - low) / max(high - low, 0.001)).clamp(0, 1)
            inv = inv / s.factor * ramp + inv * (1 - ramp)
            scale = 0.1 * math.log(s.factor) + 1
        angle = torch.arange(length).double()[:, None] * inv
        return angle.cos() * scale, angle.sin() * scale

    def slopes(self, heads: int) -> list[float]:
        n = 2 ** math.floor(math.log2(heads))
        base = [2 ** (-8 * (h + 1) / n) for h in range(n)]
        more = [2 ** (-8 * (h + 1) / (2 * n)) for h in range(2 * n)][::2]
        return base + more[: heads - n]

    def lightning(self, p: str, layer: int, u: Tensor) -> Tensor:
        c, w = self.config, self.w
        heads, d, t = c.num_attention_heads, c.head_dim, u.shape[0]
        qkv = u @ w[p + "query_key_value.weight"].T
        if c.linear_silu:
            qkv = F.silu(qkv)
        q, k, v = qkv.view(t, 3, heads, d).unbind(1)
        if c.use_qk_norm:
            q = _norm(q, w[p + "query_layernorm.weight"], c.rms_norm_eps)
            k = _norm(k, w[p + "key_layernorm.weight"], c.rms_norm_eps)
        rotary = int(d * c.partial_rotary_factor)
        cos, sin = (x[:, None] for x in self.angles(rotary, t))

        def rope(x: Tensor) -> Tensor:
            a, b = x[..., : rotary // 2], x[..., rotary // 2 : rotary]
            return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., rotary:]], -1)

        factor = 1 - layer / max(c.num_hidden_layers - 1, 1) + 1e-5
        rate = torch.tensor(self.slopes(heads)).double() * factor
        out, _ = lightning_attention_reference(rope(q), rope(k), v, rate)
        y = out.reshape(t, c.group_norm_size, -1)
        y = _norm(y, torch.ones(y.shape[-1]), c.rms_norm_eps).reshape(t, -1)
        y = y * w[p + "g_norm.weight"] * torch.sigmoid(u @ w[p + "g_proj.weight"].T)
        return y @ w[p + "dense.weight"].T

    def mla(self, p: str, u: Tensor) -> Tensor:
        c, w, t = self.config, self.w, u.shape[0]
        heads, nope = c.num_attention_heads, c.qk_nope_head_dim
        if c.q_lora_rank is None:
            q = u @ w[p + "q_proj.weight"].T
        else:
            a = _norm(u @ w[p + "q_a_proj.weight"].T, w[p + "q_a_layernorm.weight"], c.rms_norm_eps)
            q = a @ w[p + "q_b_proj.weight"].T
        q = q.view(t, heads, -1)
        kv = u @ w[p + "kv_a_proj_with_mqa.weight"].T
        latent = _norm(kv[:, : c.kv_lora_rank], w[p + "kv_a_layernorm.weight"], c.rms_norm_eps)
        cos, sin = (x[:, None] for x in self.angles(c.qk_rope_head_dim, t))

        def rope(x: Tensor) -> Tensor:
            even, odd = x[..., 0::2], x[..., 1::2]
            return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)

        k_rope = rope(kv[:, None, c.kv_lora_rank :])[:, 0]
        out = mla_attention_reference(
            q[..., :nope],
            rope(q[..., nope:]),
            torch.cat([latent, k_rope], -1),
            w[p + "kv_b_proj.weight"].view(heads, -1, c.kv_lora_rank),
            (nope + c.qk_rope_head_dim) ** -0.5,
        )
        return out.reshape(t, -1) @ w[p + "dense.weight"].T

    def mlp(self, p: str, x: Tensor) -> Tensor:
        w = self.w
        gate = F.silu(x @ w[p + "gate_proj.weight"].T)
        return (gate * (x @ w[p + "up_proj.weight"].T)) @ w[p + "down_proj.weight"].T

    def experts(self, p: str, x: Tensor) -> Tensor:
        c, w = self.config, self.w
        out = torch.zeros_like(x)
        size = c.num_experts // c.n_group
        for t in range(x.shape[0]):
            score = torch.sigmoid(x[t] @ w[p + "gate.weight"].T)
            biased = score + w.get(p + "gate.expert_bias", torch.zeros(()))
            best = [
                sum(sorted(biased[g * size : (g + 1) * size].tolist())[-2:])
                for g in range(c.n_group)
            ]
            kept = sorted(range(c.n_group), key=lambda g: -best[g])[: c.topk_group]
            allowed = [g * size + e for g in kept for e in range(size)]
            chosen = sorted(allowed, key=lambda e: -biased[e])[: c.num_experts_per_tok]
            total = sum(score[e] for e in chosen) + 1e-20 if c.norm_topk_prob else 1.0
            for e in chosen:
                weight = score[e] / total * c.routed_scaling_factor
                out[t] += weight * self.mlp(f"{p}experts.{e}.", x[t])
        if c.num_shared_experts:
            out = out + self.mlp(p + "shared_experts.", x)
        return out

    def layer(self, i: int, x: Tensor) -> Tensor:
        c, w, p = self.config, self.w, f"model.layers.{i}."
        u = _norm(x, w[p + "input_layernorm.weight"], c.rms_norm_eps)
        if i < c.num_hidden_layers and c.layer_kind(i) == "lightning":
            x = x + self.lightning(p + "attention.", i, u)
        else:
            x = x + self.mla(p + "attention.", u)
        u = _norm(x, w[p + "post_attention_layernorm.weight"], c.rms_norm_eps)
        return x + (self.mlp if c.is_dense(i) else self.experts)(p + "mlp.", u)

    def head(self) -> Tensor:
        return self.w.get("lm_head.weight", self.w["model.word_embeddings.weight"])

    def hidden(self, ids: list[int]) -> Tensor:
        x = self.w["model.word_embeddings.weight"][ids]
        for i in range(self.config.num_hidden_layers):
            x = self.layer(i, x)
        return _norm(x, self.w["model.norm.weight"], self.config.rms_norm_eps)

    def logits(self, ids: list[int]) -> Tensor:
        """float64 [T, V]."""
        return self.hidden(ids) @ self.head().T

    def mtp_logits(self, ids: list[int]) -> Tensor:
        """float64 [T - 1, V], row j predicts token j + 2."""
        c, w, p = self.config, self.w, f"model.layers.{self.config.num_hidden_layers}."
        embedded = w["model.word_embeddings.weight"][ids[1:]]
        both = [
            _norm(embedded, w[p + "enorm.weight"], c.rms_norm_eps),
            _norm(self.hidden(ids)[:-1], w[p + "hnorm.weight"], c.rms_norm_eps),
        ]
        x = self.layer(c.num_hidden_layers, torch.cat(both, -1) @ w[p + "eh_proj.weight"].T)
        return _norm(x, w[p + "final_layernorm.weight"], c.rms_norm_eps) @ self.head().T
