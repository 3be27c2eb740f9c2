"""Lightning attention as it is defined, one token after the other.

For each head h with decay lambda_h = exp(-decay_rate_h):

    S_t = lambda_h S_{t-1} + k_t v_t^T          [K, V], float32
    o_t = K^(-1/2) q_t^T S_t                    the token itself is included and not decayed
"""

from __future__ import annotations

import torch
from torch import Tensor


def lightning_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, decay_rate: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over one sequence.

    Args:
        q, k: float [T, H, K].
        v: float [T, H, V].
        decay_rate: float [H], -ln of the decay per token.
        initial_state: float [H, K, V]; zeros if None.

    Returns:
        outputs [T, H, V] and the state after the last token [H, K, V], in the dtype of q (use
        float64 for a truth to compare with).
    """
    num_tokens, num_heads, key_dim = q.shape
    decay = torch.exp(-decay_rate.to(q.dtype))[:, None, None]
    state = q.new_zeros(num_heads, key_dim, v.shape[-1])
    if initial_state is not None:
        state = state + initial_state.to(q.dtype)
    outputs = torch.empty_like(v)
    for t in range(num_tokens):
        state = state * decay + k[t, :, :, None] * v[t, :, None, :]
        outputs[t] = torch.einsum("hk,hkv->hv", q[t], state) * key_dim**-0.5
    return outputs, state
