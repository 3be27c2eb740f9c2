"""An expert that every token takes, for several tokens on the GPU: shared experts, dense layers.

Programs take up to 64 tokens, so that weights are read once or a few times, and few rows of
weights: there is one expert, and all of the GPU is to read it.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false
from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from lingflash.kernels.moe_gemm.decode_tiles import DecodeExperts
from lingflash.kernels.moe_gemm.triton_few_tokens import dense_down_kernel, dense_gate_up_kernel
from lingflash.kernels.triton_launch import launch_options

__all__ = ["down_dense", "gate_up_dense"]

# Programs that a launch should have at least: about one for each multiprocessor.
_PROGRAMS = 100


def _options(
    w: DecodeExperts, num_tokens: int, rows: int
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and what a kernel is compiled for; rows is the number of the result's columns.

    Raises:
        ValueError: INT4 weights.
    """
    if w.is_int4:
        raise ValueError("an expert in INT4 that every token takes is not supported.")
    block_m = max(16, min(64, triton.next_power_of_2(num_tokens)))
    blocks = triton.cdiv(num_tokens, block_m)
    block_n = 64
    while (
        block_n > (16 if block_m < 64 else 32) and triton.cdiv(rows, block_n) * blocks < _PROGRAMS
    ):
        block_n //= 2
    return (triton.cdiv(rows, block_n), blocks), {
        "SCALES": w.scale_kind, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": 128,
        "num_warps": 4 if block_m * block_n > 512 else 2, "num_stages": 4 if block_n < 64 else 3,
    }  # fmt: skip


def gate_up_dense(x: Tensor, w: DecodeExperts, act: Tensor) -> None:
    """act = SiLU(x W_gate) * (x W_up).

    Args:
        x: float16 or bfloat16 [T, K], contiguous rows, normed.
        w: [1, 2I, K], gate above up, bfloat16 or FP8.
        act: float [T, I], contiguous rows; written.

    Raises:
        ValueError: INT4 weights.

    Numerics: as gate_up_decode of several tokens. Sync: none, graph-safe.
    """
    (num_tokens, width), hidden = act.shape, x.shape[1]
    grid, options = _options(w, num_tokens, width)
    dense_gate_up_kernel[grid](
        x, w.values, w.scales(), act, num_tokens, x.stride(0), act.stride(0), w.scales().stride(1),
        WIDTH=width, HIDDEN=hidden, **options, **launch_options(x),
    )  # fmt: skip


def down_dense(act: Tensor, w: DecodeExperts, out: Tensor) -> None:
    """out = act W_down.

    Args:
        act: float [T, I], contiguous rows.
        w: [1, D, I], bfloat16 or FP8.
        out: float32 [T, D], contiguous rows; written.

    Raises:
        ValueError: INT4 weights.

    Numerics: as down_decode. Sync: none, graph-safe.
    """
    (num_tokens, width), hidden = act.shape, out.shape[1]
    grid, options = _options(w, num_tokens, hidden)
    dense_down_kernel[grid](
        act, w.values, w.scales(), out, num_tokens, act.stride(0), out.stride(0),
        w.scales().stride(1), WIDTH=width, HIDDEN=hidden, **options, **launch_options(act),
    )  # fmt: skip
