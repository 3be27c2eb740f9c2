"""Grouped expert products on the GPU: rows sorted by expert, weights read once per block of rows.

align      which rows of which expert each program takes, made without asking the host
gate_up    SiLU(x W_gate) * (x W_up) of every (token, choice)
down       back to the hidden width, times the choice's weight; a sum over choices ends it
"""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.triton_dot import dot

__all__ = ["align_rows", "expert_mlp_triton"]


@triton.jit
def _gate_up_kernel(
    x_ptr, w_ptr, act_ptr, row_ptr, expert_ptr, num_rows, topk,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    expert = tl.load(expert_ptr + block)
    if expert >= 0:
        row = tl.load(row_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M))
        live = row < num_rows
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        x_at = x_ptr + (row // topk)[:, None] * HIDDEN
        weight = w_ptr + expert.to(tl.int64) * (2 * WIDTH * HIDDEN)
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        kept = column < WIDTH
        for start in range(0, HIDDEN, BLOCK_K):
            at = start + k
            inside = at < HIDDEN
            x = tl.load(x_at + at[None, :], mask=live[:, None] & inside[None, :], other=0.0)
            w_at = weight + column[None, :] * HIDDEN + at[:, None]
            mask = inside[:, None] & kept[None, :]
            w_gate = tl.load(w_at, mask=mask, other=0.0)
            w_up = tl.load(w_at + WIDTH * HIDDEN, mask=mask, other=0.0)
            gate = dot(x, w_gate, gate)
            up = dot(x, w_up, up)
        out = gate * tl.sigmoid(gate) * up
        tl.store(
            act_ptr + row[:, None] * WIDTH + column[None, :],
            out.to(act_ptr.dtype.element_ty),
            mask=live[:, None] & kept[None, :],
        )


@triton.jit
def _down_kernel(
    act_ptr, w_ptr, out_ptr, row_ptr, expert_ptr, topk_weight_ptr, num_rows,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    expert = tl.load(expert_ptr + block)
    if expert >= 0:
        row = tl.load(row_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M))
        live = row < num_rows
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        weight = w_ptr + expert.to(tl.int64) * (WIDTH * HIDDEN)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        kept = column < HIDDEN
        for start in range(0, WIDTH, BLOCK_K):
            at = start + k
            inside = at < WIDTH
            a_at = act_ptr + row[:, None] * WIDTH + at[None, :]
            a = tl.load(a_at, mask=live[:, None] & inside[None, :], other=0.0)
            w_at = weight + column[None, :] * WIDTH + at[:, None]
            w = tl.load(w_at, mask=inside[:, None] & kept[None, :], other=0.0)
            total = dot(a, w, total)
        share = tl.load(topk_weight_ptr + row, mask=live, other=0.0)
        tl.store(
            out_ptr + row[:, None] * HIDDEN + column[None, :],
            total * share[:, None],
            mask=live[:, None] & kept[None, :],
        )


def align_rows(topk_ids: Tensor, num_experts: int, block: int) -> tuple[Tensor, Tensor]:
    """Sort (token, choice) rows by expert into blocks that belong to one expert each.

    All sizes follow from the arguments' shapes, so that nothing waits for the device.

    Args:
        topk_ids: int64 [T, k].
        num_experts: E.
        block: rows in a block.

    Returns:
        rows: int64 [B * block], place in topk_ids.flatten(); T k where a block is not full.
        experts: int32 [B], -1 for a block that is not needed.
    """
    flat = topk_ids.flatten()
    num_rows, device = flat.numel(), flat.device
    # In the worst case every expert in use wastes a block but for one row.
    num_blocks = min(num_rows, num_experts) + num_rows // block
    counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    blocks = (counts + block - 1) // block
    last = blocks.cumsum(0)
    order = flat.argsort(stable=True)
    sorted_experts = flat[order]
    first_row = counts.cumsum(0) - counts
    within = torch.arange(num_rows, device=device) - first_row[sorted_experts]
    place = (last - blocks)[sorted_experts] * block + within
    rows = torch.full((num_blocks * block,), num_rows, dtype=torch.int64, device=device)
    rows[place] = order
    number = torch.arange(num_blocks, device=device)
    experts = torch.searchsorted(last, number, right=True)
    experts = torch.where(number < last[-1], experts, -1).to(torch.int32)
    return rows, experts


def expert_mlp_triton(
    x: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    block_rows: int | None = None,
) -> Tensor:
    """`expert_mlp` for any number of tokens.

    Args:
        x: float [T, D], contiguous.
        w_gate_up: same dtype [E, 2I, D], contiguous.
        w_down: same dtype [E, D, I], contiguous.
        topk_ids: int64 [T, k].
        topk_weights: float32 [T, k].
        block_rows: rows per program, a power of two from 16; by the expected rows per expert if
            None.

    Returns:
        float [T, D], dtype of x.

    Raises:
        ValueError: a tensor is not contiguous or of another dtype.

    Numerics: products and the sum over choices accumulate in float32; activations between the two
    products are rounded to x's dtype. Sync: none, graph-safe.
    """
    num_tokens, topk = topk_ids.shape
    num_experts, hidden, width = w_down.shape
    if not all(t.is_contiguous() and t.dtype == x.dtype for t in (x, w_gate_up, w_down)):
        raise ValueError("x, w_gate_up and w_down must be contiguous and of one dtype.")
    if not num_tokens:
        return torch.empty_like(x)
    num_rows = num_tokens * topk
    if block_rows is None:
        per_expert = max(num_rows // num_experts, 1)
        block_rows = min(max(1 << (per_expert - 1).bit_length(), 16), 64)
    rows, experts = align_rows(topk_ids, num_experts, block_rows)
    act = torch.empty(num_rows, width, dtype=x.dtype, device=x.device)
    parts = torch.empty(num_tokens, topk, hidden, dtype=torch.float32, device=x.device)
    grid = experts.numel()
    block_n, block_k = 64, 64
    _gate_up_kernel[(grid, triton.cdiv(width, block_n))](
        x, w_gate_up, act, rows, experts, num_rows, topk, WIDTH=width, HIDDEN=hidden,
        BLOCK_M=block_rows, BLOCK_N=block_n, BLOCK_K=block_k,
    )  # fmt: skip
    _down_kernel[(grid, triton.cdiv(hidden, block_n))](
        act, w_down, parts, rows, experts, topk_weights, num_rows, WIDTH=width, HIDDEN=hidden,
        BLOCK_M=block_rows, BLOCK_N=block_n, BLOCK_K=block_k,
    )  # fmt: skip
    return parts.sum(1).to(x.dtype)
