"""Shapes that benchmarks run with dummy weights: config.json of the family's published models."""

from __future__ import annotations

from typing import Any

from lingflash.bench.in_engine.dummy_checkpoint import LING_2_6_FLASH
from lingflash.core.errors import ConfigError
from lingflash.models.config import ModelConfig, parse_model_config

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
