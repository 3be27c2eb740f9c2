"""From a checkpoint folder to a model: every tensor used, none missing, nothing guessed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lingflash.core.checkpoint_files import read_generation_config
from lingflash.core.errors import ModelLoadError, UnsupportedModelError
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.checkpoint import TensorEntry, list_some, read_checkpoint
from lingflash.models.config import ModelConfig, load_model_config
from lingflash.models.layers.weights import Slot
from lingflash.parallel.mesh import Mesh
from lingflash.quant.pack import dequantize
from lingflash.quant.scheme import MatrixFormat, read_formats

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
    mesh: Mesh | None = None,
) -> BailingHybrid:
    """Build the model of a folder and fill it.

    Files are memory-mapped and each tensor is copied once, to its final place, dtype and device:
    besides the weights themselves no anonymous memory is used. Quantized matrices stay as they are
    stored; products turn them into `dtype` where they are used.

    Args:
        folder: Hugging Face layout.
        dtype: of activations and of weights that are not quantized.
        max_model_len: length of the rotary tables.
        rope_scaling: replaces config.json's entry.
        progress: told about bytes read.
        mesh: ranks that share the model; this one's part is loaded.

    Raises:
        ModelLoadError: something is missing, left over, truncated or of a wrong shape.
        UnsupportedModelError: another model, or a number format that is not supported.
        ConfigError: the model cannot be split over so many ranks.
    """
    mesh = mesh or Mesh()
    config = load_model_config(folder, rope_scaling)
    entries = read_checkpoint(folder)
    formats = read_formats(config.quantization_config, entries)
    model = build_model(
        config,
        entries,
        formats,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        mesh=mesh,
    )
    check_tensors(model.weight_slots, entries, formats)
    _copy_tensors(model.weight_slots, entries, formats, progress)
    # Every slot is filled; the table of views is of no more use and keeps nothing alive by itself.
    model.weight_slots = {}
    return model


def build_model(
    config: ModelConfig,
    entries: Mapping[str, TensorEntry],
    formats: Mapping[str, MatrixFormat],
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    mesh: Mesh,
) -> BailingHybrid:
    """Allocate the model for a checkpoint's tensors without reading any; arguments as load_model's.

    On the meta device nothing is allocated either, and what it would take can be counted.

    Raises:
        ModelLoadError: it has not even as many tensors as this model has layers and experts.
    """
    sparse = max(config.num_hidden_layers - config.first_k_dense_replace, 0)
    least = config.num_hidden_layers + sparse * config.num_experts
    if least > len(entries):
        raise ModelLoadError(
            f"The checkpoint has {len(entries):,} tensors, but {config.num_hidden_layers} layers "
            f"with {config.num_experts:,} experts each (config.json) are over {least:,}."
        )
    return BailingHybrid(
        config.share(mesh.shard),
        {name: entry.shape for name, entry in entries.items()},
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        with_mtp=_has_mtp(config, entries),
        formats=formats,
        mesh=mesh,
    )


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


def check_tensors(
    slots: Mapping[str, Slot],
    entries: Mapping[str, TensorEntry],
    formats: Mapping[str, MatrixFormat],
) -> None:
    """Compare what the model needs with what the checkpoint holds, before anything is read.

    Raises:
        ModelLoadError: names the missing, unused or misshapen tensors.
    """
    known = {f.shape_name for f in formats.values()}
    needed = []
    for name, slot in slots.items():
        stored = slot.dequantize
        needed += [name] if stored is None else [stored.values, stored.scale]
    known.update(needed)
    missing = [name for name in needed if name not in entries]
    unused = [name for name in entries if name not in known]
    if missing or unused:
        parts = []
        if missing:
            parts.append(f"{len(missing)} tensors are missing: {list_some(missing)}")
        if unused:
            parts.append(f"{len(unused)} tensors have no place in the model: {list_some(unused)}")
        raise ModelLoadError(f"The checkpoint does not fit its config.json: {'; '.join(parts)}.")
    wrong = [
        f"{name} is {list(slot.shape)}, needed is {list(slot.destination.shape)}"
        + ("" if slot.cut.shape == slot.shape else f" of {list(slot.cut.shape)} on each rank")
        for name, slot in slots.items()
        if slot.cut.shape != tuple(slot.destination.shape)
        or (slot.dequantize is None and entries[name].shape != slot.shape)
    ]
    if wrong:
        raise ModelLoadError(f"Wrong shapes for this config.json: {list_some(wrong, 3)}.")
    quantized = {n for f in formats.values() for n in (f.values, f.scale)}
    coarse = [
        name
        for name, slot in slots.items()
        if slot.dequantize is None
        and name not in quantized
        and entries[name].dtype not in _FLOAT_DTYPES
    ]
    if coarse:
        raise UnsupportedModelError(
            f"{list_some(coarse, 3)}: dtype {entries[coarse[0]].dtype} is not supported; "
            f"supported: {', '.join(_FLOAT_DTYPES)}."
        )


def _copy_tensors(
    slots: Mapping[str, Slot],
    entries: Mapping[str, TensorEntry],
    formats: Mapping[str, MatrixFormat],
    progress: Progress | None,
) -> None:
    total = sum(entry.num_bytes for entry in entries.values())
    done = 0
    by_file: dict[Path, list[str]] = {}
    for name, entry in entries.items():
        by_file.setdefault(entry.file, []).append(name)
    shapes = {f.shape_name: f for f in formats.values() if f.shape_name is not None}
    # Quantized matrices that the model keeps dense: values and scale may lie in different files.
    opened: dict[str, Tensor] = {}
    dense = {slot.dequantize.values: slot for slot in slots.values() if slot.dequantize}
    scale_of = {s.dequantize.scale: s.dequantize.values for s in dense.values() if s.dequantize}
    for path, names in by_file.items():
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in names:
                    source = file.get_tensor(name)
                    if name in shapes:
                        _check_stored_shape(name, source, shapes[name])
                    elif name in dense or name in scale_of:
                        opened[name] = source
                    else:
                        _copy(slots[name], source)
                    done += entries[name].num_bytes
                    if progress is not None:
                        progress(done, total)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ModelLoadError(f"{path} cannot be read: {error}.") from None
    for slot in dense.values():
        stored = slot.dequantize
        assert stored is not None
        numbers = dequantize(
            opened.pop(stored.values), opened.pop(stored.scale), stored.block, torch.float32
        )
        _copy(slot, numbers)


def _copy(slot: Slot, source: Tensor) -> None:
    """Copy the slot's part of a stored tensor to its place."""
    row = 0
    for lo, hi in slot.cut.rows:
        part = source[lo:hi]
        if slot.cut.columns is not None:
            part = part[:, slot.cut.columns[0] : slot.cut.columns[1]]
        slot.destination[row : row + hi - lo].copy_(part)
        row += hi - lo


def _check_stored_shape(name: str, source: Tensor, stored: MatrixFormat) -> None:
    if source.tolist() != list(stored.shape):
        raise ModelLoadError(
            f"{name} says {source.tolist()}, but {stored.values} and {stored.scale} hold "
            f"{list(stored.shape)}; padded matrices are not supported."
        )


def load_stop_token_ids(folder: Path, config: ModelConfig) -> list[int]:
    """End-of-sequence ids of generation_config.json and config.json together, in ascending order.

    Raises:
        ModelLoadError: generation_config.json exists but cannot be read.
    """
    ids = {*config.eos_token_ids, *read_generation_config(folder).eos_token_ids}
    out_of_range = sorted(i for i in ids if not 0 <= i < config.vocab_size)
    if out_of_range:
        raise ModelLoadError(
            f"eos_token_id {out_of_range[:5]} is outside the vocabulary of {config.vocab_size}."
        )
    return sorted(ids)
