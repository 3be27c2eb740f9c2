"""The draw as it is defined: argmax of logits / temperature + Gumbel noise, in float64.

noise(key, token) = -ln(-ln u), u from SplitMix64's finaliser of key + token * golden ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def gumbel_noise(keys: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise, a function of (key, token id) alone.

    Args:
        keys: one per row, from noise_key.
        vocab_size: V.
        device: where it is computed; the integers are the same everywhere.

    Returns:
        float64 [len(keys), V]; double precision, so that rounding of the logarithm does not choose
        tokens.
    """
    token = torch.arange(vocab_size, dtype=torch.int64, device=device) * _signed(GOLDEN)
    x = torch.tensor(list(keys), dtype=torch.int64, device=device)[:, None] + token
    # The same finaliser in wrapping int64; a right shift must not copy the sign.
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    x = x ^ (x >> 31 & (1 << 33) - 1)
    uniform = ((x >> 11 & (1 << 53) - 1).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


def sample_tokens_reference(logits: Tensor, temperature: Tensor, keys: Sequence[int]) -> Tensor:
    """See sample_tokens."""
    noise = gumbel_noise(keys, logits.shape[-1], logits.device)
    noise = noise.masked_fill_(temperature[:, None] == 0, 0.0)
    return (logits.double() + noise).argmax(-1)
