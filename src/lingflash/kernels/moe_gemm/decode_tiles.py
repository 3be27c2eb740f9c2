"""How the decode kernels read matrices of experts, and how their products are cut by default."""

# pyright: reportReturnType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "DecodeExperts",
    "ExpertTiles",
    "Int4Tiles",
    "OneTokenTiles",
    "block_rows",
    "down_tiles",
    "gate_up_tiles",
    "one_down_tiles",
    "one_gate_up_tiles",
]


@dataclass(frozen=True, slots=True)
class DecodeExperts:
    """The matrices of E experts as the decode kernels read them.

    Args:
        values: bfloat16 or float8_e4m3fn [E, R, K], or int32 [E, R, K/8]; contiguous.
        scale: None for bfloat16; float32 [E, R/128, K/128] or [E, R, 1] for FP8, blocks or rows
            (R/128 rows of scales for each matrix that is stacked); any float dtype
            [E, R, K/group] for INT4.
        group: columns that share a scale of INT4, 32 or 128; else 0.
    """

    values: Tensor
    scale: Tensor | None
    group: int = 0

    @property
    def is_int4(self) -> bool:
        """Whether the values are words of eight nibbles."""
        return self.values.dtype == torch.int32

    @property
    def scale_kind(self) -> str:
        """How FP8 values are scaled: "none", "block" or "channel"."""
        if self.scale is None or self.is_int4:
            return "none"
        rows, columns = self.values.shape[1:]
        grid = (-(-rows // 128), -(-columns // 128))
        return "block" if self.scale.shape[1:] == grid else "channel"

    def scales(self) -> Tensor:
        """The scales; the values stand in where there are none."""
        return self.values if self.scale is None else self.scale


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """How a product of several tokens with BF16 or FP8 weights is cut.

    Args:
        block_n: rows of weights of a program.
        block_k: columns of a step.
        warps, stages: of a program.
    """

    block_n: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Int4Tiles:
    """How a product of several tokens with INT4 weights is cut: a program is one warp.

    Args:
        rows: of weights of each of the two products that a program makes side by side (gate and
            up; the first and the second half of its rows of `down`): a multiple of 16.
        unroll: columns of a step, in 128.
        ahead: whether a step's weights are asked for before the last one's are used.
        cache: steps before that in which they are brought to the L2 cache; 0 does not. For `down`
            anything but 0 brings the next piece.
        pieces: of `down`, each of 2 rows' rows, that a program makes one after the other.
    """

    rows: int = 16
    unroll: int = 2
    ahead: bool = True
    cache: int = 0
    pieces: int = 1


@dataclass(frozen=True, slots=True)
class OneTokenTiles:
    """How a product of one token is cut.

    Args:
        block_n: rows of weights of a program.
        warps: of a program.
        ahead: choices whose weights `down` asks for at once.
    """

    block_n: int
    warps: int
    ahead: int = 1


def gate_up_tiles(w: DecodeExperts) -> ExpertTiles | Int4Tiles:
    """Of several tokens."""
    return Int4Tiles() if w.is_int4 else ExpertTiles(64, 128, 4, 4)


def down_tiles(w: DecodeExperts) -> ExpertTiles | Int4Tiles:
    """Of several tokens."""
    return Int4Tiles(pieces=2) if w.is_int4 else ExpertTiles(128, 128, 4, 3)


def block_rows(w: DecodeExperts, num_tokens: int) -> int:
    """Rows of x that share a program, for plan_rows.

    With INT4 weights, programs for 8 rows take fewer registers, so that more of them run at a time;
    until a third of the experts have more rows, that is worth reading theirs twice.
    """
    return 8 if w.is_int4 and num_tokens <= 128 else 16


def one_gate_up_tiles(w: DecodeExperts) -> OneTokenTiles:
    """Of one token."""
    return OneTokenTiles(8, 4) if w.is_int4 else OneTokenTiles(4, 4)


def one_down_tiles(w: DecodeExperts) -> OneTokenTiles:
    """Of one token."""
    if w.is_int4:
        return OneTokenTiles(16, 8, 4)
    return OneTokenTiles(8, 4, 4 if w.values.dtype == torch.float8_e4m3fn else 2)
