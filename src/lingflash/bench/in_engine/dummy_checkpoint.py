"""Write a checkpoint of any size with random BF16 weights, in the real one's layout and names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lingflash.models.config import ModelConfig, parse_model_config

_SHARD_BYTES = 512 * 2**20
_NOISE_ELEMENTS = 1 << 22

# inclusionAI/Ling-2.6-flash: 104B parameters, 7.4B active.
LING_2_6_FLASH: dict[str, Any] = {
    "architectures": ["BailingMoeV2_5ForCausalLM"],
    "model_type": "bailing_hybrid",
    "vocab_size": 157184,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_kv_heads_for_linear_attn": 32,
    "head_dim": 128,
    "layer_group_size": 8,
    "group_norm_size": 4,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "score_function": "sigmoid",
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_router_enable_expert_bias": True,
    "max_position_embeddings": 131072,
    "rope_theta": 6000000,
    "partial_rotary_factor": 0.5,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "eos_token_id": 156895,
    "torch_dtype": "bfloat16",
}
# A mid-size model of the family: 2.3 GB in BF16.
MID_SIZE = LING_2_6_FLASH | {
    "vocab_size": 32768, "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16,
    "num_kv_heads_for_linear_attn": 16, "head_dim": 64, "layer_group_size": 4, "q_lora_rank": 384,
    "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    "intermediate_size": 3072, "moe_intermediate_size": 512, "num_experts": 56,
    "max_position_embeddings": 8192, "rope_theta": 10000.0, "eos_token_id": 2,
}  # fmt: skip


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint with its MTP layer, in the order of the layers."""
    c = config
    shapes: dict[str, tuple[int, ...]] = {
        "model.word_embeddings.weight": (c.vocab_size, c.hidden_size)
    }
    for i in range(c.num_hidden_layers):
        shapes.update(_layer(c, i, c.layer_kind(i), is_dense=c.is_dense(i)))
    shapes["model.norm.weight"] = (c.hidden_size,)
    shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    last = c.num_hidden_layers
    prefix = f"model.layers.{last}."
    shapes.update(_layer(c, last, "mla", is_dense=False))
    for name in ("enorm", "hnorm", "final_layernorm"):
        shapes[f"{prefix}{name}.weight"] = (c.hidden_size,)
    shapes[prefix + "eh_proj.weight"] = (c.hidden_size, 2 * c.hidden_size)
    return shapes


def _layer(c: ModelConfig, index: int, kind: str, *, is_dense: bool) -> dict[str, tuple[int, ...]]:
    hidden, heads = c.hidden_size, c.num_attention_heads
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    if kind == "lightning":
        inner = heads * c.head_dim
        attention: dict[str, tuple[int, ...]] = {
            "query_key_value": (3 * inner, hidden),
            "g_proj": (inner, hidden),
            "g_norm": (inner,),
            "query_layernorm": (c.head_dim,),
            "key_layernorm": (c.head_dim,),
            "dense": (hidden, inner),
        }
    else:
        key = c.qk_nope_head_dim + c.qk_rope_head_dim
        rank = c.q_lora_rank or 0
        attention = {
            "q_a_proj": (rank, hidden),
            "q_a_layernorm": (rank,),
            "q_b_proj": (heads * key, rank),
            "kv_a_proj_with_mqa": (c.latent_dim, hidden),
            "kv_a_layernorm": (c.kv_lora_rank,),
            "kv_b_proj": (heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
            "dense": (hidden, heads * c.v_head_dim),
        }
    shapes.update({f"attention.{name}": shape for name, shape in attention.items()})
    if is_dense:
        shapes.update(_mlp("mlp.", hidden, c.intermediate_size))
    else:
        shapes["mlp.gate"] = (c.num_experts, hidden)
        for e in range(c.num_experts):
            shapes.update(_mlp(f"mlp.experts.{e}.", hidden, c.moe_intermediate_size))
        shapes.update(
            _mlp("mlp.shared_experts.", hidden, c.num_shared_experts * c.moe_intermediate_size)
        )
    named = {f"model.layers.{index}.{name}.weight": shape for name, shape in shapes.items()}
    if not is_dense:
        named[f"model.layers.{index}.mlp.gate.expert_bias"] = (c.num_experts,)
    return named


def _mlp(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        prefix + "gate_proj": (width, hidden),
        prefix + "up_proj": (width, hidden),
        prefix + "down_proj": (hidden, width),
    }


def write_checkpoint(folder: Path, raw_config: dict[str, Any]) -> int:
    """Write config.json, shards and their index; returns the bytes of the tensors.

    Args:
        folder: exists and is empty.
        raw_config: config.json; the model has the MTP layer, q_lora_rank and an untied head.
    """
    config = parse_model_config(raw_config)
    noise = torch.randn(_NOISE_ELEMENTS, generator=torch.Generator().manual_seed(0))
    noise = noise.mul_(0.02).to(torch.bfloat16)
    shards = list(_shards(tensor_shapes(config)))
    weight_map: dict[str, str] = {}
    total = 0
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _fill(noise, shape, name) for name, shape in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        total += sum(t.numel() * t.element_size() for t in tensors.values())
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(raw_config, indent=1), encoding="utf-8")
    return total


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        shard[name] = shape
        elements = 1
        for n in shape:
            elements *= n
        size += 2 * elements
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _fill(noise: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    if name.endswith("expert_bias"):
        return torch.zeros(shape)
    count = torch.Size(shape).numel()
    return noise.repeat(-(-count // noise.numel()))[:count].reshape(shape).clone()
