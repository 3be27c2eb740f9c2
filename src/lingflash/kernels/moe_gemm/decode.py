"""Expert products for few tokens on the GPU: each expert that was chosen is read once.

plan_rows   which rows of which expert each program takes; one program makes it for all others
gate_up     SiLU(x W_gate) * (x W_up) of every (token, choice)
down        back to the hidden width, times the choice's weight, one part per choice

One token has kernels of its own (triton_one_token.py), in which `down` adds all parts to the
residual stream; more have others, BF16 and FP8 in triton_few_tokens.py, INT4 in
triton_few_tokens_int4.py.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lingflash.kernels.moe_gemm.decode_dense import down_dense, gate_up_dense
from lingflash.kernels.moe_gemm.decode_tiles import (
    DecodeExperts,
    ExpertTiles,
    Int4Tiles,
    OneTokenTiles,
    block_rows,
    down_tiles,
    gate_up_tiles,
    one_down_tiles,
    one_gate_up_tiles,
)
from lingflash.kernels.moe_gemm.triton_few_tokens import down_kernel, gate_up_kernel, plan_kernel
from lingflash.kernels.moe_gemm.triton_few_tokens_int4 import down_int4_kernel, gate_up_int4_kernel
from lingflash.kernels.moe_gemm.triton_nibbles import lane_order, pair_order
from lingflash.kernels.moe_gemm.triton_one_token import down_one_kernel, gate_up_one_kernel
from lingflash.kernels.triton_launch import launch_options

__all__ = [
    "DecodeExperts",
    "ExpertTiles",
    "Int4Tiles",
    "OneTokenTiles",
    "RowPlan",
    "block_rows",
    "down_decode",
    "down_dense",
    "down_one_token",
    "gate_up_decode",
    "gate_up_dense",
    "is_apart",
    "lane_order",
    "pair_order",
    "plan_rows",
]

# Rows per program: what the tensor cores want at least, if x is their first operand.
BLOCK_ROWS = 16


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Blocks of rows that belong to one expert each.

    Args:
        rows: int32 [B * block_rows], place in topk_ids.flatten(); T k where a block is not full.
        experts: int32 [B].
        num_used: int32 [1], blocks that are needed; the rest hold nothing.
        block_rows: 16, or 8 for INT4 weights.
    """

    rows: Tensor
    experts: Tensor
    num_used: Tensor
    block_rows: int = BLOCK_ROWS


def plan_rows(topk_ids: Tensor, num_experts: int, block_rows: int = BLOCK_ROWS) -> RowPlan:
    """Sort (token, choice) rows by expert into blocks, in one launch.

    Args:
        topk_ids: int32 [T, k], T k at most 4,096; a token's choices differ.
        num_experts: E.
        block_rows: 16, or 8 for INT4 weights: better as long as few experts have more.

    Sync: none, graph-safe.

    Raises:
        ValueError: too many rows, or ids of another type.
    """
    num_rows, device = topk_ids.numel(), topk_ids.device
    if num_rows > 4096 or topk_ids.dtype != torch.int32 or not topk_ids.is_contiguous():
        raise ValueError(f"topk_ids are {topk_ids.dtype} {tuple(topk_ids.shape)}; int32, <= 4096.")
    num_blocks = min(num_rows, num_experts) + num_rows // block_rows
    rows = torch.empty(num_blocks * block_rows, dtype=torch.int32, device=device)
    experts = torch.empty(num_blocks, dtype=torch.int32, device=device)
    num_used = torch.empty(1, dtype=torch.int32, device=device)
    block_e = triton.next_power_of_2(num_experts + 1)
    plan_kernel[(1,)](
        topk_ids, experts, rows, num_used, num_rows, EXPERTS=num_experts,
        MOST_BLOCKS=triton.cdiv(topk_ids.shape[0], block_rows), BLOCK_M=block_rows,
        BLOCK_J=max(triton.next_power_of_2(num_rows), 16), BLOCK_E=block_e,
        num_warps=8, **launch_options(topk_ids),
    )  # fmt: skip
    return RowPlan(rows, experts, num_used, block_rows)


