"""Grouped expert products for many tokens with INT4 weights; the steps are triton_grouped's.

The products are computed transposed, [weight rows, tokens]: tensor cores then take the weights as
the first operand, which may lie in registers, where words of nibbles become numbers without a way
through shared memory. A thread needs other columns of that operand than its words hold, so x and
the activations are kept in `fragment_order`, which makes up for it.
"""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from lingflash.kernels.moe_gemm.triton_nibbles import fragment_column, fragments
from lingflash.kernels.moe_gemm.triton_sort import SortedRows
from lingflash.kernels.quant_gemm.triton_fp8 import Tile
from lingflash.kernels.triton_dot import dot

__all__ = ["down_int4", "gate_up_int4", "in_fragment_order"]

_INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit(do_not_specialize=["pieces"])
def _order_kernel(x_ptr, out_ptr, pieces, BLOCK: tl.constexpr):
    piece = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    at = piece * 32 + tl.arange(0, 32)[None, :]
    x = tl.load(x_ptr + at, mask=piece < pieces)
    # [piece, word, a, b, c], see fragment_order.
    x = tl.permute(tl.reshape(x, [BLOCK, 4, 2, 2, 2]), [0, 3, 4, 1, 2])
    tl.store(out_ptr + at, tl.reshape(x, [BLOCK, 32]), mask=piece < pieces)


def in_fragment_order(x: Tensor) -> Tensor:
    """Columns of x in fragment_order: any dtype [T, K], contiguous, K a multiple of 32.

    Sync: none, graph-safe.
    """
    out = torch.empty_like(x)
    pieces = x.numel() // 32
    _order_kernel[(triton.cdiv(pieces, 128),)](x, out, pieces, BLOCK=128, num_warps=4)
    return out


