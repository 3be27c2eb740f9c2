"""From a checkpoint folder to a model: every tensor used, none missing, nothing guessed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lingflash.core.errors import ModelLoadError, UnsupportedModelError
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.checkpoint import TensorEntry, list_some, read_checkpoint
from lingflash.models.config import ModelConfig, load_model_config

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with bytes read so far and in all."""

_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    rope_scaling: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> BailingHybrid:
    """Build the model of a folder and fill it.

    Files are memory-mapped and each tensor is copied once, to its final place, dtype and device:
    besides the weights themselves no anonymous memory is used.

    Args:
        folder: Hugging Face layout.
        dtype: of weights and activations.
        device: where the weights go.
        max_model_len: length of the rotary tables.
        rope_scaling: replaces config.json's entry.
        progress: told about bytes read.

    Raises:
        ModelLoadError: something is missing, left over, truncated or of a wrong shape.
        UnsupportedModelError: another model, or a number format that is not supported.
    """
    config = load_model_config(folder, rope_scaling)
    if config.quantization_config is not None:
        method = config.quantization_config.get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"config.json: quantization_config.quant_method is {method!r}; quantized checkpoints "
            "are not supported yet, use the BF16 one."
        )
    entries = read_checkpoint(folder)
    model = BailingHybrid(
        config,
        {name: entry.shape for name, entry in entries.items()},
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        with_mtp=_has_mtp(config, entries),
    )
    check_tensors(model.weight_slots, entries)
    _copy_tensors(model.weight_slots, entries, progress)
    # Every slot is filled; the table of views is of no more use and keeps nothing alive by itself.
    model.weight_slots = {}
    return model


def _has_mtp(config: ModelConfig, entries: Mapping[str, TensorEntry]) -> bool:
    prefix = f"model.layers.{config.num_hidden_layers}."
    present = any(name.startswith(prefix) for name in entries)
    if config.num_nextn_predict_layers and not present:
        log.warning(
            "The checkpoint has no tensors of the MTP layer (%s...); speculative decoding is "
            "unavailable.",
            prefix,
        )
    return present


def check_tensors(slots: Mapping[str, Tensor], entries: Mapping[str, TensorEntry]) -> None:
    """Compare what the model needs with what the checkpoint holds, before anything is read.

    Raises:
        ModelLoadError: names the missing, unused or misshapen tensors.
    """
    missing = [name for name in slots if name not in entries]
    unused = [name for name in entries if name not in slots]
    if missing or unused:
        parts = []
        if missing:
            parts.append(f"{len(missing)} tensors are missing: {list_some(missing)}")
        if unused:
            parts.append(f"{len(unused)} tensors have no place in the model: {list_some(unused)}")
        raise ModelLoadError(f"The checkpoint does not fit its config.json: {'; '.join(parts)}.")
    wrong = [
        f"{name} is {list(entries[name].shape)}, needed is {list(slot.shape)}"
        for name, slot in slots.items()
        if tuple(slot.shape) != entries[name].shape
    ]
    if wrong:
        raise ModelLoadError(f"Wrong shapes for this config.json: {list_some(wrong, 3)}.")
    coarse = [name for name in slots if entries[name].dtype not in _FLOAT_DTYPES]
    if coarse:
        raise UnsupportedModelError(
            f"{list_some(coarse, 3)}: dtype {entries[coarse[0]].dtype} is not supported; "
            f"supported: {', '.join(_FLOAT_DTYPES)}."
        )


def _copy_tensors(
    slots: Mapping[str, Tensor], entries: Mapping[str, TensorEntry], progress: Progress | None
) -> None:
    total = sum(entries[name].num_bytes for name in slots)
    done = 0
    by_file: dict[Path, list[str]] = {}
    for name in slots:
        by_file.setdefault(entries[name].file, []).append(name)
    for path, names in by_file.items():
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in names:
                    slots[name].copy_(file.get_tensor(name))
                    done += entries[name].num_bytes
                    if progress is not None:
                        progress(done, total)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ModelLoadError(f"{path} cannot be read: {error}.") from None


def load_stop_token_ids(folder: Path, config: ModelConfig) -> list[int]:
    """End-of-sequence ids of generation_config.json and config.json together, in ascending order.

    Raises:
        ModelLoadError: generation_config.json exists but cannot be read.
    """
    ids = set(config.eos_token_ids)
    eos = load_generation_config(folder).get("eos_token_id")
    if isinstance(eos, int):
        ids.add(eos)
    elif isinstance(eos, list) and all(isinstance(i, int) for i in eos):
        ids.update(eos)
    elif eos is not None:
        raise ModelLoadError(
            f"generation_config.json: eos_token_id is {eos!r}; a token id or a list is needed."
        )
    out_of_range = sorted(i for i in ids if not 0 <= i < config.vocab_size)
    if out_of_range:
        raise ModelLoadError(
            f"eos_token_id {out_of_range} is outside the vocabulary of {config.vocab_size}."
        )
    return sorted(ids)


def load_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json as a dict; empty if there is none.

    Raises:
        ModelLoadError: it cannot be read as a JSON object.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise ModelLoadError(f"{path} holds no JSON object.")
    return raw
