"""Root-mean-square normalisation, over the last axis or over groups of it.

    what                                        on a CPU       on a GPU
    rows, with or without the residual          __init__.py    triton_rows.py
    groups, gated (lightning's output)          __init__.py    triton_rows.py
    rows, after adding experts' parts           no             triton_add_parts.py, a decode step

The definition is reference.py.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lingflash.kernels.rmsnorm.reference import group_rms_norm_reference, rms_norm_reference

__all__ = [
    "add_rms_norm",
    "group_rms_norm",
    "group_rms_norm_reference",
    "inverse_rms",
    "rms_norm",
    "rms_norm_reference",
]


@lru_cache(maxsize=16)
def _scalar(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last axis: float32 [..., D] to float32 [..., 1].

    Three calls instead of the seven that torch's own CPU composite makes: at batch 1 a call costs
    more than its arithmetic.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    mean_square = torch.addcmul(_scalar(eps, x.device), norm, norm, value=1.0 / x.shape[-1])
    return mean_square.rsqrt_()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis and scale it.

    Args:
        x: any float dtype [..., D].
        weight: same dtype as x [D], or a shape that broadcasts over x.

    Returns:
        Same dtype and shape as x.

    Numerics: statistics in float32; the result is rounded once. Sync: none, graph-safe.
    """
    if x.is_cuda and x.dim() == 2 and x.stride(1) == 1 and weight.dim() == 1:
        # Not at the top: a machine without a GPU may be without Triton.
        from lingflash.kernels.rmsnorm.triton_rows import rms_norm_triton

        return rms_norm_triton(x, weight, eps)
    x32 = x.float()
    return (x32 * inverse_rms(x32, eps)).mul_(weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add to the residual stream, and normalise the sum for the next layer's input.

    Args:
        x: a float dtype [T, D], contiguous rows.
        residual: same dtype and shape; on a GPU it is overwritten by the sum.
        weight: same dtype [D].

    Returns:
        The sum and its norm, both [T, D] in x's dtype.

    Numerics: the sum is rounded as it is kept, and its norm is rms_norm's. Sync: none, graph-safe.
    """
    if x.is_cuda and residual.is_contiguous():
        from lingflash.kernels.rmsnorm.triton_rows import add_rms_norm_triton

        return residual, add_rms_norm_triton(x, residual, weight, eps)
    total = residual + x
    return total, rms_norm(total, weight, eps)


def group_rms_norm(x: Tensor, weight: Tensor, num_groups: int, eps: float) -> Tensor:
    """Normalise each of `num_groups` equal groups of the last axis by itself, then scale.

    Args:
        x: any float dtype [T, D]; D is a multiple of num_groups.
        weight: float [D], one factor per channel.
        num_groups: number of groups (not their width).

    Returns:
        float32 [T, D].
    """
    rows, channels = x.shape
    if channels % num_groups:
        raise ValueError(f"x has {channels} channels, no multiple of num_groups {num_groups}.")
    grouped = x.float().view(rows, num_groups, channels // num_groups)
    return (grouped * inverse_rms(grouped, eps)).view(rows, channels).mul_(weight)