@triton.jit
def _scales(at, start, ROWS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr):
    """The scale of each word of DEPTH columns: float32 [ROWS, DEPTH / 8].

    Those that are read in pairs, as int32, have noise below bfloat16's digits.
    """
    COUNT: tl.constexpr = max(DEPTH // GROUP, 1)
    if at.dtype.element_ty != tl.int32:
        scale = tl.load(at + start // GROUP + tl.arange(0, COUNT)[None, :])
        scale = scale.to(tl.float32)[:, :, None]
    elif COUNT == 1:
        # Masks choose, and not tl.where, which would keep the compiler from giving the weights the
        # operand's layout: that reaches loads through operations on nothing but what was loaded.
        odd = start // GROUP % 2
        low = tl.load(at + start // (2 * GROUP), mask=odd == 0, other=0)
        high = tl.load(at + start // (2 * GROUP), mask=odd == 1, other=0)
        scale = (low << 16 | high).to(tl.float32, bitcast=True)[:, :, None]
    else:
        pair = tl.load(at + start // (2 * GROUP) + tl.arange(0, COUNT // 2)[None, :])
        scale = tl.join(pair << 16, pair).to(tl.float32, bitcast=True)
    scale = tl.reshape(scale, [ROWS, COUNT, 1])
    scale = tl.broadcast_to(scale, [ROWS, COUNT, DEPTH // COUNT // 8])
    return tl.reshape(scale, [ROWS, DEPTH // 8])


@triton.jit
def _settled(total):
    """The same numbers. Since the loop uses them, it waits for the products that make them."""
    if _INTERPRETED:
        return total
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=f,f", [total], tl.float32, is_pure=False, pack=1
    )


@triton.jit
def _step(
    first, second, x, words_at, scale_at, start, WORDS_APART: tl.constexpr,
    SCALES_APART: tl.constexpr, GROUP: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Add DEPTH columns to two products: of ROWS rows of weights and of as many further on.

    The first product runs while the weights of the second are converted. Both must be over before
    the next step, which writes weights to the registers that they are read from: left alone, the
    compiler keeps products of one step running in the next, and results are wrong.
    """
    scale = _scales(scale_at, start, ROWS, DEPTH, GROUP)
    words = tl.load(words_at + start // 8)
    first = dot(fragments(words, scale, ROWS, DEPTH, EXACT), x, first)
    scale = _scales(scale_at + SCALES_APART, start, ROWS, DEPTH, GROUP)
    words = tl.load(words_at + WORDS_APART + start // 8)
    second = dot(fragments(words, scale, ROWS, DEPTH, EXACT), x, second)
    return first, _settled(second)


@triton.jit
def _gate_up_block(
    x_ptr, w_ptr, scale_ptr, act_ptr, token_ptr, begin, end,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr,
    EXACT: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    place = begin + tl.arange(0, TOKENS)
    live = place < end
    # Places past the end read token 0.
    token = tl.load(token_ptr + place, mask=live, other=0)
    x_at = token[:, None] * HIDDEN + tl.arange(0, DEPTH)[None, :]
    # Rows of weights in the order in which the activations are to lie.
    out = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = fragment_column(out)[:, None]
    words_at = w_ptr + row * (HIDDEN // 8) + tl.arange(0, DEPTH // 8)[None, :]
    scale_at = scale_ptr + row * SCALES
    gate = tl.zeros([ROWS, TOKENS], tl.float32)
    up = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, HIDDEN, DEPTH):
        x = tl.load(x_ptr + start + x_at).T
        gate, up = _step(
            gate, up, x, words_at, scale_at, start, WIDTH * (HIDDEN // 8), WIDTH * SCALES,
            GROUP, EXACT, ROWS, DEPTH,
        )  # fmt: skip
    act = (gate * tl.sigmoid(gate) * up).to(tl.bfloat16)
    at = act_ptr + place.to(tl.int64)[:, None] * WIDTH + out[None, :]
    tl.store(at, act.T, mask=live[:, None])


@triton.jit(do_not_specialize=["num_blocks"])
def _gate_up_kernel(
    x_ptr, w_ptr, scale_ptr, act_ptr, token_ptr, block_ptr, num_blocks,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr,
    EXACT: tl.constexpr, TOKENS: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    expert = tl.load(block_ptr + block).to(tl.int64)
    if expert >= 0:
        begin = tl.load(block_ptr + num_blocks + block)
        end = tl.load(block_ptr + 2 * num_blocks + block)
        w_ptr += expert * (2 * WIDTH * (HIDDEN // 8))
        scale_ptr += expert * (2 * WIDTH * SCALES)
        if end - begin > LAST:
            _gate_up_block(
                x_ptr, w_ptr, scale_ptr, act_ptr, token_ptr, begin, end,
                WIDTH, HIDDEN, SCALES, GROUP, EXACT, TOKENS, ROWS, DEPTH,
            )  # fmt: skip
        elif LAST > 0:
            _gate_up_block(
                x_ptr, w_ptr, scale_ptr, act_ptr, token_ptr, begin, end,
                WIDTH, HIDDEN, SCALES, GROUP, EXACT, LAST, ROWS, DEPTH,
            )  # fmt: skip


@triton.jit
def _down_block(
    act_desc, w_ptr, scale_ptr, out_ptr, begin, end,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr,
    EXACT: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * (2 * ROWS) + tl.arange(0, ROWS)
    row = column[:, None]
    words_at = w_ptr + row * (WIDTH // 8) + tl.arange(0, DEPTH // 8)[None, :]
    scale_at = scale_ptr + row * SCALES
    first = tl.zeros([ROWS, TOKENS], tl.float32)
    second = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, WIDTH, DEPTH):
        # Places past the expert's are another's, or zeros; their results are not stored.
        act = act_desc.load([begin, start]).T
        first, second = _step(
            first, second, act, words_at, scale_at, start, ROWS * (WIDTH // 8), ROWS * SCALES,
            GROUP, EXACT, ROWS, DEPTH,
        )  # fmt: skip
    place = begin + tl.arange(0, TOKENS)
    at = out_ptr + place.to(tl.int64)[:, None] * HIDDEN + column[None, :]
    live = (place < end)[:, None]
    tl.store(at, first.to(tl.bfloat16).T, mask=live)
    tl.store(at + ROWS, second.to(tl.bfloat16).T, mask=live)


@triton.jit(do_not_specialize=["num_blocks"])
def _down_kernel(
    act_desc, last_desc, w_ptr, scale_ptr, out_ptr, block_ptr, num_blocks,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr,
    EXACT: tl.constexpr, TOKENS: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    expert = tl.load(block_ptr + block).to(tl.int64)
    if expert >= 0:
        begin = tl.load(block_ptr + num_blocks + block)
        end = tl.load(block_ptr + 2 * num_blocks + block)
        w_ptr += expert * (HIDDEN * (WIDTH // 8))
        scale_ptr += expert * (HIDDEN * SCALES)
        if end - begin > LAST:
            _down_block(
                act_desc, w_ptr, scale_ptr, out_ptr, begin, end,
                WIDTH, HIDDEN, SCALES, GROUP, EXACT, TOKENS, ROWS, DEPTH,
            )  # fmt: skip
        elif LAST > 0:
            _down_block(
                last_desc, w_ptr, scale_ptr, out_ptr, begin, end,
                WIDTH, HIDDEN, SCALES, GROUP, EXACT, LAST, ROWS, DEPTH,
            )  # fmt: skip


def _options(scale: Tensor, group: int, tile: Tile, rows: int, columns: int) -> dict[str, Any]:
    """Both kernels' scales, and what they are compiled for.

    Args:
        scale: float [E, rows of weights, groups].
        group: columns that share a scale.
        tile: sizes of a program.
        rows, columns: of the result per token, and of the weights.

    Raises:
        ValueError: the tile does not divide the sizes.
    """
    if rows % tile.columns or columns % tile.depth:
        raise ValueError(f"{tile} does not divide {rows} rows of {columns} weights.")
    scale = scale.contiguous()
    is_exact = scale.dtype == torch.bfloat16
    if is_exact and scale.shape[2] % 2 == 0:
        # Two by two they are wide enough for the pipeline's copies.
        scale = scale.view(torch.int32)
    return {
        "scale_ptr": scale, "SCALES": scale.shape[2], "GROUP": group, "EXACT": is_exact,
        "DEPTH": tile.depth, "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip


def gate_up_int4(
    x: Tensor, words: Tensor, scale: Tensor, rows: SortedRows, group: int, tile: Tile, last: int
) -> Tensor:
    """SiLU(x W_gate) * (x W_up) of every (token, choice).

    Args:
        x: bfloat16 [T, D], contiguous.
        words: int32 [E, 2I, D/8], contiguous.
        scale: any float dtype [E, 2I, D/group].
        rows: of the tokens, in blocks of tile.rows.
        group: columns that share a scale, 32 or 128.
        tile: sizes of a program.
        last: rows of the smaller program that an expert's last block takes if it suffices; or 0.

    Returns:
        bfloat16 [R, I] by place, columns in fragment_order.

    Raises:
        ValueError: the tile does not divide the sizes.

    Numerics: weights are rounded to bfloat16 once scaled; float32 sums, rounded once. Sync: none,
        graph-safe.
    """
    hidden, width, num_blocks = x.shape[1], words.shape[1] // 2, rows.blocks.shape[1]
    options = _options(scale, group, tile, width, hidden)
    act = torch.empty(rows.tokens.numel(), width, dtype=x.dtype, device=x.device)
    _gate_up_kernel[(width // tile.columns, num_blocks)](
        x_ptr=in_fragment_order(x), w_ptr=words, act_ptr=act, token_ptr=rows.tokens,
        block_ptr=rows.blocks, num_blocks=num_blocks, WIDTH=width, HIDDEN=hidden,
        TOKENS=rows.block_rows, LAST=last, ROWS=tile.columns, **options,
    )  # fmt: skip
    return act


def down_int4(
    act: Tensor, words: Tensor, scale: Tensor, rows: SortedRows, group: int, tile: Tile, last: int
) -> Tensor:
    """The down product of every (token, choice): gate_up_int4's result to bfloat16 [R, D].

    Args:
        act: as gate_up_int4 gives it.
        words: int32 [E, D, I/8], contiguous.
        scale: any float dtype [E, D, I/group].
        rows, group, tile, last: as for gate_up_int4.

    Raises:
        ValueError: the tile does not divide the sizes.

    Numerics: as gate_up_int4. Sync: none, graph-safe.
    """
    (num_rows, width), hidden, num_blocks = act.shape, words.shape[1], rows.blocks.shape[1]
    options = _options(scale, group, tile, hidden, width)
    out = torch.empty(num_rows, hidden, dtype=act.dtype, device=act.device)
    _down_kernel[(hidden // tile.columns, num_blocks)](
        act_desc=TensorDescriptor.from_tensor(act, [rows.block_rows, tile.depth]),
        last_desc=TensorDescriptor.from_tensor(act, [last or rows.block_rows, tile.depth]),
        w_ptr=words, out_ptr=out, block_ptr=rows.blocks, num_blocks=num_blocks,
        WIDTH=width, HIDDEN=hidden, TOKENS=rows.block_rows, LAST=last, ROWS=tile.columns // 2,
        **options,
    )  # fmt: skip
    return out
