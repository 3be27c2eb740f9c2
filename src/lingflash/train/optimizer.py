"""Muon for matrices and AdamW for the rest, under one learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NOT_MATRICES = ("word_embeddings.weight", "lm_head.weight", "mlp.gate")


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of each matrix towards 1.

    Args:
        x: bfloat16 [N, m, n].
        steps: iterations of the quintic polynomial.

    Returns:
        bfloat16 [N, m, n].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x.transpose(-1, -2) if tall else x


# Of the running gradient (Nesterov); decoupled; of an update at learning rate 1.
_MOMENTUM, _WEIGHT_DECAY, _RMS = 0.95, 0.02, 0.2


class Muon:
    """Momentum orthogonalised by Newton-Schulz; matrices of one shape go in one batch.

    Args:
        params: two- or three-dimensional parameters, the latter stacks of matrices.
    """

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for p in params:
            self.groups.setdefault(self._shape(p), []).append(p)
        self.buffers = {
            shape: torch.cat([torch.zeros_like(p).view(-1, *shape) for p in group])
            for shape, group in self.groups.items()
        }

    @staticmethod
    def _shape(p: nn.Parameter) -> tuple[int, int]:
        m, n = int(p.shape[-2]), int(p.shape[-1])
        # Fused projections are orthogonalised part by part.
        return (n, n) if m > n and m % n == 0 else (m, n)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the parameters from their gradients."""
        for shape, group in self.groups.items():
            grads = torch.cat([p.grad.reshape(-1, *shape) for p in group if p.grad is not None])
            buffer = self.buffers[shape]
            buffer.lerp_(grads, 1 - _MOMENTUM)
            update = newton_schulz(torch.lerp(grads, buffer, _MOMENTUM).bfloat16()).float()
            # An orthogonal m x n matrix has entries of RMS 1 / sqrt(max(m, n)).
            update = update * (_RMS * max(shape) ** 0.5 * lr)
            parts = update.split([p.numel() // (shape[0] * shape[1]) for p in group])
            for p, part in zip(group, parts, strict=True):
                p.mul_(1 - lr * _WEIGHT_DECAY).sub_(part.reshape(p.shape))


class Optimizer:
    """Both optimizers over one model."""

    def __init__(self, model: nn.Module, fused: bool) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, p in model.named_parameters():
            plain = p.dim() < 2 or name.endswith(_NOT_MATRICES)
            (others if plain else matrices).append(p)
        self.params = [*matrices, *others]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=fused
        )

    def step(self, lr: float) -> None:
        """Clip the gradients to norm 1, update, and clear them."""
        torch.nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
        self.muon.step(lr)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        return {"muon": self.muon.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
        for shape, buffer in state["muon"].items():
            self.muon.buffers[shape].copy_(buffer)
        self.adam.load_state_dict(state["adam"])
