"""A model of any published shape and format with random weights, made on the device itself."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from lingflash.bench.in_engine.dummy_checkpoint import tensor_shapes
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.config import ModelConfig
from lingflash.parallel.mesh import Mesh
from lingflash.quant.recipe import FormatName, target_of
from lingflash.quant.scheme import MatrixFormat

# As the published models were initialised.
_WEIGHT_STD = 0.02
_PIECE = 1 << 27
# FP8 values of about unit size use e4m3's normal range; nibbles -8 to 7 have this deviation.
_NIBBLE_STD = 4.61
# Names of layouts: what `ling convert` would make of a checkpoint, and the columns that share an
# INT4 scale. Published are bf16, fp8 and int4.
LAYOUTS: dict[str, tuple[FormatName | None, int]] = {
    "bf16": (None, 0), "fp8": ("fp8", 0), "int4": ("int4", 32), "int4-g128": ("int4", 128),
    "int4-fp8": ("int4-fp8", 128), "int4-g32-fp8": ("int4-fp8", 32),
}  # fmt: skip


def make_dummy_model(
    config: ModelConfig,
    layout: str,
    device: torch.device,
    max_model_len: int,
    mesh: Mesh | None = None,
) -> BailingHybrid:
    """The model without its MTP layer, weights random and never zero.

    Args:
        layout: one of LAYOUTS.
        max_model_len: length of the rotary tables.
        mesh: ranks that share the model; what each has whole is the same on all.
    """
    mesh = mesh or Mesh()
    mtp = f"model.layers.{config.num_hidden_layers}."
    shapes = {n: s for n, s in tensor_shapes(config).items() if not n.startswith(mtp)}
    formats: dict[str, MatrixFormat] = {}
    format_name, group_size = LAYOUTS[layout]
    if format_name is not None:
        for name, shape in shapes.items():
            target = target_of(name, format_name, group_size)
            if target is not None and len(shape) == 2:
                values, scale, shape_name = target.names(name)
                dtype = torch.bfloat16 if target.is_packed else torch.float32
                formats[name] = MatrixFormat(
                    values, scale, shape_name, target.is_packed, target.block, dtype,
                    (shape[0], shape[1]),
                )  # fmt: skip
    model = BailingHybrid(
        config.share(mesh.shard),
        shapes,
        dtype=torch.bfloat16,
        device=device,
        max_model_len=max_model_len,
        with_mtp=False,
        formats=formats,
        mesh=mesh,
    )
    generator = torch.Generator(device).manual_seed(0)
    done: set[int] = set()
    for name, slot in model.weight_slots.items():
        weight = slot.destination if slot.destination._base is None else slot.destination._base
        if weight.data_ptr() not in done:
            done.add(weight.data_ptr())
            if mesh.shard.size > 1:
                part = mesh.shard.rank if slot.cut.shape != slot.shape else -1
                generator.manual_seed(zlib.crc32(f"{name} {part}".encode()))
            _fill(weight, name, generator)
    return model


def _fill(weight: Tensor, name: str, generator: torch.Generator) -> None:
    """Random values of the kind that a tensor of this name and dtype holds."""
    if weight.dtype == torch.int32:
        weight.random_(-(2**31), 2**31 - 1, generator=generator)
    elif weight.dtype == torch.float8_e4m3fn:
        flat = weight.view(-1)
        noise = torch.empty(_PIECE, dtype=torch.bfloat16, device=weight.device)
        for start in range(0, flat.numel(), _PIECE):
            piece = flat[start : start + _PIECE]
            piece.copy_(noise.normal_(generator=generator)[: piece.numel()])
    elif name.endswith(("_scale", "_scale_inv")):
        std = _NIBBLE_STD if weight.dtype == torch.bfloat16 else 1.0
        weight.uniform_(0.8, 1.2, generator=generator).mul_(_WEIGHT_STD / std)
        if weight.dtype == torch.bfloat16:
            # Random nibbles are -1/2 on average, and what all columns share would grow from layer
            # to layer until all tokens look alike; with scales of both signs it cancels.
            weight.mul_(torch.randint_like(weight, 2, dtype=torch.int8).mul_(2).sub_(1))
    elif name == "model.word_embeddings.weight":
        weight.normal_(generator=generator)  # tokens must differ as much as the layers' outputs
    elif name.endswith("expert_bias"):
        # Among the best of 256 a bias of 0.02 would make some experts half as likely again.
        weight.normal_(0.0, _WEIGHT_STD / 10, generator=generator)
    elif "norm" in name:
        weight.uniform_(0.8, 1.2, generator=generator)
    else:
        weight.normal_(0.0, _WEIGHT_STD, generator=generator)
