"""Expert products for few tokens on the GPU: each expert that was chosen is read once.

plan_rows   which rows of which expert each program takes; one program makes it for all others
gate_up     SiLU(x W_gate) * (x W_up) of every (token, choice)
down        back to the hidden width, times the choice's weight, one part per choice

One token has kernels of its own (triton_one_token.py), in which `down` adds all parts to the
residual stream; more have others (triton_few_tokens.py).
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from lingflash.kernels.moe_gemm.triton_few_tokens import down_kernel, gate_up_kernel, plan_kernel
from lingflash.kernels.moe_gemm.triton_nibbles import nibble_order, pair_order
from lingflash.kernels.moe_gemm.triton_one_token import down_one_kernel, gate_up_one_kernel
from lingflash.kernels.triton_launch import launch_options

__all__ = [
    "DecodeExperts",
    "ExpertTiles",
    "OneTokenTiles",
    "RowPlan",
    "all_rows",
    "down_decode",
    "down_one_token",
    "gate_up_decode",
    "nibble_order",
    "pair_order",
    "plan_rows",
]

# Rows per program: what the tensor cores want at least.
BLOCK_ROWS = 16


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Blocks of rows that belong to one expert each.

    Args:
        rows: int32 [B * BLOCK_ROWS], place in topk_ids.flatten(); T k where a block is not full.
        experts: int32 [B].
        num_used: int32 [1], blocks that are needed; the rest hold nothing.
    """

    rows: Tensor
    experts: Tensor
    num_used: Tensor


def plan_rows(topk_ids: Tensor, num_experts: int) -> RowPlan:
    """Sort (token, choice) rows by expert into blocks of BLOCK_ROWS, in one launch.

    Args:
        topk_ids: int32 [T, k], T k at most 4,096; a token's choices differ.
        num_experts: E.

    Sync: none, graph-safe.

    Raises:
        ValueError: too many rows, or ids of another type.
    """
    num_rows, device = topk_ids.numel(), topk_ids.device
    if num_rows > 4096 or topk_ids.dtype != torch.int32 or not topk_ids.is_contiguous():
        raise ValueError(f"topk_ids are {topk_ids.dtype} {tuple(topk_ids.shape)}; int32, <= 4096.")
    num_blocks = min(num_rows, num_experts) + num_rows // BLOCK_ROWS
    rows = torch.empty(num_blocks * BLOCK_ROWS, dtype=torch.int32, device=device)
    experts = torch.empty(num_blocks, dtype=torch.int32, device=device)
    num_used = torch.empty(1, dtype=torch.int32, device=device)
    block_e = triton.next_power_of_2(num_experts + 1)
    plan_kernel[(1,)](
        topk_ids, experts, rows, num_used, num_rows, EXPERTS=num_experts,
        MOST_BLOCKS=triton.cdiv(topk_ids.shape[0], BLOCK_ROWS), BLOCK_M=BLOCK_ROWS,
        BLOCK_J=max(triton.next_power_of_2(num_rows), 16), BLOCK_E=block_e,
        num_warps=8, **launch_options(topk_ids),
    )  # fmt: skip
    return RowPlan(rows, experts, num_used)


@cache
def all_rows(num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor, RowPlan | None]:
    """What routes every token to the only expert with weight 1: topk_ids, topk_weights, plan."""
    ids = torch.zeros(num_tokens, 1, dtype=torch.int32, device=device)
    weights = torch.ones(num_tokens, 1, dtype=torch.float32, device=device)
    if num_tokens == 1:
        return ids, weights, None
    blocks = triton.cdiv(num_tokens, BLOCK_ROWS)
    rows = torch.arange(blocks * BLOCK_ROWS, dtype=torch.int32, device=device)
    used = torch.full((1,), blocks, dtype=torch.int32, device=device)
    return ids, weights, RowPlan(rows.clamp(max=num_tokens), ids[:blocks, 0].clone(), used)


