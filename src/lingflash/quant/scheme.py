"""How a checkpoint's matrices are stored, decided tensor by tensor.

config.json's quantization_config says what may occur. Supported are quant_method "fp8" with
weight_block_size, and "compressed-tensors" of the formats pack-quantized (INT4, symmetric, in
groups of 32 or 128), float-quantized (FP8 per channel or block) and mixed-precision of the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lingflash.core.errors import ModelLoadError, UnsupportedModelError

GROUP_SIZES = (32, 128)

_SCALE_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_BESIDE = ("weight_scale", "weight_scale_inv", "weight_shape")
# Tensors that some writers put beside a quantized matrix and that change what it means.
_REFUSED = {
    "weight_zero_point": "zero points (asymmetric quantization)",
    "weight_g_idx": "reordered groups (actorder)",
    "input_scale": "static activation scales",
    "weight_global_scale": "a second, global scale",
}


class Entry(Protocol):
    """What is known of a checkpoint's tensor before it is read."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class MatrixFormat:
    """How one matrix is stored.

    Args:
        values: name of the tensor with its values.
        scale: name of the tensor with its scales.
        shape_name: name of the tensor that repeats its shape, if there is one.
        is_packed: int32 words of eight 4-bit values, instead of FP8.
        block: rows and columns that share a scale; 0 columns is a whole row.
        scale_dtype: what the scales are stored as.
        shape: rows and columns of the matrix itself.
    """

    values: str
    scale: str
    shape_name: str | None
    is_packed: bool
    block: tuple[int, int]
    scale_dtype: torch.dtype
    shape: tuple[int, int]

    @property
    def label(self) -> str:
        """The format's short name, such as "int4 g32"."""
        if self.is_packed:
            return f"int4 g{self.block[1]}"
        return f"fp8 {self.block[0]}x{self.block[1]}" if self.block[1] else "fp8 channel"

    def values_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Shape of the stored values of a [rows, columns] matrix."""
        return rows, columns // 8 if self.is_packed else columns

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Shape of the scales of a [rows, columns] matrix."""
        block_rows, block_columns = self.block
        return -(-rows // block_rows), -(-columns // block_columns) if block_columns else 1


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What quantization_config announces."""

    fp8_blocks: frozenset[tuple[int, int]]
    fp8_channel: bool
    int4_groups: frozenset[int]


def _bad(message: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"config.json: quantization_config{message}")


def read_allowed(raw: Mapping[str, Any] | None) -> _Allowed:
    """Read quantization_config strictly.

    Raises:
        UnsupportedModelError: a method, format or setting that lingflash does not compute.
    """
    if raw is None:
        return _Allowed(frozenset(), False, frozenset())
    method = raw.get("quant_method")
    if method == "fp8":
        return _read_fp8(raw)
    if method == "compressed-tensors":
        return _read_compressed_tensors(raw)
    raise _bad(f".quant_method is {method!r}; supported: 'fp8', 'compressed-tensors'.")


def _read_fp8(raw: Mapping[str, Any]) -> _Allowed:
    block = _block(raw.get("weight_block_size"))
    if block is None:
        raise _bad(
            f".weight_block_size is {raw.get('weight_block_size')!r} for quant_method 'fp8'; "
            "two positive sizes such as [128, 128] are needed (FP8 with one scale per tensor is "
            "not supported)."
        )
    for key, allowed in (
        ("fmt", ("e4m3", None)),
        ("activation_scheme", ("dynamic", None)),
        ("scale_fmt", (None, "float", "float32")),
    ):
        if raw.get(key) not in allowed:
            raise _bad(f".{key} is {raw[key]!r}; supported: {allowed[0]!r}.")
    return _Allowed(frozenset({block}), False, frozenset())


def _block(value: object) -> tuple[int, int] | None:
    """Two positive sizes, or None if it is anything else."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    rows, columns = value
    if type(rows) is not int or type(columns) is not int or min(rows, columns) < 1:
        return None
    return rows, columns


def _read_compressed_tensors(raw: Mapping[str, Any]) -> _Allowed:
    if raw.get("kv_cache_scheme") is not None:
        raise _bad(".kv_cache_scheme is set; a quantized cache is not supported.")
    if raw.get("quantization_status", "compressed") != "compressed":
        raise _bad(
            f".quantization_status is {raw['quantization_status']!r}; supported: 'compressed'."
        )
    for key in ("sparsity_config", "transform_config"):
        if raw.get(key) not in (None, {}):
            raise _bad(f".{key} is set; it would change the weights and is not supported.")
    whole = raw.get("format")
    formats = ("pack-quantized", "float-quantized", "mixed-precision")
    if whole not in formats:
        raise _bad(f".format is {whole!r}; supported: {', '.join(map(repr, formats))}.")
    groups = raw.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _bad(".config_groups is missing or empty; it says how weights are quantized.")
    blocks: set[tuple[int, int]] = set()
    int4: set[int] = set()
    channel = False
    for name, group in groups.items():
        where = f".config_groups.{name}"
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise _bad(f"{where} has no weights.")
        if group.get("output_activations") is not None:
            raise _bad(f"{where}.output_activations is set; it is not supported.")
        inputs = group.get("input_activations")
        if inputs is not None and not (isinstance(inputs, dict) and inputs.get("dynamic") is True):
            raise _bad(f"{where}.input_activations is not dynamic; static scales are unsupported.")
        kind, bits = weights.get("type"), weights.get("num_bits")
        strategy = weights.get("strategy")
        if weights.get("symmetric", True) is not True:
            raise _bad(f"{where}.weights.symmetric is false; zero points are not supported.")
        if weights.get("actorder") not in (None, False):
            raise _bad(f"{where}.weights.actorder is {weights['actorder']!r}; supported: null.")
        if weights.get("dynamic") not in (None, False):
            raise _bad(f"{where}.weights.dynamic is true; stored weights are needed.")
        if (kind, bits) == ("int", 4) and strategy == "group":
            size = weights.get("group_size")
            if size not in GROUP_SIZES:
                raise _bad(f"{where}.weights.group_size is {size!r}; supported: 32, 128.")
            int4.add(size)
        elif (kind, bits) == ("float", 8) and strategy == "channel":
            channel = True
        elif (kind, bits) == ("float", 8) and strategy == "block":
            block = _block(weights.get("block_structure"))
            if block is None:
                given = weights.get("block_structure")
                raise _bad(f"{where}.weights.block_structure is {given!r}; two sizes are needed.")
            blocks.add(block)
        else:
            raise _bad(
                f"{where}.weights is {kind!r} of {bits} bits with strategy {strategy!r}; "
                "supported: int of 4 bits by group, float of 8 bits by channel or block."
            )
    return _Allowed(frozenset(blocks), channel, frozenset(int4))


def read_formats(
    raw: Mapping[str, Any] | None, entries: Mapping[str, Entry]
) -> dict[str, MatrixFormat]:
    """Decide for every matrix of a checkpoint whether and how it is quantized.

    Args:
        raw: config.json's quantization_config, None if it has none.

    Returns:
        Name of the matrix (ending in ".weight") to its format; those not named are not quantized.

    Raises:
        UnsupportedModelError: something that lingflash does not compute.
        ModelLoadError: a scale is missing, of a wrong shape, or config.json and tensors disagree.
    """
    allowed = read_allowed(raw)
    formats: dict[str, MatrixFormat] = {}
    for name, entry in entries.items():
        module, _, leaf = name.rpartition(".")
        if leaf in _REFUSED:
            raise UnsupportedModelError(f"{name}: {_REFUSED[leaf]} are not supported.")
        if leaf == "weight_packed":
            formats[module + ".weight"] = _int4(module, entry, entries, allowed)
        elif entry.dtype == "F8_E4M3" and leaf == "weight":
            formats[name] = _fp8(name, entry, entries, allowed)
    for name in entries:
        module, _, leaf = name.rpartition(".")
        if leaf in _BESIDE and module + ".weight" not in formats:
            raise ModelLoadError(
                f"{name} is there, but the quantized matrix it belongs to is missing: "
                f"{module}.weight_packed, or {module}.weight of dtype F8_E4M3."
            )
    if raw is not None and not formats:
        raise ModelLoadError(
            f"config.json: quantization_config.quant_method is {raw.get('quant_method')!r}, but no "
            "tensor of the checkpoint is quantized; remove the entry or use the right files."
        )
    return formats


def describe_formats(formats: Mapping[str, MatrixFormat]) -> str:
    """How many matrices are stored how, for people."""
    counts = Counter(stored.label for stored in formats.values())
    return ", ".join(f"{label} ({count:,} matrices)" for label, count in sorted(counts.items()))


def _companion(name: str, of: str, entries: Mapping[str, Entry]) -> Entry:
    if name not in entries:
        raise ModelLoadError(f"{of} is quantized, but its {name} is missing.")
    return entries[name]


def _scale_dtype(name: str, entry: Entry) -> torch.dtype:
    if entry.dtype not in _SCALE_DTYPES:
        raise UnsupportedModelError(
            f"{name}: scales of dtype {entry.dtype} are not supported; "
            f"supported: {', '.join(_SCALE_DTYPES)}."
        )
    return _SCALE_DTYPES[entry.dtype]


def _int4(
    module: str, entry: Entry, entries: Mapping[str, Entry], allowed: _Allowed
) -> MatrixFormat:
    packed = module + ".weight_packed"
    if not allowed.int4_groups:
        raise ModelLoadError(
            f"{packed}: config.json's quantization_config announces no 4-bit integer weights."
        )
    if entry.dtype != "I32" or len(entry.shape) != 2:
        raise ModelLoadError(
            f"{packed} is {entry.dtype} {list(entry.shape)}; int32 words of a matrix are needed."
        )
    scale_name, shape_name = module + ".weight_scale", module + ".weight_shape"
    scale = _companion(scale_name, packed, entries)
    _companion(shape_name, packed, entries)
    rows, columns = entry.shape[0], 8 * entry.shape[1]
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    size = columns // groups if groups and columns % groups == 0 else 0
    if size not in allowed.int4_groups or scale.shape[0] != rows:
        declared = " or ".join(str(n) for n in sorted(allowed.int4_groups))
        raise ModelLoadError(
            f"{scale_name} is {list(scale.shape)}, which is no grid of scales for "
            f"[{rows}, {columns}] values in groups of {declared}."
        )
    return MatrixFormat(
        values=packed,
        scale=scale_name,
        shape_name=shape_name,
        is_packed=True,
        block=(1, size),
        scale_dtype=_scale_dtype(scale_name, scale),
        shape=(rows, columns),
    )


def _fp8(name: str, entry: Entry, entries: Mapping[str, Entry], allowed: _Allowed) -> MatrixFormat:
    if not allowed.fp8_blocks and not allowed.fp8_channel:
        raise UnsupportedModelError(
            f"{name} is F8_E4M3, but config.json's quantization_config announces no FP8 weights."
        )
    if len(entry.shape) != 2:
        raise ModelLoadError(f"{name} is F8_E4M3 {list(entry.shape)}; FP8 is for matrices only.")
    rows, columns = entry.shape
    inverse = name + "_scale_inv"
    # The published FP8 checkpoints call the factor weight_scale_inv, compressed-tensors
    # weight_scale.
    scale_name = inverse if inverse in entries else name + "_scale"
    if scale_name not in entries:
        wanted = inverse if not allowed.fp8_channel else scale_name
        raise ModelLoadError(f"{name} is quantized, but its {wanted} is missing.")
    scale = entries[scale_name]
    choices = [(1, 0)] if allowed.fp8_channel else []
    choices += sorted(allowed.fp8_blocks)
    for block in choices:
        found = MatrixFormat(
            values=name,
            scale=scale_name,
            shape_name=None,
            is_packed=False,
            block=block,
            scale_dtype=_scale_dtype(scale_name, scale),
            shape=(rows, columns),
        )
        if scale.shape == found.scale_shape(rows, columns):
            return found
    unit = " or ".join(f"block of {r} x {c}" if c else "channel" for r, c in choices)
    raise ModelLoadError(
        f"{scale_name} is {list(scale.shape)}, which is not one scale per {unit} of "
        f"[{rows}, {columns}] values."
    )
