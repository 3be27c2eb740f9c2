"""Multi-head latent attention as it is defined, keys and values expanded from the latents.

k_nope_h, v_h = c W_kvb,h^T;  score = (q_nope_h . k_nope_h + q_rope_h . k_rope) * scale, causal
"""

from __future__ import annotations

import torch
from torch import Tensor


def mla_attention_reference(
    q_nope: Tensor, q_rope: Tensor, latents: Tensor, w_kvb: Tensor, scale: float
) -> Tensor:
    """Attend over one sequence; the queries are its last tokens.

    Args:
        q_nope: float [m, H, N].
        q_rope: float [m, H, P], rotated.
        latents: float [L, R + P], L >= m: normed latent, then the rotated shared key.
        w_kvb: float [H, N + V, R].

    Returns:
        float [m, H, V], in the dtype of q_nope (use float64 for a truth).
    """
    dtype = q_nope.dtype
    rank, nope = w_kvb.shape[-1], q_nope.shape[-1]
    latents, w_kvb = latents.to(dtype), w_kvb.to(dtype)
    c, k_rope = latents[:, :rank], latents[:, rank:]
    k_nope = torch.einsum("lr,hnr->lhn", c, w_kvb[:, :nope])
    v = torch.einsum("lr,hvr->lhv", c, w_kvb[:, nope:])
    scores = torch.einsum("mhn,lhn->hml", q_nope, k_nope)
    scores = (scores + torch.einsum("mhp,lp->hml", q_rope.to(dtype), k_rope)) * scale
    m, length = scores.shape[1:]
    future = torch.arange(length)[None] > torch.arange(length - m, length)[:, None]
    scores = scores.masked_fill(future.to(scores.device), float("-inf"))
    return torch.einsum("hml,lhv->mhv", scores.softmax(-1), v)