@dataclass(frozen=True, slots=True)
class DecodeExperts:
    """The matrices of E experts as the decode kernels read them.

    Args:
        values: bfloat16 or float8_e4m3fn [E, R, K], or int32 [E, R, K/8]; contiguous.
        scale: None for bfloat16; float32 [E, R/128, K/128] or [E, R, 1] for FP8, blocks or rows
            (R/128 rows of scales for each matrix that is stacked); any float dtype
            [E, R, K/group] for INT4.
        group: columns that share a scale of INT4, 32 or 128; else 0.
    """

    values: Tensor
    scale: Tensor | None
    group: int = 0

    @property
    def is_int4(self) -> bool:
        """Whether the values are words of eight nibbles."""
        return self.values.dtype == torch.int32

    @property
    def scale_kind(self) -> str:
        """How FP8 values are scaled: "none", "block" or "channel"."""
        if self.scale is None or self.is_int4:
            return "none"
        rows, columns = self.values.shape[1:]
        grid = (-(-rows // 128), -(-columns // 128))
        return "block" if self.scale.shape[1:] == grid else "channel"

    def scales(self) -> Tensor:
        """The scales; the values stand in where there are none."""
        return self.values if self.scale is None else self.scale


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """How a product of several tokens is cut: rows of weights and columns per step."""

    block_n: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class OneTokenTiles:
    """How a product of one token is cut.

    Args:
        block_n: rows of weights of a program.
        warps: of a program.
        ahead: choices whose weights `down` asks for at once.
    """

    block_n: int
    warps: int
    ahead: int = 1


def _gate_up_tiles(w: DecodeExperts) -> ExpertTiles:
    return ExpertTiles(64, 256, 4, 3) if w.is_int4 else ExpertTiles(64, 128, 4, 4)


def _one_gate_up_tiles(w: DecodeExperts) -> OneTokenTiles:
    return OneTokenTiles(8, 4) if w.is_int4 else OneTokenTiles(4, 4)


def _one_down_tiles(w: DecodeExperts) -> OneTokenTiles:
    if w.is_int4:
        return OneTokenTiles(16, 8, 4)
    return OneTokenTiles(8, 4, 4 if w.values.dtype == torch.float8_e4m3fn else 2)


_DOWN_TILES = ExpertTiles(128, 128, 4, 3)


def _one_token_options(
    w: DecodeExperts, shared: DecodeExperts | None, tiles: OneTokenTiles, width: int
) -> dict[str, Any]:
    """What one token's kernels are compiled for; width is the weights' number of columns.

    Raises:
        ValueError: a shared expert in INT4.
    """
    if shared is not None and shared.is_int4:
        raise ValueError("a shared expert in INT4 is not supported.")
    return {
        "INT4": w.is_int4, "SCALES": "group" if w.is_int4 else w.scale_kind, "GROUP": w.group,
        "SHARED": 0 if shared is None else 2 if w.is_int4 else 1,
        "SHARED_SCALES": "none" if shared is None else shared.scale_kind,
        "BLOCK_N": tiles.block_n, "num_warps": tiles.warps,
        "CHUNKS": triton.next_power_of_2(triton.cdiv(width, 128)),
    }  # fmt: skip


def _options(w: DecodeExperts, shared: DecodeExperts | None, tiles: ExpertTiles) -> dict[str, Any]:
    """What both products' kernels are compiled for.

    Raises:
        ValueError: a shared expert in INT4.
    """
    if shared is not None and shared.is_int4:
        raise ValueError("a shared expert in INT4 is not supported.")
    return {
        "INT4": w.is_int4, "SCALES": w.scale_kind, "GROUP": w.group,
        "SHARED": shared is not None,
        "SHARED_SCALES": "none" if shared is None else shared.scale_kind,
        "BLOCK_N": tiles.block_n, "num_warps": tiles.warps,
    }  # fmt: skip


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
    tiles: ExpertTiles | None = None,
    one_token: OneTokenTiles | None = None,
) -> Tensor:
    """SiLU(x W_gate,e) * (x W_up,e) of every (token, choice), and of a shared expert.

    Args:
        x: float16 or bfloat16 [T, K], contiguous, normed; for INT4 weights in nibble_order, one
            token's in pair_order and float16.
        w: [E, 2I, K], gate above up.
        topk_ids: int32 [T, k].
        plan: of topk_ids; None for one token.
        act: float [T, k, I], or [T, k + 1, I] with a shared expert; written, the routed experts'
            in nibble_order if `nibbles`. One token's: float32, filled with what down_one_token
            reads, which no other order describes.
        nibbles: whether the routed experts' next product is with INT4 weights.
        plain: x in its own order, for the shared expert; x by default.
        shared: [1, 2I, K], bfloat16 or FP8: an expert that every token takes.
        tiles, one_token: how to cut several tokens' products and one's; by the shape if None.

    Numerics: accumulates in float32; FP8 and INT4 weights are exact in float16 and x is rounded to
        it. One row's INT4 products are summed in float16 over four values, then in float32
        (word_sums). Sync: none, graph-safe.

    Raises:
        ValueError: a shape, dtype or tile that one token's kernel does not take.
    """
    num_tokens, topk = topk_ids.shape
    choices, width = act.shape[1:]
    other = w if shared is None else shared
    plain = x if plain is None else plain
    scale = w.scales()
    launch = launch_options(x)
    if plan is None:
        one = one_token or _one_gate_up_tiles(w)
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
    t = tiles or _gate_up_tiles(w)
    options = _options(w, shared, t) | launch
    options |= {"NIBBLES": nibbles, "WIDTH": width, "HIDDEN": x.shape[1]}
    columns = triton.cdiv(width, t.block_n)
    blocks = plan.experts.numel()
    shared_blocks = 0 if shared is None else triton.cdiv(num_tokens, BLOCK_ROWS)
    gate_up_kernel[(columns, blocks + shared_blocks)](
        x, w.values, scale, plan.rows, plan.experts, plan.num_used, act,
        plain, other.values, other.scales(), num_tokens, topk, choices, blocks,
        x.stride(0), w.values.stride(0), scale.stride(0), scale.stride(1),
        other.scales().stride(1), BLOCK_M=BLOCK_ROWS, BLOCK_K=t.block_k, num_stages=t.stages,
        **options,
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
    t = tiles or _one_down_tiles(w)
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
    tiles: ExpertTiles | None = None,
) -> Tensor:
    """act W_down,e times the choice's weight, one part per choice; a shared expert's last.

    Args:
        act: float [T, k, I] or [T, k + 1, I], as gate_up_decode leaves it with this plan.
        w: [E, D, I].
        topk_ids: int32 [T, k].
        topk_weights: float32 [T, k].
        plan: of topk_ids.
        out: float32 [T, k, D] or [T, k + 1, D], written.
        shared: [1, D, I], bfloat16 or FP8.
        tiles: how to cut; by the shape if None.

    Numerics: as gate_up_decode; activations for FP8 weights are scaled to float16's range, those
        for INT4 weights rounded to bfloat16. Sync: none, graph-safe.
    """
    num_tokens, topk = topk_ids.shape
    (choices, width), hidden = act.shape[1:], out.shape[-1]
    t = tiles or _DOWN_TILES
    other = w if shared is None else shared
    scale = w.scales()
    options = _options(w, shared, t) | launch_options(act) | {"WIDTH": width, "HIDDEN": hidden}
    columns = triton.cdiv(hidden, t.block_n)
    blocks = plan.experts.numel()
    shared_blocks = 0 if shared is None else triton.cdiv(num_tokens, BLOCK_ROWS)
    down_kernel[(columns, blocks + shared_blocks)](
        act, w.values, scale, plan.rows, plan.experts, plan.num_used, topk_weights, out,
        other.values, other.scales(), num_tokens, topk, choices, blocks,
        w.values.stride(0), scale.stride(0), scale.stride(1), other.scales().stride(1),
        BLOCK_M=BLOCK_ROWS, BLOCK_K=t.block_k, num_stages=t.stages, **options,
    )  # fmt: skip
    return out
