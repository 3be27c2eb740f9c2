"""Which matrices of a Ling checkpoint each format quantizes, and config.json's entry for it.

    fp8        experts, shared expert, dense MLP, query_key_value, g_proj, dense, eh_proj: blocks of
               128 x 128, as the published FP8 checkpoint has them
    int4       routed experts only, as the published INT4 checkpoint has them
    int4-fp8   routed experts in INT4; what fp8 quantizes besides, MLA's q and kv_a projections and
               the head in FP8 per channel

The embedding, norms, router and kv_b_proj (which MLA's absorbed form multiplies from both sides)
stay as they are in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lingflash.core.errors import ConfigError
from lingflash.quant.scheme import GROUP_SIZES, Entry

FormatName = Literal["fp8", "int4", "int4-fp8"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)

_EXPERT = re.compile(r"model\.layers\.\d+\.mlp\.experts\.\d+\.(gate|up|down)_proj\.weight")
_FP8 = re.compile(
    r"model\.layers\.\d+\.("
    r"attention\.(query_key_value|g_proj|dense)"
    r"|mlp\.(shared_experts\.)?(gate|up|down)_proj"
    r"|eh_proj)\.weight"
)
_FP8_BESIDE_INT4 = re.compile(
    r"model\.layers\.\d+\.attention\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa)\.weight"
    r"|lm_head\.weight"
)
_FP8_BLOCK = (128, 128)
_CHANNEL = (1, 0)


@dataclass(frozen=True, slots=True)
class Target:
    """What a matrix is converted to.

    Args:
        is_packed: INT4 instead of FP8.
        block: rows and columns that share a scale; 0 columns is a whole row.
    """

    is_packed: bool
    block: tuple[int, int]

    def names(self, name: str) -> tuple[str, str, str | None]:
        """Names of values, scales and, for INT4, of the shape."""
        if self.is_packed:
            return name + "_packed", name + "_scale", name + "_shape"
        return name, name + ("_scale_inv" if self.block[1] else "_scale"), None

    def stored(self, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """safetensors' dtype and shape of values, scales and, for INT4, of the shape."""
        rows, columns = shape
        grid = (-(-rows // self.block[0]), -(-columns // self.block[1]) if self.block[1] else 1)
        if self.is_packed:
            return [("I32", (rows, columns // 8)), ("BF16", grid), ("I64", (2,))]
        return [("F8_E4M3", (rows, columns)), ("F32", grid)]


def target_of(name: str, format_name: FormatName, group_size: int) -> Target | None:
    """What a tensor becomes in a format; None leaves it as it is."""
    is_expert = _EXPERT.fullmatch(name) is not None
    if format_name == "fp8":
        return Target(False, _FP8_BLOCK) if is_expert or _FP8.fullmatch(name) else None
    if is_expert:
        return Target(True, (1, group_size))
    if format_name == "int4-fp8" and (_FP8.fullmatch(name) or _FP8_BESIDE_INT4.fullmatch(name)):
        return Target(False, _CHANNEL)
    return None


def plan_targets(
    entries: Mapping[str, Entry], format_name: FormatName, group_size: int
) -> dict[str, Target]:
    """Targets of all matrices that a format quantizes.

    Raises:
        ConfigError: the group size is not supported, does not divide a matrix, or there is nothing
            to convert.
    """
    if group_size not in GROUP_SIZES:
        raise ConfigError(
            f"--group-size is {group_size}; allowed: {', '.join(map(str, GROUP_SIZES))}.",
            param="group_size",
        )
    targets = {}
    for name, entry in entries.items():
        target = target_of(name, format_name, group_size)
        if target is None:
            continue
        if target.is_packed and entry.shape[1] % group_size:
            raise ConfigError(
                f"--group-size is {group_size}, which does not divide the {entry.shape[1]} columns "
                f"of {name}; try --group-size 32, or --format fp8.",
                param="group_size",
            )
        targets[name] = target
    if not targets:
        raise ConfigError(
            f"--format {format_name} finds nothing to convert: the model has no such matrices.",
            param="format",
        )
    return targets


def quantization_config(
    entries: Mapping[str, Entry], targets: Mapping[str, Target], format_name: FormatName
) -> dict[str, Any]:
    """config.json's entry for a converted checkpoint, as other engines read it too."""
    left = sorted(
        name.removesuffix(".weight")
        for name, entry in entries.items()
        if name.endswith(".weight") and len(entry.shape) == 2 and name not in targets
    )
    if format_name == "fp8":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(_FP8_BLOCK),
            "modules_to_not_convert": left,
        }
    size = next(target.block[1] for target in targets.values() if target.is_packed)
    groups: dict[str, Any] = {
        "group_0": {
            "format": "pack-quantized",
            "targets": [r"re:.*\.mlp\.experts\.\d+\.(gate|up|down)_proj$"],
            "weights": _weights("int", 4, "group", size),
            "input_activations": None,
            "output_activations": None,
        }
    }
    if format_name == "int4-fp8":
        names = sorted(n.removesuffix(".weight") for n, t in targets.items() if not t.is_packed)
        groups["group_1"] = {
            "format": "float-quantized",
            "targets": names,
            "weights": _weights("float", 8, "channel", None),
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if format_name == "int4" else "mixed-precision",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": left,
    }


def _weights(kind: str, bits: int, strategy: str, group_size: int | None) -> dict[str, Any]:
    return {
        "type": kind,
        "num_bits": bits,
        "strategy": strategy,
        "group_size": group_size,
        "symmetric": True,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
    }
