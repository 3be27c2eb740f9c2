"""RMSNorm(x, w) = x / sqrt(mean(x^2) + eps) * w, in float32, as written."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis; any float dtype [..., D] in, the same out."""
    x32 = x.float()
    scale = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    return (x32 * scale * weight.float()).to(x.dtype)


def group_rms_norm_reference(x: Tensor, weight: Tensor, num_groups: int, eps: float) -> Tensor:
    """RMSNorm over each of num_groups groups of the last axis; returns float32 [T, D]."""
    parts = [
        rms_norm_reference(part, w, eps)
        for part, w in zip(
            x.float().chunk(num_groups, -1), weight.float().chunk(num_groups, -1), strict=True
        )
    ]
    return torch.cat(parts, -1)
