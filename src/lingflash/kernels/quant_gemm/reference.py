"""y = (x8 * x_scale) (w8 * w_scale)^T and the rounding that makes x8, as written."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 128
FP8_MAX = 448.0


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn [T, K] and float32 [K/128, T]; see quantize_rows_fp8."""
    groups = x.float().unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(-1)
    scale = torch.where(largest > 0, largest / FP8_MAX, 1.0)
    values = (groups / scale[..., None]).clamp(-FP8_MAX, FP8_MAX)
    return values.flatten(1).to(torch.float8_e4m3fn), scale.t().contiguous()


def fp8_gemm_reference(x8: Tensor, x_scale: Tensor, w8: Tensor, w_scale: Tensor) -> Tensor:
    """Float32 [T, N] of fp8_gemm; shapes as there."""
    x = x8.float() * x_scale.t().repeat_interleave(GROUP, 1)
    scale = w_scale.float()
    if scale.shape != (w8.shape[0], 1):
        scale = scale.repeat_interleave(GROUP, 0)[: w8.shape[0]].repeat_interleave(GROUP, 1)
    return x @ (w8.float() * scale).t()
