"""The router's product on the GPU: float32 weights as three bfloat16 matrices.

A float32 number is the sum of three bfloat16 numbers but for its last bit or so: 3 x 8 significant
bits for 24. Products of two bfloat16 numbers are exact in float32, where the tensor cores add them,
so three fast products give what a slow float32 one does.
"""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _split_kernel(weight_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = at < count
    rest = tl.load(weight_ptr + at, mask=kept, other=0.0)
    for part in tl.static_range(3):
        rounded = rest.to(tl.bfloat16)
        rest -= rounded.to(tl.float32)
        tl.store(out_ptr + part * count + at, rounded, mask=kept)


def split_bfloat16(weight: Tensor) -> Tensor:
    """Three matrices whose sum is the weight: float32 [E, D], contiguous, to bfloat16 [3, E, D].

    Numerics: relative error of the sum at most 2^-24. Sync: none, graph-safe.
    """
    out = torch.empty(3, *weight.shape, dtype=torch.bfloat16, device=weight.device)
    _split_kernel[(triton.cdiv(weight.numel(), 1024),)](weight, out, weight.numel(), BLOCK=1024)
    return out


def gate_logits(x: Tensor, w_gate: Tensor) -> Tensor:
    """x W^T in float32.

    Args:
        x: bfloat16 [T, D], on a GPU.
        w_gate: float32 [E, D], contiguous.

    Returns:
        float32 [T, E].

    Numerics: as a float32 product without TF32. Sync: none, graph-safe.
    """
    # The split is a few microseconds of a step of many tokens, kept it would be 6 MiB per layer.
    split = split_bfloat16(w_gate)
    products = torch.mm(x, split.flatten(0, 1).t(), out_dtype=torch.float32)
    return products.view(x.shape[0], 3, w_gate.shape[0]).sum(1)
