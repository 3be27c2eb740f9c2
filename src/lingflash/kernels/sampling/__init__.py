"""Token choice from logits: keyed noise and truncation of the distribution.

    what          on a CPU        on a GPU
    truncation    __init__.py     __init__.py
    the draw      reference.py    triton_sample.py

The draw's definition is reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lingflash.kernels.sampling.reference import GOLDEN, gumbel_noise, sample_tokens_reference

__all__ = [
    "gumbel_noise",
    "noise_key",
    "sample_tokens",
    "sample_tokens_reference",
    "truncate_logits",
]

_MASK64 = (1 << 64) - 1
# Best tokens that are looked at before all are put in order.
_FEW = 256


def _mix(x: int) -> int:
    """SplitMix64's finaliser on one 64-bit integer (Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK64
    return x ^ (x >> 31)


def noise_key(seed: int, choice: int, position: int) -> int:
    """One signed 64-bit key per (seed, choice, position of the token to be drawn)."""
    key = _mix((seed + GOLDEN) & _MASK64)
    key = _mix((key ^ choice) + GOLDEN & _MASK64)
    key = _mix((key ^ position) + GOLDEN & _MASK64)
    return key - (1 << 64) if key >> 63 else key


def truncate_logits(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Set tokens outside top_k, then top_p, then min_p to -inf; the best token always stays.

    Args:
        logits: float32 [R, V], already divided by the temperature.
        top_k: int64 [R], V keeps all.
        top_p: float32 [R], 1 keeps all.
        min_p: float32 [R], 0 keeps all.

    Returns:
        float32 [R, V].
    """
    num_ordered = logits.shape[-1]
    if num_ordered > _FEW:
        # Most distributions have their mass in a few tokens, and ordering all is what costs. A row
        # is decided by its best ones if the rules drop everything from the last of them on.
        values, order = logits.topk(_FEW, -1)
        total = logits.double().logsumexp(-1, keepdim=True)
        keep = _kept(values, total, top_k, top_p, min_p)
        # The mass that a larger top_k leaves is not known from the few.
        unknown = (top_k > _FEW) & (top_k < num_ordered) & (top_p < 1.0)
        if not bool((keep[:, -1] | unknown).any()):
            out = torch.full_like(logits, float("-inf"))
            return out.scatter_(1, order, values.masked_fill(~keep, float("-inf")))
    values, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    total = logits.double().logsumexp(-1, keepdim=True)
    dropped = ~_kept(values, total, top_k, top_p, min_p)
    return logits.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), float("-inf"))


def _kept(values: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Which of a row's best logits [R, n], best first, the rules keep; `total` [R, 1] is of all."""
    rank = torch.arange(values.shape[-1], device=values.device)
    in_top_k = rank < top_k[:, None]
    probs = (values.double() - total).exp()
    # top_p is a share of what top_k leaves; a top_k larger than n does not cut here.
    mass = torch.where(
        top_k[:, None] <= values.shape[-1], (probs * in_top_k).sum(-1, keepdim=True), 1.0
    )
    before = probs.cumsum(-1) - probs
    keep = in_top_k & ((before < top_p[:, None] * mass) | (top_p[:, None] >= 1.0))
    keep &= probs >= probs[:, :1] * min_p[:, None]
    keep[:, 0] = True
    return keep


def sample_tokens(logits: Tensor, temperature: Tensor, keys: Sequence[int]) -> Tensor:
    """Draw one token per row by the Gumbel-max trick: argmax of logits / temperature + noise.

    Args:
        logits: float32 [R, V], truncated; already divided by the temperature.
        temperature: float32 [R]; rows with 0 take the largest logit.
        keys: one per row.

    Returns:
        int64 [R].
    """
    if logits.is_cuda:
        from lingflash.kernels.sampling.triton_sample import sample_tokens_triton

        drawn = (temperature > 0).float()  # the logits are already divided by it
        return sample_tokens_triton(logits, drawn, torch.tensor(list(keys), device=logits.device))
    return sample_tokens_reference(logits, temperature, keys)