def _check_shared(shared: DecodeExperts | None) -> None:
    if shared is not None and shared.is_int4:
        raise ValueError("a shared expert in INT4 is not supported.")


def _one_token_options(
    w: DecodeExperts, shared: DecodeExperts | None, tiles: OneTokenTiles, width: int
) -> dict[str, Any]:
    """What one token's kernels are compiled for; width is the weights' number of columns.

    Raises:
        ValueError: a shared expert in INT4.
    """
    _check_shared(shared)
    return {
        "INT4": w.is_int4, "SCALES": "group" if w.is_int4 else w.scale_kind, "GROUP": w.group,
        "SHARED": 0 if shared is None else 2 if w.is_int4 else 1,
        "SHARED_SCALES": "none" if shared is None else shared.scale_kind,
        "BLOCK_N": tiles.block_n, "num_warps": tiles.warps,
        "CHUNKS": triton.next_power_of_2(triton.cdiv(width, 128)),
    }  # fmt: skip


def _options(
    w: DecodeExperts, plan: RowPlan, tiles: ExpertTiles | Int4Tiles, rows: int
) -> dict[str, Any]:
    """What both products' kernels are compiled for.

    Args:
        w: the experts.
        plan: of the rows of x.
        tiles: how weights are cut.
        rows: of weights of one product, which programs share.

    Raises:
        ValueError: a tile or shape that the kernels do not take.
    """
    if isinstance(tiles, ExpertTiles):
        if w.is_int4:
            raise ValueError(f"INT4 weights are cut by Int4Tiles, not {tiles}.")
        if plan.block_rows != BLOCK_ROWS:
            raise ValueError(f"blocks of {plan.block_rows} rows; only INT4 takes less than 16.")
        return {
            "SCALES": w.scale_kind, "BLOCK_M": BLOCK_ROWS, "BLOCK_N": tiles.block_n,
            "BLOCK_K": tiles.block_k, "num_warps": tiles.warps, "num_stages": tiles.stages,
        }  # fmt: skip
    width = w.values.shape[2] * 8
    if not w.is_int4 or tiles.rows % 16 or rows % tiles.rows or width % 128:
        raise ValueError(
            f"{w.values.dtype} weights of {rows} rows and {width} columns in {tiles}; they must be "
            "INT4, rows of a tile a multiple of 16 that divides theirs, columns one of 128."
        )
    return {
        "GROUP": w.group, "BLOCK_M": plan.block_rows, "ROWS": tiles.rows, "AHEAD": tiles.ahead,
        "UNROLL": tiles.unroll if width % (128 * tiles.unroll) == 0 else 1, "CACHE": tiles.cache,
        "num_warps": 1, "num_stages": 1,
    }  # fmt: skip


def _alone(options: dict[str, Any]) -> dict[str, Any]:
    """Launch options of a kernel that starts when the one before it has ended.

    A multiprocessor divides 256 KiB between L1 and shared memory, and cannot divide them anew
    while a program is on it. INT4's many small programs take 1 KiB of shared memory each, whatever
    they ask for: put on the device beside others, fewer of them fit.
    """
    return options | ({"launch_pdl": False} if options["PDL"] else {})


def is_apart(w: DecodeExperts, num_tokens: int) -> bool:
    """Whether a shared expert of several tokens has launches of its own (gate_up_dense, down_dense)
    instead of programs among the others': those read its weights for 16 tokens each, and INT4's
    programs are of another kind.
    """
    return w.is_int4 or num_tokens > 2 * BLOCK_ROWS


