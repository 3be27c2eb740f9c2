"""out = x W^T with W = values * scales, in float32, as written."""

from __future__ import annotations

import torch
from torch import Tensor


def skinny_gemm_reference(x: Tensor, w: Tensor, scale: Tensor | None) -> Tensor:
    """Float32 result of skinny_gemm; shapes as there."""
    numbers = w.float()
    if scale is not None and scale.shape == (w.shape[0], 1):
        numbers = numbers * scale.float()
    elif scale is not None:
        rows = torch.arange(w.shape[0], device=w.device) // 128
        columns = torch.arange(w.shape[1], device=w.device) // 128
        numbers = numbers * scale.float()[rows[:, None], columns[None, :]]
    return x.float() @ numbers.t()
