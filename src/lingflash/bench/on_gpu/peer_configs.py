"""config.json of one rank's slice of each compared model, as vLLM reads it.

A rank of a split model has a part of the heads, of every expert's width and of the words, and all
of the stream, latents and routers. A model with those numbers computes what the rank does but for
the sums between ranks. Fewer key heads than ranks are on each. `bench/roofline/shapes.py` has the
whole models' weights.
"""

from __future__ import annotations

from typing import Any

from lingflash.bench.in_engine.dummy_checkpoint import LING_2_6_FLASH
from lingflash.core.errors import ConfigError

_COMMON = {"torch_dtype": "bfloat16", "tie_word_embeddings": False, "hidden_act": "silu"}
# One scale for each row of weights, as GLM-4.5-Air-FP8 is published: a rank's width of 352 is no
# multiple of the 128 of a block.
_BY_ROW = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head", "re:.*mlp[.]gate$", "re:.*mixer[.]gate$", "re:.*conv1d.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8, "type": "float", "symmetric": True, "strategy": "token",
                "dynamic": True,
            },
        }
    },
}  # fmt: skip
_BY_BLOCK = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
}  # fmt: skip


def _ling() -> dict[str, Any]:
    return LING_2_6_FLASH | {"num_key_value_heads": 32, "num_nextn_predict_layers": 0}


def _glm() -> dict[str, Any]:
    return _COMMON | {
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe",
        "hidden_size": 4096, "num_hidden_layers": 46, "num_attention_heads": 96,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 10_944,
        "moe_intermediate_size": 1408, "n_routed_experts": 128, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "routed_scaling_factor": 1.0, "use_qk_norm": False,
        "attention_bias": True, "partial_rotary_factor": 0.5, "rope_theta": 1e6,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072, "vocab_size": 151_552,
        "num_nextn_predict_layers": 0,
    }  # fmt: skip


def _qwen() -> dict[str, Any]:
    return _COMMON | {
        "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text",
        "hidden_size": 3072, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 2, "head_dim": 256, "attn_output_gate": True,
        "full_attention_interval": 4, "layer_types": [
            "full_attention" if i % 4 == 3 else "linear_attention" for i in range(48)
        ],
        "linear_num_key_heads": 16, "linear_num_value_heads": 64, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "num_experts": 256,
        "num_experts_per_tok": 8, "moe_intermediate_size": 1024,
        "shared_expert_intermediate_size": 1024, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "partial_rotary_factor": 0.25, "rope_theta": 1e7,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
        },
        "rms_norm_eps": 1e-6, "max_position_embeddings": 262_144, "vocab_size": 248_320,
    }  # fmt: skip


def _nemotron() -> dict[str, Any]:
    # Where the attention layers stand makes no difference to the time of a step.
    pattern = "".join("MEMEM*EMEME"[i % 11] for i in range(88))
    return _COMMON | {
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h",
        "hidden_size": 4096, "num_hidden_layers": 88, "hybrid_override_pattern": pattern,
        "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
        "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128,
        "conv_kernel": 4, "chunk_size": 128, "expand": 2, "use_conv_bias": True,
        "use_bias": False, "mlp_bias": False, "attention_bias": False, "mamba_proj_bias": False,
        "n_routed_experts": 512, "n_shared_experts": 1, "num_experts_per_tok": 22,
        "moe_intermediate_size": 2688, "moe_shared_expert_intermediate_size": 5376,
        "moe_latent_size": 1024, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 5.0, "mlp_hidden_act": "relu2", "intermediate_size": 5376,
        "layer_norm_epsilon": 1e-5, "rms_norm_eps": 1e-5, "max_position_embeddings": 262_144,
        "vocab_size": 131_072,
    }  # fmt: skip


_SHARED = (
    "num_attention_heads", "num_key_value_heads", "num_kv_heads_for_linear_attn",
    "group_norm_size", "intermediate_size", "moe_intermediate_size",
    "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
    "linear_num_key_heads", "linear_num_value_heads", "mamba_num_heads", "n_groups", "vocab_size",
)  # fmt: skip
_MAKERS = {
    "GLM-4.5-Air": _glm,
    "Ling-2.6-flash": _ling,
    "Nemotron-3-Super": _nemotron,
    "Qwen3.5-122B-A10B": _qwen,
}
MODELS = tuple(_MAKERS)


def slice_config(model: str, ranks: int, format_name: str) -> dict[str, Any]:
    """What one of `ranks` computes of a model of MODELS; `format_name` is fp8 or bf16.

    Raises:
        ConfigError: it cannot be split so.
    """
    config = _MAKERS[model]()
    for name in _SHARED:
        whole = config.get(name)
        if whole is None:
            continue
        if name == "num_key_value_heads":
            config[name] = max(whole // ranks, 1)
        elif whole % ranks:
            raise ConfigError(
                f"--ranks is {ranks}, by which {model}'s {name} of {whole} cannot be divided.",
                param="ranks",
            )
        else:
            config[name] = whole // ranks
    if format_name == "fp8":
        width = config["moe_intermediate_size"]
        config["quantization_config"] = _BY_ROW if width % 128 else _BY_BLOCK
    return config
