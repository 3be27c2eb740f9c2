"""How experts' matrices may be stored, as far as kernels know: BF16, FP8 with scales, INT4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lingflash.kernels.cpu.packed import StoredMatrix

__all__ = ["BF16", "FP8", "INT4", "ExpertFormat", "ExpertMatrices", "StoredExperts"]

BF16, FP8, INT4 = 0, 1, 2


class ExpertMatrices(Protocol):
    """One matrix per expert, given as numbers when it is asked for: weights kept in fewer bits."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __getitem__(self, expert: int, /) -> Tensor: ...


@runtime_checkable
class StoredExperts(ExpertMatrices, Protocol):
    """ExpertMatrices whose stored form can be read.

    values: float8_e4m3fn [E, R, C], or int32 [E, R, C/8] of nibbles, value + 8, lowest first.
    scale: a float dtype [E, grid rows, grid columns].
    block: rows and columns that share a scale; 0 columns is a whole row.
    part_rows: rows of the matrices stacked in R, each beginning a grid of scales.
    """

    @property
    def values(self) -> Tensor: ...

    @property
    def scale(self) -> Tensor: ...

    @property
    def block(self) -> tuple[int, int]: ...

    @property
    def part_rows(self) -> tuple[int, ...]: ...

    def matrix(self, expert: int, /) -> StoredMatrix: ...


@dataclass(frozen=True, slots=True)
class ExpertFormat:
    """What the grouped kernels are compiled for.

    Args:
        code: BF16, FP8 or INT4.
        group: columns that share a scale: 128 for FP8 in blocks, 0 for FP8 per row, 32 or 128 for
            INT4.
    """

    code: int
    group: int = 0


def expert_format(weight: Tensor | ExpertMatrices) -> ExpertFormat | None:
    """The format of experts that the grouped kernels multiply by, None if they cannot.

    Shapes must suit the copy engine too: rows of a multiple of 16 bytes, contiguous.
    """
    if isinstance(weight, Tensor):
        fits = weight.dtype == torch.bfloat16 and weight.is_contiguous()
        return ExpertFormat(BF16) if fits and weight.shape[2] % 8 == 0 else None
    if not isinstance(weight, StoredExperts) or not weight.values.is_contiguous():
        return None
    _, rows, columns = weight.shape
    if weight.values.dtype == torch.int32:
        group = weight.block[1]
        fits = weight.block[0] == 1 and group in (32, 128) and columns % 128 == 0
        return ExpertFormat(INT4, group) if fits else None
    if columns % 128:
        return None
    if weight.block == (1, 0):
        return ExpertFormat(FP8)
    fits = weight.block == (128, 128) and all(part % 128 == 0 for part in weight.part_rows)
    return ExpertFormat(FP8, 128) if fits and rows % 128 == 0 else None