def gate_up_decode(
    x: Tensor,
    w: DecodeExperts,
    topk_ids: Tensor,
    plan: RowPlan | None,
    act: Tensor,
    *,
    nibbles: bool = False,
    plain: Tensor | None = None,
    shared: DecodeExperts | None = None,
    tiles: ExpertTiles | Int4Tiles | None = None,
    one_token: OneTokenTiles | None = None,
) -> Tensor:
    """SiLU(x W_gate,e) * (x W_up,e) of every (token, choice), and of a shared expert.

    Args:
        x: float16 or bfloat16 [T, K], contiguous, normed; for INT4 weights in lane_order, one
            token's in pair_order and float16.
        w: [E, 2I, K], gate above up.
        topk_ids: int32 [T, k].
        plan: of topk_ids; None for one token.
        act: float [T, k, I], or [T, k + 1, I] if there is a shared expert, given or not; written,
            the routed experts' in lane_order if `nibbles`. One token's: float32, filled with what
            down_one_token reads, which no other order describes.
        nibbles: whether the routed experts' next product is with INT4 weights.
        plain: x in its own order, for the shared expert; x by default.
        shared: [1, 2I, K], bfloat16 or FP8: an expert that every token takes.
        tiles, one_token: how to cut several tokens' products and one's; by the shape if None.

    Numerics: accumulates in float32; FP8 weights are exact in float16 and x is rounded to it. INT4
        weights are rounded to bfloat16 once scaled, as the model defines them, and x with them;
        one row's are exact, and summed in float16 over four values, then in float32 (word_sums).
        Sync: none, graph-safe.

    Raises:
        ValueError: a shape, dtype or tile that the kernel does not take.
    """
    num_tokens, topk = topk_ids.shape
    choices, width = act.shape[1:]
    other = w if shared is None else shared
    plain = x if plain is None else plain
    scale = w.scales()
    launch = launch_options(x)
    if plan is None:
        one = one_token or one_gate_up_tiles(w)
        if act.dtype != torch.float32 or (nibbles and (width % 8 or one.block_n % 8)):
            raise ValueError(f"one token's act is {act.dtype} {tuple(act.shape)}, tiles {one}.")
        options = _one_token_options(w, shared, one, x.shape[1])
        gate_up_one_kernel[(triton.cdiv(width, one.block_n), topk + options["SHARED"])](
            x, w.values, scale, topk_ids, act, plain, other.values, other.scales(),
            w.values.stride(0), scale.stride(0), scale.stride(1), other.scales().stride(1),
            PAIRS=nibbles, TOPK=topk, WIDTH=width, HIDDEN=x.shape[1],
            **options, **launch,
        )  # fmt: skip
        return act
    _check_shared(shared)
    t = tiles or gate_up_tiles(w)
    options = _options(w, plan, t, width) | launch
    options |= {"NIBBLES": nibbles, "WIDTH": width, "HIDDEN": x.shape[1]}
    if shared is not None and is_apart(w, num_tokens):
        gate_up_dense(plain, shared, act[:, topk])
        shared, other = None, w
    blocks = plan.experts.numel()
    weights = x, w.values, scale, plan.rows, plan.experts, plan.num_used, act
    sizes = num_tokens, topk, choices
    strides = x.stride(0), w.values.stride(0), scale.stride(0), scale.stride(1)
    if isinstance(t, Int4Tiles):
        grid = width // t.rows, blocks
        gate_up_int4_kernel[grid](*weights, *sizes, *strides, **_alone(options))
        return act
    columns = triton.cdiv(width, t.block_n)
    shared_blocks = 0 if shared is None else triton.cdiv(num_tokens, BLOCK_ROWS)
    gate_up_kernel[(columns, blocks + shared_blocks)](
        *weights, plain, other.values, other.scales(), *sizes, blocks, *strides,
        other.scales().stride(1), SHARED=shared is not None,
        SHARED_SCALES="none" if shared is None else shared.scale_kind, **options,
    )  # fmt: skip
    return act


