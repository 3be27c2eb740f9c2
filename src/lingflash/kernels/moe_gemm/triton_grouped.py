"""Grouped expert products for many tokens: BF16, FP8 with FP8 rows, and INT4.

    sort       (token, choice) rows by expert, in blocks of one expert (triton_sort)
    gate_up    SiLU(x W_gate) * (x W_up) of every row, rounded to FP8 in place for FP8 weights
    down       back to the hidden width
    combine    the sum over a token's choices, in their order, and the shared expert's output

Programs of one expert follow each other, so that its weights come from memory once. Weights in BF16
and FP8 come by the copy engine; products with INT4 are in triton_grouped_int4.
"""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lingflash.kernels.moe_gemm.formats import BF16, FP8, INT4, ExpertFormat, StoredExperts
from lingflash.kernels.moe_gemm.triton_grouped_int4 import down_int4, gate_up_int4
from lingflash.kernels.moe_gemm.triton_sort import SortedRows, sort_rows
from lingflash.kernels.quant_gemm import Fp8Rows, quantize_rows_fp8
from lingflash.kernels.quant_gemm.triton_fp8 import Tile
from lingflash.kernels.triton_dot import dot, to_fp8

__all__ = ["GroupedTile", "combine", "down", "expert_mlp_grouped", "gate_up"]

# Tokens of one pass. Its workspace per token and choice: D bfloat16, I of the activations and 8
# bytes of indices, in all 1.3 GiB for Ling-2.6-flash.
PASS_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class GroupedTile(Tile):
    """Tile of a grouped product.

    Args:
        half_last: whether an expert's last block takes half the rows if they suffice; with 128 rows
            and more, for INT4 with 64.
        permuted: gate_up: copy x into the order of the experts first, so that the copy engine can
            fetch it, instead of gathering rows in the kernel; R x D more workspace. Not for INT4.
    """

    half_last: bool = True
    permuted: bool = False


# Sizes that differ from step to step: a kernel is compiled once for all of them.
_VARYING = ["x_scale_stride", "num_rows", "num_blocks"]
_BF16 = tl.constexpr(BF16)
_FP8 = tl.constexpr(FP8)


