"""Products of many rows with FP8 weights: rows rounded to FP8 when they come, float32 sums.

The published FP8 checkpoints ask for dynamic activation scales, so a product of many rows is one of
FP8 by FP8: one float32 scale per row and 128 columns, and one per 128 x 128 weights or per weight
row. Nothing here waits for the device.

    scales of the weight          kernel, on a GPU (on a CPU reference.py)
    a block of 128 x 128          cuBLAS through torch, if it takes the shape; else triton_fp8.py
    one per row                   triton_fp8.py

Few rows and other formats: skinny_gemm, and quant/matrix.py for what it turns into BF16 first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lingflash.kernels.quant_gemm.reference import (
    GROUP,
    fp8_gemm_reference,
    quantize_rows_reference,
)

__all__ = [
    "FEW_ROWS",
    "GROUP",
    "Fp8Rows",
    "Rows",
    "fp8_gemm",
    "fp8_gemm_reference",
    "quantize_rows_fp8",
    "quantize_rows_reference",
    "silu_and_mul_fp8",
    "takes_fp8_rows",
]

# Up to here a product reads its weights once at most and is bound by that: other kernels.
FEW_ROWS = 64


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """Activations in FP8, ready for several products.

    Args:
        values: float8_e4m3fn [T, K], contiguous.
        scale: float32 [K/128, T], columns contiguous: factor of each row's 128 columns. Rows lie
            side by side, since a product needs one group of columns of many rows at a time.
    """

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values.shape[1]

    def cut(self, begin: int, end: int) -> Fp8Rows:
        """Some of the rows; views."""
        return Fp8Rows(self.values[begin:end], self.scale[:, begin:end])


class Rows:
    """Activations that several products read, rounded to FP8 once, when the first asks for it.

    Args:
        x: a float dtype [T, K].
    """

    __slots__ = ("_fp8", "x")

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._fp8: Fp8Rows | None = None

    def fp8(self) -> Fp8Rows:
        """The rows in FP8; see quantize_rows_fp8."""
        if self._fp8 is None:
            self._fp8 = quantize_rows_fp8(self.x)
        return self._fp8


def takes_fp8_rows(w_scale: Tensor, num_weight_rows: int, num_columns: int) -> bool:
    """Whether these scales are a grid that fp8_gemm knows: 128 x 128, or one per weight row."""
    grid = (-(-num_weight_rows // GROUP), num_columns // GROUP)
    return num_columns % GROUP == 0 and tuple(w_scale.shape) in (grid, (num_weight_rows, 1))


def _check_rows(x: Tensor, columns: int) -> None:
    if x.dim() != 2 or x.dtype != torch.bfloat16 or x.stride(1) != 1:
        raise ValueError(f"x is {x.dtype} {tuple(x.shape)}; bfloat16 rows are needed.")
    if columns % GROUP:
        raise ValueError(f"x gives {columns} columns, no multiple of {GROUP}.")


def quantize_rows_fp8(x: Tensor) -> Fp8Rows:
    """Round rows to FP8 with a scale per row and 128 columns: their largest magnitude / 448.

    Args:
        x: bfloat16 [T, K], K a multiple of 128; rows may be strided.

    Returns:
        The rounded rows; a group of zeros has the scale 1.

    Raises:
        ValueError: x is no bfloat16 matrix, or its columns are no multiple of 128.

    Numerics: relative error of a number at most 2^-4, of a row of random numbers about 2.6e-2.
    Sync: none, graph-safe.
    """
    _check_rows(x, x.shape[-1])
    if x.device.type == "cpu":
        return Fp8Rows(*quantize_rows_reference(x))
    from lingflash.kernels.quant_gemm.triton_fp8 import quantize_rows_triton

    return Fp8Rows(*quantize_rows_triton(x))


def silu_and_mul_fp8(gate_up: Tensor) -> Fp8Rows:
    """quantize_rows_fp8 of SiLU(first half) times the second: bfloat16 [T, 2I] to FP8 [T, I].

    Raises:
        ValueError: gate_up is no bfloat16 matrix, or I is no multiple of 128.

    Numerics: float32 until the one rounding to FP8. Sync: none, graph-safe.
    """
    _check_rows(gate_up, gate_up.shape[-1] // 2)
    if gate_up.device.type == "cpu":
        gate, up = gate_up.float().chunk(2, -1)
        return Fp8Rows(*quantize_rows_reference(torch.nn.functional.silu(gate) * up))
    from lingflash.kernels.quant_gemm.triton_fp8 import silu_and_mul_fp8_triton

    return Fp8Rows(*silu_and_mul_fp8_triton(gate_up))


def fp8_gemm(x: Fp8Rows, w8: Tensor, w_scale: Tensor) -> Tensor:
    """x W^T for an FP8 weight.

    Args:
        x: FP8 rows [T, K].
        w8: float8_e4m3fn [N, K], contiguous.
        w_scale: a float dtype, [ceil(N/128), K/128] for blocks of 128 x 128, or [N, 1].

    Returns:
        bfloat16 [T, N].

    Raises:
        ValueError: shapes or dtypes do not fit.

    Numerics: sums within 128 columns by the FP8 tensor cores, between them float32, rounded once.
        Against the product of the unrounded rows the error is that of rounding the rows: 2.6e-2
        of the result's norm for random numbers. Sync: none, graph-safe.
    """
    num_rows, columns = x.shape
    if w8.dtype != torch.float8_e4m3fn or w8.dim() != 2 or w8.shape[1] != columns:
        raise ValueError(
            f"w8 is {w8.dtype} {tuple(w8.shape)}; float8_e4m3fn [N, {columns}] is needed."
        )
    if not w8.is_contiguous() or not takes_fp8_rows(w_scale, w8.shape[0], columns):
        raise ValueError(
            f"w_scale is {tuple(w_scale.shape)} for contiguous w8 {tuple(w8.shape)}; "
            "one scale per 128 x 128 or per row is needed."
        )
    if w8.device.type == "cpu":
        return fp8_gemm_reference(x.values, x.scale, w8, w_scale).to(torch.bfloat16)
    if not num_rows:
        return torch.empty(0, w8.shape[0], dtype=torch.bfloat16, device=w8.device)
    if _cublas_takes(w8, w_scale):  # the faster one
        return fp8_block_gemm_cublas(x, w8, w_scale)
    from lingflash.kernels.quant_gemm.triton_fp8 import fp8_gemm_triton

    return fp8_gemm_triton(x.values, x.scale, w8, w_scale)


def _cublas_takes(w8: Tensor, w_scale: Tensor) -> bool:
    # cuBLAS pads the scales of a weight's columns to a multiple of four.
    is_blocks = w_scale.shape[0] * GROUP == w8.shape[0] and w_scale.shape[1] % 4 == 0
    return is_blocks and w_scale.dtype == torch.float32 and w_scale.is_contiguous()


def fp8_block_gemm_cublas(x: Fp8Rows, w8: Tensor, w_scale: Tensor) -> Tensor:
    """fp8_gemm for blocks by cuBLAS, through torch; needs CUDA 12.9 and Hopper.

    N must be a multiple of 128, K of 512, w_scale float32 and contiguous. cuBLAS knows only
    multiples of four rows: others are computed with rows behind them that hold anything.
    """
    from torch.nn.functional import ScalingType, scaled_mm

    from lingflash.kernels.quant_gemm.triton_fp8 import ROWS_TOGETHER

    num_rows = x.shape[0]
    room = -(-num_rows // ROWS_TOGETHER) * ROWS_TOGETHER
    out = scaled_mm(
        _with_room(x.values, 0, room),
        w8.t(),
        _with_room(x.scale, 1, room).contiguous().t(),
        ScalingType.BlockWise1x128,
        w_scale.t(),
        ScalingType.BlockWise128x128,
        output_dtype=torch.bfloat16,
    )
    return out[:num_rows]


def _with_room(x: Tensor, dim: int, size: int) -> Tensor:
    """A matrix with more rows or columns, which hold anything: a view if its memory goes on."""
    if x.shape[dim] == size:
        return x
    shape = [size if i == dim else n for i, n in enumerate(x.shape)]
    steps = zip(shape, x.stride(), strict=True)
    last = x.storage_offset() + sum((n - 1) * stride for n, stride in steps)
    if last * x.itemsize < x.untyped_storage().nbytes():
        return x.as_strided(shape, x.stride())
    wider = x.new_empty(shape)
    wider.narrow(dim, 0, x.shape[dim]).copy_(x)
    return wider
