"""Rotary position embedding: the angle table, plain or YaRN, and its two pairings of channels.

It has no kernel and no reference of its own: these functions are the definition, and the kernels
of lightning_attn and mla that rotate are tested against them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rope_inv_freq(rotary_dim: int, theta: float) -> Tensor:
    """Angle per position of each pair, theta ** (-2j / rotary_dim); float64 [rotary_dim/2]."""
    j = torch.arange(0, rotary_dim, 2, dtype=torch.float64)
    return theta ** (-j / rotary_dim)


def yarn_inv_freq(
    rotary_dim: int,
    theta: float,
    *,
    factor: float,
    original_length: int,
    beta_fast: float,
    beta_slow: float,
) -> tuple[Tensor, float]:
    """YaRN's blend of stretched and plain frequencies, and the factor on cos and sin.

    Channels that turn more than beta_fast times within original_length keep their frequency, those
    that turn less than beta_slow times are slowed by `factor`, with a linear ramp over the channel
    index between. Source: YaRN, arXiv 2309.00071, section 3.

    Returns:
        float64 [rotary_dim/2] and 0.1 ln(factor) + 1.
    """

    def dim_of(turns: float) -> float:
        return (
            rotary_dim * math.log(original_length / (2 * math.pi * turns)) / (2 * math.log(theta))
        )

    low = max(math.floor(dim_of(beta_fast)), 0)
    high = min(math.ceil(dim_of(beta_slow)), rotary_dim - 1)
    j = torch.arange(rotary_dim // 2, dtype=torch.float64)
    # A ramp of no width would divide by zero; a thousandth keeps it a step.
    ramp = ((j - low) / max(high - low, 1e-3)).clamp(0, 1)
    plain = rope_inv_freq(rotary_dim, theta)
    return plain / factor * ramp + plain * (1 - ramp), 0.1 * math.log(factor) + 1.0


def rope_table(inv_freq: Tensor, length: int, scale: float, device: torch.device) -> Tensor:
    """Tabulate cosine and sine for positions 0 .. length - 1.

    Args:
        inv_freq: float64 [P/2].
        scale: factor on both (YaRN's attention factor; 1 without).

    Returns:
        float32 [length, P]: cosines, then sines. Angles are computed in float64, since float32 is
        off by 0.01 rad near position 2**18.
    """
    angles = torch.arange(length, dtype=torch.float64)[:, None] * inv_freq
    return torch.cat([angles.cos() * scale, angles.sin() * scale], -1).float().to(device)


def apply_rope_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first P channels, channel j paired with j + P/2; the rest pass through.

    Args:
        x: float32 [T, H, D].
        cos, sin: float32 [T, 1, P/2], P <= D.

    Returns:
        float32 [T, H, D].
    """
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    parts = [
        torch.addcmul(first * cos, second, sin, value=-1),
        torch.addcmul(second * cos, first, sin),
    ]
    if 2 * half < x.shape[-1]:
        parts.append(x[..., 2 * half :])
    return torch.cat(parts, -1)


def apply_rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate all channels, channel 2j paired with 2j + 1.

    Args:
        x: any float dtype [T, H, P].
        cos, sin: float32 [T, 1, P/2].

    Returns:
        Same dtype and shape as x; computed in float32.
    """
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    rotated = [
        torch.addcmul(even * cos, odd, sin, value=-1),
        torch.addcmul(odd * cos, even, sin),
    ]
    return torch.stack(rotated, -1).flatten(-2).to(x.dtype)
