"""Weights that stay quantized in memory and are turned into numbers where they are used.

On the CPU a product with such a weight computes with it as it is stored (kernels/cpu/packed.py), if
rows are float32 and it is of a kind that the compiled kernels know. Else it is dequantized a few
rows at a time, so that besides the packed weights never more than a small piece exists in the
model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lingflash.kernels.cpu.packed import can_multiply, multiply_packed
from lingflash.kernels.moe_gemm import silu_and_mul
from lingflash.kernels.quant_gemm import (
    FEW_ROWS,
    GROUP,
    Rows,
    fp8_gemm,
    silu_and_mul_fp8,
    takes_fp8_rows,
)
from lingflash.quant.pack import dequantize

# Numbers that are dequantized at once: 16 MiB of float32.
_PIECE_ELEMENTS = 1 << 22
# What turning a piece into numbers takes at most: two float32 copies and the result.
PIECE_BYTES = _PIECE_ELEMENTS * 12


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """One matrix [R, C] of stored values and scales, possibly several stacked by rows.

    Args:
        values: float8_e4m3fn [R, C] or packed int32 [R, C/8].
        scale: a float dtype, a grid per part.
        block: rows and columns that share a scale; 0 columns is a whole row.
        dtype: that products are computed in.
        part_rows: rows of each part; every part begins a new grid of scales.
    """

    values: Tensor
    scale: Tensor
    block: tuple[int, int]
    dtype: torch.dtype
    part_rows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the numbers."""
        packed = 8 if self.values.dtype == torch.int32 else 1
        return self.values.shape[0], self.values.shape[1] * packed

    def parts(self) -> list[QuantizedMatrix]:
        """The stacked matrices, each by itself; views."""
        if len(self.part_rows) == 1:
            return [self]
        scale_rows = [-(-rows // self.block[0]) for rows in self.part_rows]
        values = self.values.split(list(self.part_rows))
        scales = self.scale.split(scale_rows)
        return [
            QuantizedMatrix(v, s, self.block, self.dtype, (v.shape[0],))
            for v, s in zip(values, scales, strict=True)
        ]

    def pieces(self) -> list[QuantizedMatrix]:
        """The matrix cut by rows into parts small enough to be dequantized at once; views."""
        step = max(_PIECE_ELEMENTS // self.shape[1] // self.block[0], 1) * self.block[0]
        cut = []
        for part in self.parts():
            for lo in range(0, part.shape[0], step):
                values = part.values[lo : lo + step]
                first = lo // self.block[0]
                scale = part.scale[first : first + -(-values.shape[0] // self.block[0])]
                cut.append(
                    QuantizedMatrix(values, scale, self.block, self.dtype, (values.shape[0],))
                )
        return cut

    def dense(self) -> Tensor:
        """The numbers, dtype [R, C]."""
        found = [dequantize(p.values, p.scale, p.block, p.dtype) for p in self.parts()]
        return found[0] if len(found) == 1 else torch.cat(found)

    def split(self, rows: Sequence[int]) -> list[Matrix]:
        """Parts with these rows.

        Raises:
            ValueError: they are not the parts that were stacked.
        """
        if tuple(rows) != self.part_rows:
            raise ValueError(f"rows {list(rows)} are not the stacked {list(self.part_rows)}.")
        return list(self.parts())


@dataclass(frozen=True, slots=True)
class StackedMatrix:
    """Matrices of different formats that read the same input, stacked by rows.

    Args:
        matrices: each Tensor or QuantizedMatrix [R_i, C].
    """

    matrices: tuple[Tensor | QuantizedMatrix, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of all and columns."""
        return sum(m.shape[0] for m in self.matrices), self.matrices[0].shape[1]

    def split(self, rows: Sequence[int]) -> list[Matrix]:
        """The matrices again.

        Raises:
            ValueError: the rows are not theirs.
        """
        if [m.shape[0] for m in self.matrices] != list(rows):
            raise ValueError(f"rows {list(rows)} are not those of the stacked matrices.")
        return list(self.matrices)


Matrix = Tensor | QuantizedMatrix | StackedMatrix


@dataclass(frozen=True, slots=True)
class QuantizedExperts:
    """One matrix [R, C] for each of E experts, all in the same format.

    Args:
        values: float8_e4m3fn [E, R, C] or packed int32 [E, R, C/8].
        scale: a float dtype, [E, grids of the parts].
        block, dtype, part_rows: see QuantizedMatrix.
    """

    values: Tensor
    scale: Tensor
    block: tuple[int, int]
    dtype: torch.dtype
    part_rows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, rows and columns."""
        return len(self.values), *self.matrix(0).shape

    def matrix(self, expert: int) -> QuantizedMatrix:
        return QuantizedMatrix(
            self.values[expert], self.scale[expert], self.block, self.dtype, self.part_rows
        )

    def __getitem__(self, expert: int) -> Tensor:
        """One expert's numbers, dtype [R, C]."""
        return self.matrix(expert).dense()


def linear(x: Tensor | Rows, weight: Matrix) -> Tensor:
    """x W^T for a weight in any format.

    Args:
        x: float [T, C], or the same as Rows that other products read too.
        weight: [R, C], of x's dtype or quantized with that dtype to compute in.

    Returns:
        [T, R], dtype of x.

    Numerics: a quantized weight is rounded to x's dtype, then F.linear; on a CPU see
    multiply_packed, if it takes the two. On a GPU, bfloat16 rows times an FP8 weight are rounded to
    FP8 if they are more than FEW_ROWS (fp8_gemm), else to float16 times their row's factor
    (skinny_gemm_triton). Sync: none.
    """
    if isinstance(weight, Tensor):
        return F.linear(x.x if isinstance(x, Rows) else x, weight)
    rows = x if isinstance(x, Rows) else Rows(x)
    if isinstance(weight, StackedMatrix):
        return torch.cat([linear(rows, part) for part in weight.matrices], -1)
    if _takes_fp8(rows.x, weight):
        return fp8_gemm(rows.fp8(), weight.values, weight.scale)
    if _is_skinny(rows.x, weight):
        from lingflash.kernels.skinny_gemm.triton_few_rows import skinny_gemm_triton

        out = rows.x.new_empty(rows.x.shape[0], weight.shape[0])
        return skinny_gemm_triton(rows.x, weight.values, weight.scale, out, scaled=True)
    if can_multiply(rows.x, weight):
        return multiply_packed([(rows.x, weight)])[0]
    pieces = weight.pieces()
    if len(pieces) == 1:
        return F.linear(rows.x, pieces[0].dense())
    return torch.cat([F.linear(rows.x, piece.dense()) for piece in pieces], -1)


def gated_linear(gate_up: Tensor, weight: Matrix) -> Tensor:
    """(SiLU(gate) * up) W^T: linear(silu_and_mul(gate_up), weight), without a step between.

    Args:
        gate_up: float [T, 2C].
        weight: [R, C].

    Returns:
        [T, R], dtype of gate_up.

    Numerics: as linear; where rows are rounded to FP8 they are not rounded before. Sync: none.
    """
    if isinstance(weight, QuantizedMatrix) and _takes_fp8(gate_up, weight):
        return fp8_gemm(silu_and_mul_fp8(gate_up), weight.values, weight.scale)
    return linear(silu_and_mul(gate_up), weight)


def _takes_fp8(x: Tensor, weight: QuantizedMatrix) -> bool:
    """Whether x is rounded to FP8 for this weight: many bfloat16 rows on a GPU."""
    if not x.is_cuda or x.dtype != torch.bfloat16 or x.dim() != 2 or x.shape[0] <= FEW_ROWS:
        return False
    return _is_fp8_grid(weight)


def _is_skinny(x: Tensor, weight: QuantizedMatrix) -> bool:
    """Whether x is few bfloat16 rows on a GPU and the weight FP8 with scales that are known."""
    if not x.is_cuda or x.dtype != torch.bfloat16 or x.dim() != 2 or x.stride(1) != 1:
        return False
    return weight.scale.dtype == torch.float32 and _is_fp8_grid(weight)


def _is_fp8_grid(weight: QuantizedMatrix) -> bool:
    """Whether fp8_gemm knows the weight's scales, those of stacked parts as one grid."""
    if weight.values.dtype != torch.float8_e4m3fn or weight.block not in ((GROUP, GROUP), (1, 0)):
        return False
    # Only the last part may end within a block: each begins a grid of its own.
    whole = all(rows % weight.block[0] == 0 for rows in weight.part_rows[:-1])
    return whole and takes_fp8_rows(weight.scale, *weight.shape)
