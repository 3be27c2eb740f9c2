"""The shape of a Ling model, read strictly from config.json.

An unknown *value* of a field we know is an error that names it, since it would change the answer;
an unknown *key* is only reported, since real files carry many. Facts: Ling-2.6-flash's config.json.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lingflash.core.checkpoint_files import read_json_object
from lingflash.core.errors import ConfigError, ModelLoadError, UnsupportedModelError
from lingflash.parallel.shard import Shard, allowed_sizes

log = logging.getLogger(__name__)

ARCHITECTURE = "BailingMoeV2_5ForCausalLM"

# Kept out of the way on purpose: they describe training, or what the tensors themselves say.
_INERT_KEYS = frozenset(
    {
        "architectures", "model_type", "auto_map", "transformers_version", "torch_dtype",
        "dtype", "initializer_range", "use_cache", "use_rmsnorm", "output_router_logits",
        "mtp_loss_scaling_factor", "attention_dropout", "embedding_dropout", "output_dropout",
        "max_window_layers", "pad_token_id", "bos_token_id", "qk_head_dim",
        "num_key_value_heads", "moe_shared_expert_intermediate_size", "num_mtp_layers",
        "router_dtype", "_name_or_path", "tokenizer_class",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """YaRN: context stretched by `factor` over `original_max_position_embeddings`."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and constants of a Ling hybrid model, or of one rank's share. Names are config.json's.

    `shard` is the rank's place; the vocabulary's size is always the whole one.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    layer_group_size: int
    group_norm_size: int
    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    n_group: int
    topk_group: int
    routed_scaling_factor: float
    first_k_dense_replace: int
    moe_router_enable_expert_bias: bool
    max_position_embeddings: int
    rope_theta: float
    partial_rotary_factor: float
    rms_norm_eps: float
    norm_topk_prob: bool = True
    linear_silu: bool = False
    use_qk_norm: bool = True
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: int = 0
    rope_scaling: RopeScaling | None = None
    eos_token_ids: tuple[int, ...] = ()
    quantization_config: dict[str, Any] | None = field(default=None, hash=False)
    shard: Shard = field(default_factory=Shard)

    def share(self, shard: Shard) -> ModelConfig:
        """The shape of what one of several ranks computes: its heads, norm groups and widths.

        Raises:
            ConfigError: the model cannot be split so many ways.
        """
        if shard.size == 1:
            return self
        groups = self.group_norm_size
        if groups % shard.size:
            raise ConfigError(
                f"--tensor-parallel-size is {shard.size}, but the linear attention normalises its "
                f"output in {groups} groups of channels (group_norm_size), and a group cannot be "
                f"split between ranks; allowed: {allowed_sizes(groups)}.",
                param="tensor_parallel_size",
            )
        shard.share(self.vocab_size, "vocab_size")
        return replace(
            self,
            num_attention_heads=shard.share(self.num_attention_heads, "num_attention_heads"),
            group_norm_size=groups // shard.size,
            intermediate_size=shard.share(self.intermediate_size, "intermediate_size"),
            moe_intermediate_size=shard.share(self.moe_intermediate_size, "moe_intermediate_size"),
            shard=shard,
        )

    @property
    def softmax_scale(self) -> float:
        """Factor of MLA's scores: (nope + rope width) ** -0.5, untouched by YaRN."""
        return float((self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5)

    @property
    def linear_rotary_dim(self) -> int:
        """Rotary channels of a lightning head; they are its first ones."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def latent_dim(self) -> int:
        """Values cached per token and MLA layer: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def layer_kind(self, layer_idx: int) -> Literal["lightning", "mla"]:
        """Attention of a layer: MLA for the last of each group and past the last whole group."""
        in_tail = layer_idx >= (
            self.num_hidden_layers // self.layer_group_size * self.layer_group_size
        )
        is_last_of_group = (layer_idx + 1) % self.layer_group_size == 0
        return "mla" if in_tail or is_last_of_group else "lightning"

    @property
    def lightning_layers(self) -> tuple[int, ...]:
        """Indices of the layers with a recurrent state."""
        return tuple(i for i in range(self.num_hidden_layers) if self.layer_kind(i) == "lightning")

    @property
    def mla_layers(self) -> tuple[int, ...]:
        """Indices of the layers with a paged latent cache, the MTP layer not counted."""
        return tuple(i for i in range(self.num_hidden_layers) if self.layer_kind(i) == "mla")

    def is_dense(self, layer_idx: int) -> bool:
        """Whether the layer's feed-forward is one MLP instead of experts."""
        return layer_idx < self.first_k_dense_replace


_REQUIRED_INTEGERS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "layer_group_size",
    "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size",
    "moe_intermediate_size", "num_experts", "num_experts_per_tok", "max_position_embeddings",
)  # fmt: skip
_DEFAULTS = {
    "group_norm_size": 1, "num_shared_experts": 0, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "first_k_dense_replace": 0,
    "moe_router_enable_expert_bias": False, "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
    "rms_norm_eps": 1e-6, "use_qk_norm": True, "tie_word_embeddings": False,
}  # fmt: skip


