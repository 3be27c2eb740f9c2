"""Helpers for tests of quantized checkpoints: convert a folder, write what it stands for."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lingflash.models.checkpoint import read_checkpoint
from lingflash.quant.convert import Conversion, convert
from lingflash.quant.pack import dequantize
from lingflash.quant.scheme import read_formats

# Widths that groups of 32 divide, not those that blocks of 128 do.
WIDE = {
    "hidden_size": 160,
    "moe_intermediate_size": 96,
    "moe_shared_expert_intermediate_size": 96,
    "intermediate_size": 224,
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
}


def job_for(source: Path, out: Path, format_name: str, group_size: int = 32) -> Conversion:
    raw = json.loads((source / "config.json").read_text())
    return Conversion(source, read_checkpoint(source), raw, out, format_name, group_size)


def quantize(source: Path, out: Path, format_name: str, group_size: int = 32) -> Path:
    convert(job_for(source, out, format_name, group_size))
    return out


def write_dense(quantized: Path, out: Path) -> Path:
    """The same numbers as a plain float32 checkpoint in one file."""
    out.mkdir()
    raw = json.loads((quantized / "config.json").read_text())
    formats = read_formats(raw.pop("quantization_config"), read_checkpoint(quantized))
    tensors: dict[str, torch.Tensor] = {}
    for path in quantized.glob("*.safetensors"):
        tensors |= load_file(path)
    for name, stored in formats.items():
        values, scale = tensors.pop(stored.values), tensors.pop(stored.scale)
        if stored.shape_name is not None:
            del tensors[stored.shape_name]
        tensors[name] = dequantize(values, scale, stored.block, torch.float32)
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(raw))
    return out


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of the expected matrix; 0 for a zero matrix."""
    norm = torch.linalg.vector_norm(expected.float())
    difference = torch.linalg.vector_norm(actual.float() - expected.float())
    return float(difference / norm) if norm > 0 else float(difference)
