"""Number formats in plain torch: quantize, pack, unpack, dequantize. The definition of each layout.

A quantized matrix [R, C] is stored values times scales. The scales form a grid: one for each block
of `block_rows` x `block_columns` values, the last blocks smaller where the sizes do not divide.

    format         values                        block        stored beside `{name}`
    fp8 block      float8_e4m3fn [R, C]          128 x 128    `{name}_scale_inv` [R/128, C/128]
    fp8 channel    float8_e4m3fn [R, C]          1 x C        `{name}_scale` [R, 1]
    int4 group     int32 [R, C/8], 8 nibbles     1 x group    `{name}_scale` [R, C/group]

Nibble j of a word, bits 4j to 4j+3, is column 8w + j; it stores value + 8, for values -8 to 7.
Sources: the published FP8 checkpoints' `weight_scale_inv` (a factor, despite its name), and
compressed-tensors' formats `float-quantized` and `pack-quantized`.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8_MAX = 448.0
NIBBLES = 8
_ZERO = 8
# Divisors of a group's largest magnitude that are tried for its scale. 7 clips nothing; larger ones
# clip the largest values and resolve the others better.
_INT4_DIVISORS = (7.0, 7.5, 8.0, 8.5, 9.0, 9.5)


def pack_int4(values: Tensor) -> Tensor:
    """Pack signed 4-bit values, eight to a word.

    Args:
        values: int8 [..., C], each -8 to 7; C a multiple of 8.

    Returns:
        int32 [..., C/8].

    Raises:
        ValueError: C is no multiple of 8.
    """
    if values.shape[-1] % NIBBLES:
        raise ValueError(f"values: {values.shape[-1]} columns are no multiple of {NIBBLES}.")
    pairs = (values + _ZERO).to(torch.uint8).unflatten(-1, (-1, 2))
    # Words are little-endian, in safetensors files and on every machine that torch runs on.
    return (pairs[..., 0] | (pairs[..., 1] << 4)).contiguous().view(torch.int32)


def unpack_int4(packed: Tensor) -> Tensor:
    """Undo pack_int4: int32 [..., C/8] to int8 [..., C]."""
    pairs = packed.contiguous().view(torch.uint8)
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2).to(torch.int8).sub_(_ZERO)


def expand_scale(scale: Tensor, shape: torch.Size, block: tuple[int, int]) -> Tensor:
    """Repeat a grid of scales to the shape of the values.

    Args:
        scale: [ceil(R / block rows), ceil(C / block columns)].
        shape: (R, C).
        block: rows and columns of a block; 0 columns is a whole row.

    Returns:
        Scales that broadcast against [R, C].
    """
    rows, columns = block
    if rows > 1:
        scale = scale.repeat_interleave(rows, 0)[: shape[0]]
    if columns:
        scale = scale.repeat_interleave(columns, 1)[:, : shape[1]]
    return scale


def dequantize(values: Tensor, scale: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Turn stored values into numbers: value times scale in float32, rounded once to `dtype`.

    Args:
        values: float8_e4m3fn [R, C], or int32 [R, C/8] of packed nibbles.
        scale: any float dtype, one per block.
        block: rows and columns of a block; 0 columns is a whole row.

    Returns:
        [R, C] of dtype.
    """
    is_packed = values.dtype == torch.int32
    numbers = (unpack_int4(values).float() if is_packed else fp8_to_float(values)).contiguous()
    rows, columns = block[0], block[1] or numbers.shape[1]
    scale = scale.float()
    if numbers.shape[0] % rows == 0 and numbers.shape[1] % columns == 0:
        grid = numbers.view(scale.shape[0], rows, scale.shape[1], columns)
        grid.mul_(scale[:, None, :, None])
    else:
        numbers.mul_(expand_scale(scale, numbers.shape, block))
    return numbers.to(dtype)


def fp8_to_float(values: Tensor) -> Tensor:
    """float8_e4m3fn to float32, exactly.

    On the CPU torch converts one number at a time. The bits of an e4m3 number, moved into those of
    a float16, are the number times 2^-8, subnormal ones too; that takes a twentieth of the time.
    """
    if values.device.type != "cpu":
        return values.float()
    wide = values.view(torch.int8).to(torch.int16).bitwise_left_shift_(7)
    # The sign was carried into the bit below it.
    numbers = wide.bitwise_and_(~(1 << 14)).view(torch.float16).float().mul_(256.0)
    if numbers.numel() and max(numbers.amax(), -numbers.amin()) > FP8_MAX:
        numbers.masked_fill_(numbers.abs() > FP8_MAX, float("nan"))  # what 0x7f and 0xff are
    return numbers


def quantize_fp8(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Round a matrix to FP8 with one float32 scale per block: the block's largest magnitude / 448.

    Args:
        weight: any float dtype [R, C].
        block: rows and columns of a block; 0 columns is a whole row.

    Returns:
        float8_e4m3fn [R, C] and float32 scales [ceil(R / rows), ceil(C / columns)].
    """
    numbers = weight.float()
    num_rows, num_columns = numbers.shape
    rows, columns = block[0], block[1] or num_columns
    padded = torch.nn.functional.pad(
        numbers.abs(), (0, -num_columns % columns, 0, -num_rows % rows)
    )
    largest = padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).amax((1, 3))
    scale = torch.where(largest > 0, largest / FP8_MAX, 1.0)
    scaled = numbers / expand_scale(scale, numbers.shape, block)
    return scaled.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def quantize_int4(
    weight: Tensor, group_size: int, scale_dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """Round a matrix to 4 bits, one scale per group of columns, symmetric around zero.

    Of a few scales per group the one with the smallest squared error is kept.

    Args:
        weight: any float dtype [R, C]; C a multiple of the group size.
        group_size: columns that share a scale.
        scale_dtype: what the scales are stored as; values are rounded against the stored scale.

    Returns:
        int32 [R, C/8] and scales [R, C / group_size].

    Raises:
        ValueError: C is no multiple of the group size.
    """
    if weight.shape[1] % group_size:
        raise ValueError(f"weight: {weight.shape[1]} columns are no multiple of {group_size}.")
    groups = weight.float().unflatten(1, (-1, group_size))
    largest = groups.abs().amax(-1)
    largest = torch.where(largest > 0, largest, 7.0)
    best_scale = best_values = best_error = None
    for divisor in _INT4_DIVISORS:
        scale = (largest / divisor).to(scale_dtype)
        step = scale.float()[..., None]
        values = (groups / step).round_().clamp_(-_ZERO, _ZERO - 1)
        error = (values * step - groups).square_().sum(-1)
        if best_scale is None or best_values is None or best_error is None:
            best_scale, best_values, best_error = scale, values, error
        else:
            better = error < best_error
            best_scale = torch.where(better, scale, best_scale)
            best_values = torch.where(better[..., None], values, best_values)
            best_error = torch.where(better, error, best_error)
    assert best_scale is not None
    assert best_values is not None
    return pack_int4(best_values.flatten(1).to(torch.int8)), best_scale.contiguous()