def down_one_token(
    act: Tensor,
    w: DecodeExperts,
    topk_ids: Tensor,
    topk_weights: Tensor,
    residual: Tensor,
    *,
    add: bool = True,
    shared: DecodeExperts | None = None,
    tiles: OneTokenTiles | None = None,
) -> None:
    """residual += all choices' act W_down,e times their weights, and a shared expert's.

    Args:
        act: float32 [1, k, I] or [1, k + 1, I], as gate_up_decode leaves it; `nibbles` must have
            said whether w is INT4.
        w: [E, D, I].
        topk_ids: int32 [1, k]; complete before the launch before this one began to wait, as
            gate_up_decode sees to.
        topk_weights: float32 [1, k]; likewise.
        residual: any float dtype [1, D], contiguous; added to in place.
        add: False replaces what is in it.
        shared: [1, D, I], bfloat16 or FP8.
        tiles: how to cut; by the shape if None.

    Raises:
        ValueError: a shape, dtype or tile that does not fit.

    Numerics: sums in float32 (INT4: word_sums), rounded once with the residual. Activations are
        bfloat16, for INT4 float16 with a power of two of each eight. Sync: none, graph-safe.
    """
    topk, width, hidden = topk_ids.shape[1], act.shape[2], residual.shape[-1]
    if act.dtype != torch.float32 or residual.numel() != hidden:
        raise ValueError(f"act is {act.dtype}, residual {tuple(residual.shape)}; one float32 row.")
    t = tiles or one_down_tiles(w)
    other = w if shared is None else shared
    scale = w.scales()
    down_one_kernel[(triton.cdiv(hidden, t.block_n),)](
        act, w.values, scale, topk_ids, topk_weights, residual, other.values, other.scales(),
        w.values.stride(0), scale.stride(0), scale.stride(1), other.scales().stride(1),
        TOPK=topk, WIDTH=width, HIDDEN=hidden, AHEAD=t.ahead, ADD=add,
        **_one_token_options(w, shared, t, width), **launch_options(act),
    )  # fmt: skip


def down_decode(
    act: Tensor,
    w: DecodeExperts,
    topk_ids: Tensor,
    topk_weights: Tensor,
    plan: RowPlan,
    out: Tensor,
    *,
    shared: DecodeExperts | None = None,
    tiles: ExpertTiles | Int4Tiles | None = None,
) -> Tensor:
    """act W_down,e times the choice's weight, one part per choice; a shared expert's last.

    Args:
        act: float [T, k, I] or [T, k + 1, I], as gate_up_decode leaves it with this plan.
        w: [E, D, I].
        topk_ids: int32 [T, k].
        topk_weights: float32 [T, k].
        plan: of topk_ids.
        out: float32 [T, k, D] or [T, k + 1, D], written, its last part only with `shared`.
        shared: [1, D, I], bfloat16 or FP8.
        tiles: how to cut; by the shape if None.

    Numerics: as gate_up_decode; activations for FP8 weights are scaled to float16's range, those
        for INT4 weights rounded to bfloat16. Sync: none, graph-safe.
    """
    num_tokens, topk = topk_ids.shape
    (choices, width), hidden = act.shape[1:], out.shape[-1]
    _check_shared(shared)
    t = tiles or down_tiles(w)
    options = _options(w, plan, t, hidden // 2 if w.is_int4 else hidden) | launch_options(act)
    options |= {"WIDTH": width, "HIDDEN": hidden}
    if shared is not None and is_apart(w, num_tokens):
        down_dense(act[:, topk], shared, out[:, topk])
        shared = None
    other, scale, blocks = shared or w, w.scales(), plan.experts.numel()
    weights = act, w.values, scale, plan.rows, plan.experts, plan.num_used, topk_weights, out
    sizes = num_tokens, topk, choices
    strides = w.values.stride(0), scale.stride(0), scale.stride(1)
    if isinstance(t, Int4Tiles):
        rows = 2 * t.rows
        pieces = t.pieces if hidden % (rows * t.pieces) == 0 else 1
        grid = hidden // (rows * pieces), blocks
        options = _alone(options) | {"PIECES": pieces}
        down_int4_kernel[grid](*weights, *sizes, *strides, **options)
        return out
    columns = triton.cdiv(hidden, t.block_n)
    shared_blocks = 0 if shared is None else triton.cdiv(num_tokens, BLOCK_ROWS)
    down_kernel[(columns, blocks + shared_blocks)](
        *weights, other.values, other.scales(), *sizes, blocks, *strides,
        other.scales().stride(1), SHARED=shared is not None,
        SHARED_SCALES="none" if shared is None else shared.scale_kind, **options,
    )  # fmt: skip
    return out