@triton.jit
def _gate_up_block(
    x, x_scale_ptr, w, w_scale_ptr, act_ptr, act_scale_ptr, token_ptr,
    x_scale_stride, num_rows, expert, begin, end,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PERMUTED: tl.constexpr,
):  # fmt: skip
    column_at = tl.program_id(0) * BLOCK_N
    place = begin + tl.arange(0, BLOCK_M)
    column = column_at + tl.arange(0, BLOCK_N)
    live = place < end
    if PERMUTED:
        # Rows past the expert's are another's, or zeros; their results are not stored.
        x_row = tl.where(live, place, begin)
    else:
        # Places past the end read token 0.
        x_row = tl.load(token_ptr + place, mask=live, other=0)
        k = tl.arange(0, BLOCK_K)
        # Offsets and not pointers: registers are short in the loop.
        x_at = x_row[:, None] * HIDDEN + k[None, :]
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    gate_row = expert * (2 * WIDTH) + column_at
    up_row = gate_row + WIDTH
    if FORMAT == _FP8:
        scale_row: tl.constexpr = HIDDEN // 128
        gate_scale_at = w_scale_ptr + gate_row // 128 * scale_row
        up_scale_at = w_scale_ptr + up_row // 128 * scale_row
    for step in range(tl.cdiv(HIDDEN, BLOCK_K)):
        start = step * BLOCK_K
        if PERMUTED:
            rows = x.load([begin, start])
        elif HIDDEN % BLOCK_K == 0:
            rows = tl.load(x + start + x_at)
        else:
            rows = tl.load(x + start + x_at, mask=(start + k < HIDDEN)[None, :], other=0.0)
        w_gate = w.load([gate_row, start])
        w_up = w.load([up_row, start])
        if FORMAT == _BF16:
            gate = dot(rows, w_gate.T, gate)
            up = dot(rows, w_up.T, up)
        else:
            scale = tl.load(x_scale_ptr + step * x_scale_stride + x_row)
            gate_scale = scale
            up_scale = scale
            if GROUP:
                gate_scale = scale * tl.load(gate_scale_at + step).to(tl.float32)
                up_scale = scale * tl.load(up_scale_at + step).to(tl.float32)
            zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            gate += dot(rows, w_gate.T, zeros) * gate_scale[:, None]
            up += dot(rows, w_up.T, zeros) * up_scale[:, None]
    kept = column < WIDTH
    if (FORMAT == _FP8) and (GROUP == 0):
        at = w_scale_ptr + expert * (2 * WIDTH) + column
        gate *= tl.load(at, mask=kept, other=0.0).to(tl.float32)[None, :]
        up *= tl.load(at + WIDTH, mask=kept, other=0.0).to(tl.float32)[None, :]
    act = gate * tl.sigmoid(gate) * up
    act_at = act_ptr + place.to(tl.int64)[:, None] * WIDTH + column[None, :]
    stored = live[:, None] & kept[None, :]
    if FORMAT == _FP8:
        # Of all that one scale covers; BLOCK_N is the width of a group.
        largest = tl.max(tl.abs(act), 1)
        scale = tl.where(largest > 0, largest / 448.0, 1.0)
        act = tl.minimum(tl.maximum(act / scale[:, None], -448.0), 448.0)
        tl.store(act_at, to_fp8(act), mask=stored)
        tl.store(act_scale_ptr + column_at // 128 * num_rows + place, scale, mask=live)
    else:
        tl.store(act_at, act.to(tl.bfloat16), mask=stored)


@triton.jit(do_not_specialize=_VARYING)
def _gate_up_kernel(
    x, last_x, x_scale_ptr, w, w_scale_ptr, act_ptr, act_scale_ptr, token_ptr, block_ptr,
    x_scale_stride, num_rows, num_blocks,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LAST_M: tl.constexpr,
    PERMUTED: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    expert = tl.load(block_ptr + block)
    if expert >= 0:
        begin = tl.load(block_ptr + num_blocks + block)
        end = tl.load(block_ptr + 2 * num_blocks + block)
        if end - begin > LAST_M:
            _gate_up_block(
                x, x_scale_ptr, w, w_scale_ptr, act_ptr, act_scale_ptr, token_ptr,
                x_scale_stride, num_rows, expert, begin, end,
                WIDTH, HIDDEN, FORMAT, GROUP, BLOCK_M, BLOCK_N, BLOCK_K, PERMUTED,
            )  # fmt: skip
        elif LAST_M > 0:
            _gate_up_block(
                last_x, x_scale_ptr, w, w_scale_ptr, act_ptr, act_scale_ptr, token_ptr,
                x_scale_stride, num_rows, expert, begin, end,
                WIDTH, HIDDEN, FORMAT, GROUP, LAST_M, BLOCK_N, BLOCK_K, PERMUTED,
            )  # fmt: skip


@triton.jit
def _down_block(
    act_desc, act_scale_ptr, w, w_scale_ptr, out_ptr, num_rows, expert, begin, end,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    column_at = tl.program_id(0) * BLOCK_N
    place = begin + tl.arange(0, BLOCK_M)
    column = column_at + tl.arange(0, BLOCK_N)
    live = place < end
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    w_row = expert * HIDDEN + column_at
    if FORMAT == _FP8:
        act_scale_at = act_scale_ptr + place
        scale_row: tl.constexpr = WIDTH // 128
        w_scale_at = w_scale_ptr + w_row // 128 * scale_row
    for step in range(tl.cdiv(WIDTH, BLOCK_K)):
        start = step * BLOCK_K
        # Rows past the expert's are another's, or zeros; their results are not stored.
        act = act_desc.load([begin, start])
        piece = w.load([w_row, start])
        if FORMAT == _BF16:
            total = dot(act, piece.T, total)
        else:
            scale = tl.load(act_scale_at, mask=live, other=0.0)
            act_scale_at += num_rows
            if GROUP:
                scale = scale * tl.load(w_scale_at + step).to(tl.float32)
            zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            total += dot(act, piece.T, zeros) * scale[:, None]
    kept = column < HIDDEN
    if (FORMAT == _FP8) and (GROUP == 0):
        at = w_scale_ptr + expert * HIDDEN + column
        total *= tl.load(at, mask=kept, other=0.0).to(tl.float32)[None, :]
    at = out_ptr + place.to(tl.int64)[:, None] * HIDDEN + column[None, :]
    tl.store(at, total.to(tl.bfloat16), mask=live[:, None] & kept[None, :])


@triton.jit(do_not_specialize=_VARYING[1:])
def _down_kernel(
    act_desc, last_desc, act_scale_ptr, w, w_scale_ptr, out_ptr, block_ptr, num_rows, num_blocks,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LAST_M: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    expert = tl.load(block_ptr + block)
    if expert >= 0:
        begin = tl.load(block_ptr + num_blocks + block)
        end = tl.load(block_ptr + 2 * num_blocks + block)
        if end - begin > LAST_M:
            _down_block(
                act_desc, act_scale_ptr, w, w_scale_ptr, out_ptr, num_rows, expert, begin, end,
                WIDTH, HIDDEN, FORMAT, GROUP, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        elif LAST_M > 0:
            _down_block(
                last_desc, act_scale_ptr, w, w_scale_ptr, out_ptr, num_rows, expert, begin, end,
                WIDTH, HIDDEN, FORMAT, GROUP, LAST_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip


@triton.jit
def _combine_kernel(
    parts_ptr, place_ptr, weight_ptr, shared_ptr, out_ptr,
    HIDDEN: tl.constexpr, TOPK: tl.constexpr, HAS_SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = column < HIDDEN
    total = tl.zeros([BLOCK], tl.float32)
    for choice in tl.static_range(TOPK):
        place = tl.load(place_ptr + token * TOPK + choice).to(tl.int64)
        weight = tl.load(weight_ptr + token * TOPK + choice)
        part = tl.load(parts_ptr + place * HIDDEN + column, mask=kept, other=0.0)
        total += part.to(tl.float32) * weight
    at = token.to(tl.int64) * HIDDEN + column
    if HAS_SHARED:
        total += tl.load(shared_ptr + at, mask=kept, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(tl.bfloat16), mask=kept)


def _operand(weight: Tensor | StoredExperts, tile: GroupedTile) -> tuple[TensorDescriptor, Tensor]:
    """What the kernels read a weight through, and its scales (any tensor if there are none)."""
    values = weight if isinstance(weight, Tensor) else weight.values
    scale = values if isinstance(weight, Tensor) else weight.scale.contiguous()
    return TensorDescriptor.from_tensor(values.flatten(0, 1), [tile.columns, tile.depth]), scale


def _last_rows(rows: SortedRows, kind: ExpertFormat, tile: GroupedTile) -> int:
    """Rows of the smaller program that the last block of an expert takes if it suffices; or 0."""
    least = 64 if kind.code == INT4 else 128
    return rows.block_rows // 2 if tile.half_last and rows.block_rows >= least else 0


def gate_up(
    x: Tensor | Fp8Rows, weight: Tensor | StoredExperts, rows: SortedRows, kind: ExpertFormat,
    tile: GroupedTile,
) -> Tensor | Fp8Rows:  # fmt: skip
    """SiLU(x W_gate) * (x W_up) of every (token, choice).

    Args:
        x: bfloat16 [T, D], or FP8 rows for FP8 weights; contiguous.
        weight: [E, 2I, D], bfloat16 or stored as `kind` says; contiguous.
        rows: of the tokens, in blocks of tile.rows.
        kind: the weight's format.
        tile: sizes of a program; 128 columns for FP8.

    Returns:
        [R, I] by place, bfloat16, for INT4 weights in fragment_order; or FP8 rows for FP8 weights.

    Raises:
        ValueError: x is too large for offsets of 32 bits, or the tile does not suit the format.

    Numerics: float32 sums, rounded once. Sync: none, graph-safe.
    """
    if kind.code == FP8 and tile.columns != 128:
        raise ValueError(f"tile has {tile.columns} columns; a scale of the result covers 128.")
    values = x.values if isinstance(x, Fp8Rows) else x
    hidden = values.shape[1]
    num_rows = rows.tokens.numel()
    if values.numel() >= 2**31:
        raise ValueError(f"x is {tuple(values.shape)}; fewer than 2^31 numbers are needed.")
    last = _last_rows(rows, kind, tile)
    if kind.code == INT4:
        assert not isinstance(weight, Tensor)
        return gate_up_int4(values, weight.values, weight.scale, rows, kind.group, tile, last)
    width = (weight if isinstance(weight, Tensor) else weight.values).shape[1] // 2
    act = torch.empty(num_rows, width, dtype=values.dtype, device=values.device)
    x_scale = act_scale = values
    if isinstance(x, Fp8Rows):
        x_scale = x.scale
        act_scale = torch.empty(width // 128, num_rows, dtype=torch.float32, device=values.device)
    w, w_scale = _operand(weight, tile)
    num_blocks = rows.blocks.shape[1]
    source = last_source = values
    if tile.permuted:
        sorted_rows = values.view(torch.int32).index_select(0, rows.tokens).view(values.dtype)
        source = TensorDescriptor.from_tensor(sorted_rows, [rows.block_rows, tile.depth])
        last_source = TensorDescriptor.from_tensor(
            sorted_rows, [last or rows.block_rows, tile.depth]
        )
        if isinstance(x, Fp8Rows):
            x_scale = x_scale.index_select(1, rows.tokens)
    _gate_up_kernel[(triton.cdiv(width, tile.columns), num_blocks)](
        source, last_source, x_scale, w, w_scale, act, act_scale, rows.tokens, rows.blocks,
        x_scale.stride(0), num_rows, num_blocks,
        WIDTH=width, HIDDEN=hidden, FORMAT=kind.code, GROUP=kind.group,
        BLOCK_M=rows.block_rows, BLOCK_N=tile.columns, BLOCK_K=tile.depth, LAST_M=last,
        PERMUTED=tile.permuted, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return Fp8Rows(act, act_scale) if isinstance(x, Fp8Rows) else act


def down(
    act: Tensor | Fp8Rows, weight: Tensor | StoredExperts, rows: SortedRows, kind: ExpertFormat,
    tile: GroupedTile,
) -> Tensor:  # fmt: skip
    """The down product of every (token, choice): gate_up's result to bfloat16 [R, D] by place.

    Args:
        act: as gate_up gives it.
        weight: [E, D, I], bfloat16 or stored as `kind` says; contiguous.
        rows, kind, tile: as for gate_up.

    Raises:
        ValueError: the tile does not suit the format.

    Numerics: float32 sums, rounded once. Sync: none, graph-safe.
    """
    values = act.values if isinstance(act, Fp8Rows) else act
    last = _last_rows(rows, kind, tile)
    if kind.code == INT4:
        assert not isinstance(weight, Tensor)
        return down_int4(values, weight.values, weight.scale, rows, kind.group, tile, last)
    num_rows, width = values.shape
    hidden = (weight if isinstance(weight, Tensor) else weight.values).shape[1]
    out = torch.empty(num_rows, hidden, dtype=torch.bfloat16, device=values.device)
    w, w_scale = _operand(weight, tile)
    num_blocks = rows.blocks.shape[1]
    _down_kernel[(triton.cdiv(hidden, tile.columns), num_blocks)](
        TensorDescriptor.from_tensor(values, [rows.block_rows, tile.depth]),
        TensorDescriptor.from_tensor(values, [last or rows.block_rows, tile.depth]),
        act.scale if isinstance(act, Fp8Rows) else values, w, w_scale, out, rows.blocks,
        num_rows, num_blocks,
        WIDTH=width, HIDDEN=hidden, FORMAT=kind.code, GROUP=kind.group,
        BLOCK_M=rows.block_rows, BLOCK_N=tile.columns, BLOCK_K=tile.depth, LAST_M=last,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def combine(
    parts: Tensor, rows: SortedRows, topk_weights: Tensor, shared: Tensor | None, out: Tensor
) -> None:
    """Write the sum over a token's choices of weight times part, plus `shared`.

    Args:
        parts: bfloat16 [R, D] by place.
        rows: places of the rows.
        topk_weights: float32 [T, k], contiguous.
        shared: bfloat16 [T, D] that is added, contiguous, or None.
        out: bfloat16 [T, D], contiguous; written.

    Numerics: float32 in the order of the choices, `shared` last, rounded once. Sync: none.
    """
    num_tokens, topk = topk_weights.shape
    hidden = parts.shape[1]
    block = min(triton.next_power_of_2(hidden), 2048)
    _combine_kernel[(num_tokens, triton.cdiv(hidden, block))](
        parts, rows.places, topk_weights, parts if shared is None else shared, out,
        HIDDEN=hidden, TOPK=topk, HAS_SHARED=shared is not None, BLOCK=block, num_warps=8,
    )  # fmt: skip


def default_tiles(kind: ExpertFormat, rows_per_expert: int) -> tuple[GroupedTile, GroupedTile]:
    """Sizes for gate_up and down, by format and by how many rows an expert is likely to have."""
    if kind.code == INT4:
        # An expert's second block converts its weights again, so blocks are larger than is likely
        # up to 64 rows; beyond, the rows that are not there cost more than that.
        rows = (16, 32, 64, 128)[sum(rows_per_expert > most for most in (12, 28, 80))]
        # With 128 rows, programs of less depth leave registers and memory for a second one.
        depth = 64 if rows == 128 else 128
        return GroupedTile(rows, 64, 4, 3, depth), GroupedTile(rows, 128, 4, 3, depth)
    few = max(16, min(64, 1 << max(rows_per_expert - 1, 0).bit_length()))
    rows = 128 if rows_per_expert > 96 else few
    warps = 8 if rows == 128 else 4
    if kind.code == FP8:
        if rows == 128:
            return GroupedTile(rows, 128, 16, 3), GroupedTile(rows, 64, 4, 3)
        # With four warps 64 rows take more registers than there are.
        return GroupedTile(rows, 128, 8 if rows == 64 else warps, 3), GroupedTile(rows, 128, 4, 4)
    return GroupedTile(rows, 128, warps, 3, 64), GroupedTile(rows, 128, warps, 3, 64)


def expert_mlp_grouped(
    x: Tensor,
    w_gate_up: Tensor | StoredExperts,
    w_down: Tensor | StoredExperts,
    topk_ids: Tensor,
    topk_weights: Tensor,
    kind: ExpertFormat,
    *,
    x_fp8: Fp8Rows | None = None,
    shared: Tensor | None = None,
    tiles: tuple[GroupedTile, GroupedTile] | None = None,
) -> Tensor:
    """`expert_mlp` for any number of tokens, at its best from some thousand on.

    Args:
        x: bfloat16 [T, D], contiguous.
        w_gate_up: bfloat16 [E, 2I, D], or stored as `kind` says.
        w_down: bfloat16 [E, D, I], or the same.
        topk_ids: int64 [T, k].
        topk_weights: float32 [T, k].
        kind: format of both weights, from `expert_format`.
        x_fp8: x in FP8 if it is there already; for FP8 weights only.
        shared: bfloat16 [T, D] that is added, or None.
        tiles: sizes for gate_up and down, with the same rows; chosen by the shapes if None.

    Returns:
        bfloat16 [T, D].

    Numerics: products and the sum over choices in float32; each choice's result is rounded to
        bfloat16 before, as are the activations between the products, or to FP8, as x, for FP8
        weights. Sync: none, graph-safe.
    """
    num_tokens = topk_ids.shape[0]
    num_experts = (w_down if isinstance(w_down, Tensor) else w_down.values).shape[0]
    out = torch.empty_like(x)
    if kind.code == FP8:
        x_fp8 = x_fp8 or quantize_rows_fp8(x)
    for lo in range(0, num_tokens, PASS_TOKENS):
        part = slice(lo, min(lo + PASS_TOKENS, num_tokens))
        ids = topk_ids[part].contiguous()
        first, second = tiles or default_tiles(kind, ids.numel() // num_experts)
        rows = sort_rows(ids, num_experts, first.rows)
        source = x[part] if x_fp8 is None else x_fp8.cut(part.start, part.stop)
        act = gate_up(source, w_gate_up, rows, kind, first)
        parts = down(act, w_down, rows, kind, second)
        added = None if shared is None else shared[part]
        combine(parts, rows, topk_weights[part].contiguous(), added, out[part])
    return out