# Of any model that could be run, with room to spare. What is beyond is a mistake, or malice, and
# would be computed with, or allocated, before anything else could be seen to be wrong.
_RANGES: dict[str, tuple[float, float]] = {
    "vocab_size": (1, 2**24),
    "hidden_size": (1, 2**18),
    "num_hidden_layers": (1, 2048),
    "num_attention_heads": (1, 4096),
    "head_dim": (1, 8192),
    "layer_group_size": (1, 2**20),
    "group_norm_size": (1, 2**20),
    "kv_lora_rank": (1, 2**16),
    "q_lora_rank": (1, 2**18),
    "qk_nope_head_dim": (1, 8192),
    "qk_rope_head_dim": (1, 8192),
    "v_head_dim": (1, 8192),
    "intermediate_size": (1, 2**22),
    "moe_intermediate_size": (1, 2**22),
    "num_experts": (1, 2**16),
    "num_experts_per_tok": (1, 4096),
    "num_shared_experts": (0, 4096),
    "n_group": (1, 2**16),
    "topk_group": (1, 2**16),
    "first_k_dense_replace": (0, 2048),
    "max_position_embeddings": (1, 2**30),
    "routed_scaling_factor": (1e-6, 1e6),
    "rope_theta": (1.0, 1e15),
    "rms_norm_eps": (1e-30, 1.0),
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _required(raw: dict[str, Any], key: str, kind: type) -> Any:
    if key not in raw:
        raise ModelLoadError(f"config.json has no {key!r}; it is needed to build the model.")
    return _typed(raw[key], key, kind)


def _typed(value: Any, key: str, kind: type) -> Any:
    ok = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value, ok = (float(value), True) if abs(value) < 2**1023 else (math.inf, True)
    if not ok:
        raise ModelLoadError(f"config.json: {key} is {_shown(value)}; a {kind.__name__} is needed.")
    return value


def _given(raw: dict[str, Any], key: str, default: Any) -> Any:
    return _typed(raw.get(key, default), key, type(default))


def _only(raw: dict[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> Any:
    value = raw.get(key, default)
    if value not in allowed:
        names = ", ".join(repr(a) for a in allowed)
        raise UnsupportedModelError(
            f"config.json: {key} is {value!r}, which is not computed here; supported: {names}."
        )
    return value


def read_rope_scaling(raw: dict[str, Any] | None) -> RopeScaling | None:
    """Read a rope_scaling entry; None and type "default" mean none.

    Raises:
        UnsupportedModelError: a type other than yarn, or a field that would change the result.
        ModelLoadError: a field is missing or of the wrong type.
    """
    if raw is None:
        return None
    kind = raw.get("rope_type", raw.get("type"))
    if kind in (None, "default") and "factor" not in raw:
        return None
    if kind != "yarn":
        raise UnsupportedModelError(
            f"rope_scaling: rope_type is {kind!r}; supported: 'yarn' (or null for none)."
        )
    known = {
        "rope_type", "type", "factor", "original_max_position_embeddings", "beta_fast",
        "beta_slow", "rope_theta", "partial_rotary_factor",
    }  # fmt: skip
    unknown = sorted(set(raw) - known)
    if unknown:
        raise UnsupportedModelError(
            f"rope_scaling: {', '.join(unknown)} would change the result and is not supported; "
            f"supported: {', '.join(sorted(known))}."
        )
    for key in ("factor", "original_max_position_embeddings"):
        if key not in raw:
            raise ModelLoadError(f"rope_scaling has no {key!r}; YaRN needs it.")
    factor = _typed(raw["factor"], "rope_scaling.factor", float)
    original = _typed(
        raw["original_max_position_embeddings"],
        "rope_scaling.original_max_position_embeddings",
        int,
    )
    if not (1.0 <= factor <= 1e6 and 1 <= original <= 2**30):
        raise ModelLoadError(
            f"rope_scaling: factor {factor} and original_max_position_embeddings "
            f"{_shown(original)}; factor must be at least 1 and the length at least 1, and neither "
            "beyond all contexts."
        )
    betas = {
        name: _typed(raw.get(name, default), f"rope_scaling.{name}", float)
        for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
    }
    if not all(0.0 < beta <= 1e6 for beta in betas.values()):
        raise ModelLoadError(f"rope_scaling: {betas}; above 0 and at most 1e6 is needed.")
    return RopeScaling(factor=factor, original_max_position_embeddings=original, **betas)


def _check_supported(raw: dict[str, Any]) -> None:
    """Refuse other architectures, and values of known fields that would change the result."""
    architectures = raw.get("architectures") or []
    if ARCHITECTURE not in architectures:
        named = ", ".join(map(str, architectures)) or "nothing"
        hint = ""
        if "BailingMoeV3ForCausalLM" in architectures or any(
            "V3" in str(name) for name in architectures
        ):
            hint = " It has Ling 3.0's KDA layers, although model_type is the same."
        raise UnsupportedModelError(
            f"config.json: architectures names {named} (model_type {raw.get('model_type')!r}); "
            f"lingflash runs {ARCHITECTURE}.{hint}"
        )
    for key, allowed, default in (
        ("hidden_act", ("silu",), "silu"),
        ("score_function", ("sigmoid",), "sigmoid"),
        ("use_bias", (False,), False),
        ("use_qkv_bias", (False,), False),
        ("rope_interleave", (True,), True),
        ("router_dtype", ("fp32", "float32", None), "fp32"),
        ("linear_silu", (False, True), False),
    ):
        _only(raw, key, allowed, default)
    heads = _required(raw, "num_attention_heads", int)
    kv_heads = raw.get("num_kv_heads_for_linear_attn", heads)
    if kv_heads != heads:
        raise UnsupportedModelError(
            f"config.json: num_kv_heads_for_linear_attn is {kv_heads}, num_attention_heads "
            f"{heads}; lingflash computes lightning attention with equal numbers only."
        )


def parse_model_config(raw: dict[str, Any]) -> ModelConfig:
    """Turn config.json's object into a ModelConfig.

    Raises:
        UnsupportedModelError: another architecture, or a value that we do not compute.
        ModelLoadError: a field is missing, of the wrong type, or contradicts another.
    """
    _check_supported(raw)
    heads = _required(raw, "num_attention_heads", int)
    hidden = _required(raw, "hidden_size", int)
    q_lora_rank = raw.get("q_lora_rank")
    if q_lora_rank is not None:
        _typed(q_lora_rank, "q_lora_rank", int)
    eos = raw.get("eos_token_id")
    eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    config = ModelConfig(
        **{name: _required(raw, name, int) for name in _REQUIRED_INTEGERS},
        **{name: _given(raw, name, default) for name, default in _DEFAULTS.items()},
        head_dim=_given(raw, "head_dim", hidden // max(heads, 1)),
        q_lora_rank=q_lora_rank,
        # Ling-2.6-flash's file leaves it out and normalises; null means the same.
        norm_topk_prob=True if raw.get("norm_topk_prob") is None else raw["norm_topk_prob"],
        linear_silu=raw.get("linear_silu", False),
        num_nextn_predict_layers=_typed(
            raw.get("num_nextn_predict_layers") or 0, "num_nextn_predict_layers", int
        ),
        rope_scaling=read_rope_scaling(raw.get("rope_scaling")),
        eos_token_ids=eos_ids,
        quantization_config=raw.get("quantization_config"),
    )
    _check_consistent(config, raw)
    used = set(ModelConfig.__dataclass_fields__) - {"shard"} | {
        "eos_token_id", "hidden_act", "score_function", "use_bias", "use_qkv_bias",
        "rope_interleave", "num_kv_heads_for_linear_attn",
    }  # fmt: skip
    unknown = sorted(set(raw) - used - _INERT_KEYS)
    if unknown:
        log.warning("config.json has keys that lingflash does not know: %s", ", ".join(unknown))
    return config


def _check_consistent(config: ModelConfig, raw: dict[str, Any]) -> None:
    def check(ok: bool, message: str) -> None:
        if not ok:
            raise ModelLoadError(f"config.json: {message}")

    for name, (least, most) in _RANGES.items():
        value = getattr(config, name)
        if value is not None:
            shown = f"{name} is {_shown(value)};"
            check(value >= least, f"{shown} {least} or more is needed.")
            check(value <= most, f"{shown} at most {most:,} is possible.")
    c = config
    check(
        c.num_experts % c.n_group == 0,
        f"num_experts {c.num_experts} is not a multiple of n_group {c.n_group}.",
    )
    check(c.topk_group <= c.n_group, f"topk_group {c.topk_group} is more than n_group {c.n_group}.")
    check(
        c.num_experts_per_tok <= c.num_experts // c.n_group * c.topk_group,
        f"num_experts_per_tok {c.num_experts_per_tok} is more than topk_group {c.topk_group} "
        f"groups of {c.num_experts // c.n_group} experts hold.",
    )
    check(
        c.num_attention_heads * c.head_dim % c.group_norm_size == 0,
        f"group_norm_size {c.group_norm_size} does not divide heads x head_dim "
        f"{c.num_attention_heads * c.head_dim}.",
    )
    check(
        0.0 < c.partial_rotary_factor <= 1.0 and c.linear_rotary_dim % 2 == 0,
        f"partial_rotary_factor {c.partial_rotary_factor} of head_dim {c.head_dim} is no even "
        "number of channels.",
    )
    check(
        raw.get("qk_head_dim", c.qk_nope_head_dim + c.qk_rope_head_dim)
        == c.qk_nope_head_dim + c.qk_rope_head_dim,
        f"qk_head_dim {raw.get('qk_head_dim')} is not qk_nope_head_dim + qk_rope_head_dim "
        f"{c.qk_nope_head_dim + c.qk_rope_head_dim}.",
    )
    check(c.qk_rope_head_dim % 2 == 0, f"qk_rope_head_dim {c.qk_rope_head_dim} is not even.")
    check(
        c.num_nextn_predict_layers <= 1,
        f"num_nextn_predict_layers is {c.num_nextn_predict_layers}; 0 or 1 is supported.",
    )
    check(isinstance(c.norm_topk_prob, bool), f"norm_topk_prob is {c.norm_topk_prob!r}.")
    check(
        all(type(i) is int and i >= 0 for i in c.eos_token_ids),
        f"eos_token_id is {_shown(raw.get('eos_token_id'))}; a token id or a list is needed.",
    )


def load_model_config(folder: Path, rope_scaling: dict[str, Any] | None = None) -> ModelConfig:
    """Read folder/config.json; `rope_scaling`, if given, replaces its entry.

    Raises:
        ModelLoadError: no such file, not JSON, or not a model we run.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelLoadError(
            f"{path} does not exist; a model folder needs config.json, *.safetensors and (for "
            "text) tokenizer.json."
        )
    config = parse_model_config(read_json_object(path))
    if rope_scaling is not None:
        scaling = read_rope_scaling(rope_scaling)
        for key, mine in (
            ("rope_theta", config.rope_theta),
            ("partial_rotary_factor", config.partial_rotary_factor),
        ):
            if rope_scaling.get(key, mine) != mine:
                raise ModelLoadError(
                    f"--rope-scaling: {key} is {rope_scaling[key]}, the checkpoint's is {mine}; "
                    "leave it out or give the same."
                )
        config = replace(config, rope_scaling=scaling)
    return config
