"""What a checkpoint's weights take on one rank, in the format it has and in those it could have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from lingflash.core.errors import LingflashError
from lingflash.models.checkpoint import TensorEntry
from lingflash.models.config import ModelConfig
from lingflash.models.loader import build_model
from lingflash.parallel.mesh import Mesh
from lingflash.parallel.shard import Shard
from lingflash.quant.matrix import PIECE_BYTES
from lingflash.quant.recipe import FormatName, plan_targets, quantization_config
from lingflash.quant.scheme import read_formats

_BYTES = {"I32": 4, "BF16": 2, "I64": 8, "F8_E4M3": 1, "F32": 4}


def count_weights(
    config: ModelConfig, entries: Mapping[str, TensorEntry], dtype: torch.dtype, shard: Shard
) -> tuple[int, int]:
    """Build the model without memory and count.

    Args:
        config: of the whole model.
        dtype: of activations and of weights that are not quantized.
        shard: the rank and how many there are.

    Returns:
        Bytes of the weights, and of what quantized ones are turned into while they are used.

    Raises:
        ModelLoadError: the checkpoint's formats do not fit together.
        ConfigError: the model cannot be split so many ways.
    """
    model = build_model(
        config,
        entries,
        read_formats(config.quantization_config, entries),
        dtype=dtype,
        device=torch.device("meta"),
        max_model_len=1,
        mesh=Mesh(shard),
    )
    if not model.is_quantized:
        return model.num_weight_bytes, 0
    widths = model.config.moe_intermediate_size, model.config.hidden_size
    # An expert's two matrices are turned into numbers whole, in float32 first, others in pieces.
    experts = 3 * widths[0] * widths[1] * (4 + dtype.itemsize)
    return model.num_weight_bytes, max(experts, PIECE_BYTES)


def in_format(
    entries: Mapping[str, TensorEntry], format_name: FormatName, group_size: int
) -> tuple[dict[str, TensorEntry], dict[str, object]]:
    """The tensors that a checkpoint would have after `ling convert`, and its quantization_config.

    Raises:
        ConfigError: the format does not fit the model.
    """
    targets = plan_targets(entries, format_name, group_size)
    found: dict[str, TensorEntry] = {}
    for tensor, entry in entries.items():
        target = targets.get(tensor)
        if target is None:
            found[tensor] = entry
            continue
        for stored, (dtype, shape) in zip(
            target.names(tensor), target.stored(entry.shape), strict=False
        ):
            assert stored is not None
            size = _BYTES[dtype] * torch.Size(shape).numel()
            found[stored] = TensorEntry(entry.file, dtype, shape, size)
    return found, quantization_config(entries, targets, format_name)


def fitting_format(
    config: ModelConfig,
    entries: Mapping[str, TensorEntry],
    dtype: torch.dtype,
    shard: Shard,
    budget: int,
) -> str | None:
    """The first format, best quality first, in which an unquantized checkpoint's weights fit.

    Args:
        config, entries, dtype, shard: as in count_weights.
        budget: bytes for weights and what they are turned into.

    Returns:
        Options of `ling convert`, or None.
    """
    if config.quantization_config is not None:
        return None
    choices: list[tuple[FormatName, int]] = [
        ("fp8", 32), ("int4", 32), ("int4", 128), ("int4-fp8", 128),
    ]  # fmt: skip
    for name, group_size in choices:
        try:
            tensors, raw = in_format(entries, name, group_size)
            changed = replace(config, quantization_config=raw)
            weights, scratch = count_weights(changed, tensors, dtype, shard)
        except LingflashError:
            continue  # this one does not fit the model's widths
        if weights + scratch <= budget:
            return "--format " + (name if name == "fp8" else f"{name} --group-size {group_size}")
    return None
