"""Expert feed-forward: tokens sorted by expert, one pair of matrix products per expert in use.

    tokens                        format            kernel
    any, on a CPU                 FP8, INT4         __init__.py, ../cpu/packed.py
    any, on a CPU                 others            __init__.py
    other rows, on a GPU          others, too       __init__.py
    any, BF16 rows on a GPU       BF16, FP8         triton_sort.py, triton_grouped.py
    any, BF16 rows on a GPU       INT4              triton_sort.py, triton_grouped_int4.py
    up to 256, a decode step      BF16, FP8         triton_few_tokens.py       } launched by
    up to 256, a decode step      INT4              triton_few_tokens_int4.py  } decode.py
    one, a decode step            BF16, FP8, INT4   triton_one_token.py        }

formats.py says what counts as which format, triton_nibbles.py how INT4 is read; reference.py is
the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lingflash.kernels.cpu.packed import can_multiply, multiply_packed
from lingflash.kernels.moe_gemm.formats import FP8, ExpertMatrices, StoredExperts, expert_format
from lingflash.kernels.moe_gemm.reference import expert_mlp_reference
from lingflash.kernels.quant_gemm import Rows

__all__ = ["ExpertMatrices", "expert_mlp", "expert_mlp_reference", "silu_and_mul"]


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """SiLU of the first half times the second: [..., 2I] to [..., I], same dtype.

    Numerics: rounded to the dtype; in between too, except on a GPU. Sync: none, graph-safe.
    """
    if gate_up.is_cuda and gate_up.dim() == 2 and gate_up.stride(1) == 1:
        from lingflash.kernels.quant_gemm.triton_fp8 import silu_and_mul_triton

        return silu_and_mul_triton(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def expert_mlp(
    x: Tensor | Rows,
    w_gate_up: Tensor | ExpertMatrices,
    w_down: Tensor | ExpertMatrices,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    row_multiple: int = 1,
    shared: Tensor | None = None,
) -> Tensor:
    """Sum over a token's experts of weight times MLP_e(x), plus `shared`.

    Args:
        x: float [T, D], or the same as Rows that other products read too.
        w_gate_up: same dtype [E, 2I, D], or matrices that are made when they are used.
        w_down: same dtype [E, D, I], or the same.
        topk_ids: int64 [T, k].
        topk_weights: float32 [T, k].
        row_multiple: each expert's rows are padded to a multiple of this. With
            core.config.ROW_MULTIPLE, a row's result does not depend on how many others go to its
            expert (CPU, float32).
        shared: dtype of x [T, D] that is added, such as a shared expert's result, or None.

    Returns:
        float [T, D], dtype of x.

    Numerics: products accumulate as F.linear does; the sum over experts is float32, in the order of
        topk_ids. On a GPU, tokens in bfloat16 take the grouped kernels, which round rows to FP8 for
        FP8 weights: see expert_mlp_grouped. Sync: blocks the host for the
        number of tokens per expert, except there.
    """
    rows = x if isinstance(x, Rows) else Rows(x)
    x = rows.x
    if x.is_cuda and row_multiple == 1:
        kind = expert_format(w_gate_up)
        if kind is not None and x.dtype == torch.bfloat16 and kind == expert_format(w_down):
            from lingflash.kernels.moe_gemm.triton_grouped import expert_mlp_grouped

            assert isinstance(w_gate_up, Tensor | StoredExperts)
            assert isinstance(w_down, Tensor | StoredExperts)
            return expert_mlp_grouped(
                x.contiguous(), w_gate_up, w_down, topk_ids, topk_weights, kind,
                x_fp8=rows.fp8() if kind.code == FP8 else None, shared=shared,
            )  # fmt: skip
    out = _expert_mlp(x, w_gate_up, w_down, topk_ids, topk_weights, row_multiple)
    return out if shared is None else out + shared


def _expert_mlp(
    x: Tensor,
    w_gate_up: Tensor | ExpertMatrices,
    w_down: Tensor | ExpertMatrices,
    topk_ids: Tensor,
    topk_weights: Tensor,
    row_multiple: int,
) -> Tensor:
    """expert_mlp by one pair of products per expert in use."""
    num_tokens, topk = topk_ids.shape
    num_experts, _, hidden = w_gate_up.shape
    if num_tokens == 1 and row_multiple == 1:
        return _one_token(x, w_gate_up, w_down, topk_ids, topk_weights)
    flat_ids = topk_ids.reshape(-1)
    order = flat_ids.argsort(stable=True)
    counts = torch.bincount(flat_ids, minlength=num_experts).tolist()
    padded = [-(-count // row_multiple) * row_multiple for count in counts]
    rows = x.index_select(0, order // topk)
    if padded != counts:
        # Where each sorted row goes once every expert's block starts at a padded offset.
        starts, used, shift = [], 0, 0
        for count, size in zip(counts, padded, strict=True):
            starts.append(shift)
            shift += size - count
            used += size
        offsets = torch.tensor(starts, device=x.device).index_select(0, flat_ids[order])
        destination = torch.arange(order.numel(), device=x.device) + offsets
        rows = x.new_zeros(used, hidden).index_copy_(0, destination, rows)
    else:
        destination = None
    gate_up = x.new_empty(rows.shape[0], w_gate_up.shape[1])
    out = x.new_empty(rows.shape[0], hidden)
    blocks = []
    begin = 0
    for expert, size in enumerate(padded):
        if size:
            blocks.append((expert, begin, begin + size))
            begin += size
    _multiply(rows, w_gate_up, blocks, gate_up)
    _multiply(silu_and_mul(gate_up), w_down, blocks, out)
    # Back to (token, choice) order, then a sum in the order of the choices.
    # A gather by the inverse order runs on all threads, a scatter of rows does not.
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=x.device)
    if destination is not None:
        place = destination.index_select(0, place)
    unsorted = out.index_select(0, place).view(num_tokens, topk, hidden)
    weighted = unsorted.float() * topk_weights[..., None]
    total = weighted[:, 0]
    for choice in range(1, topk):
        total = total + weighted[:, choice]
    return total.to(x.dtype)


def _one_token(
    x: Tensor,
    w_gate_up: Tensor | ExpertMatrices,
    w_down: Tensor | ExpertMatrices,
    topk_ids: Tensor,
    topk_weights: Tensor,
) -> Tensor:
    """expert_mlp for one token, without sorting: two products per expert, then a weighted sum."""
    experts = topk_ids[0].tolist()
    gate_up = x.new_empty(len(experts), w_gate_up.shape[1])
    parts = x.new_empty(len(experts), x.shape[1])
    blocks = [(e, i, i + 1) for i, e in enumerate(experts)]
    _multiply(x, w_gate_up, [(e, 0, 1) for e in experts], gate_up)
    _multiply(silu_and_mul(gate_up), w_down, blocks, parts)
    return torch.mm(topk_weights, parts.float()).to(x.dtype)


def _multiply(
    x: Tensor, weight: Tensor | ExpertMatrices, blocks: list[tuple[int, int, int]], out: Tensor
) -> None:
    """Rows lo .. hi - 1 of x by an expert's matrix, for each (expert, lo, hi), into rows of out.

    The rows of out are those of the blocks one after the other.
    """
    begin = 0
    if isinstance(weight, StoredExperts) and can_multiply(x, weight.matrix(0)):
        products = [(x[lo:hi], weight.matrix(expert)) for expert, lo, hi in blocks]
        torch.cat(multiply_packed(products), out=out)
        return
    for expert, lo, hi in blocks:
        torch.mm(x[lo:hi], weight[expert].t(), out=out[begin : begin + hi - lo])
        begin += hi - lo
