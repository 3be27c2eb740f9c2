"""Shapes that benchmarks run with dummy weights: config.json of the family's published models."""

from __future__ import annotations

from typing import Any

from lingflash.core.errors import ConfigError
from lingflash.models.config import ModelConfig, parse_model_config

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

SHAPES: dict[str, dict[str, Any]] = {"ling-2.6-flash": LING_2_6_FLASH}


def shape_config(name: str, num_layers: int | None = None) -> ModelConfig:
    """A published shape, possibly with fewer layers.

    Raises:
        ConfigError: the name is not known, or the number of layers is out of range.
    """
    if name not in SHAPES:
        raise ConfigError(f"--shape is {name}; allowed: {', '.join(SHAPES)}.", param="shape")
    raw = SHAPES[name]
    whole = raw["num_hidden_layers"]
    layers = whole if num_layers is None else num_layers
    if not raw["first_k_dense_replace"] < layers <= whole:
        raise ConfigError(
            f"--layers is {layers}; allowed: {raw['first_k_dense_replace'] + 1} to {whole}.",
            param="layers",
        )
    return parse_model_config(raw | {"num_hidden_layers": layers})
