"""Expert products of one token on the GPU: each thread multiplies what it loaded itself.

Tensor cores would be given 1 row of 16, and need no plan of rows here. A program takes all columns
of a few rows of weights at once, as a tile [chunks of 128 columns, rows, columns of a chunk]: rows
are the middle axis, so that Triton spreads a chunk over some threads and chunks over the others,
and a thread holds the same columns of every row. What is done to x is then done once for all rows.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import triton
import triton.language as tl

from lingflash.kernels.moe_gemm.triton_nibbles import pair_place, word_sums
from lingflash.kernels.skinny_gemm.triton_one_row import SCALE_BLOCK, load_tile
from lingflash.kernels.triton_launch import start_next, wait_for_previous

__all__ = ["down_one_kernel", "gate_up_one_kernel"]


@triton.jit
def _columns(chunk, INT4: tl.constexpr):
    """Places [C, n] in a row of weights: words of eight values, or values."""
    SIZE: tl.constexpr = 16 if INT4 else 128
    return chunk[:, None] * SIZE + tl.arange(0, SIZE)[None, :]


@triton.jit
def _tile(w_row, row_ok, chunk, WIDTH: tl.constexpr, INT4: tl.constexpr, EVEN: tl.constexpr):
    """Weights [C, N, n], each read once."""
    UNITS: tl.constexpr = WIDTH // 8 if INT4 else WIDTH
    return load_tile(w_row, row_ok, _columns(chunk, INT4), UNITS, EVEN)


@triton.jit
def _scale_rows(scale_ptr, column, tile, stride, SCALES: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where the scales of a tile's rows begin: one place for all of them, or one of each."""
    if SCALES == "group":
        rows = scale_ptr + column * stride
    else:
        rows = scale_ptr + (tile * BLOCK_N // SCALE_BLOCK) * stride
    return rows


@triton.jit
def _scales(
    scale_row, row_ok, chunk,
    SCALES: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Scales of a tile: "group" [C, N, groups of a chunk], "block" [C, 1, 1]; else 1."""
    if SCALES == "group":
        MANY: tl.constexpr = 128 // GROUP
        at = chunk[:, None] * MANY + tl.arange(0, MANY)[None, :]
        places = scale_row[None, :, None] + at[:, None, :]
        if EVEN:
            scale = tl.load(places).to(tl.float32)
        else:
            ok = row_ok[None, :, None] & (at * GROUP < WIDTH)[:, None, :]
            scale = tl.load(places, mask=ok, other=0.0).to(tl.float32)
    elif SCALES == "block":
        ok = chunk * SCALE_BLOCK < WIDTH
        scale = tl.load(scale_row + chunk, mask=ok, other=0.0)[:, None, None]
    else:
        scale = 1.0
    return scale


@triton.jit
def _row(x_ptr, chunk, WIDTH: tl.constexpr, INT4: tl.constexpr):
    """x [C, 1, n] as float32; for words of INT4 four pairs of float16 as int32, in pair_order."""
    at = _columns(chunk, INT4)
    if INT4:
        WORDS: tl.constexpr = WIDTH // 8
        ok = at < WORDS
        pairs = x_ptr.to(tl.pointer_type(tl.int32)) + at
        x = (
            tl.load(pairs, mask=ok, other=0)[:, None, :],
            tl.load(pairs + WORDS, mask=ok, other=0)[:, None, :],
            tl.load(pairs + 2 * WORDS, mask=ok, other=0)[:, None, :],
            tl.load(pairs + 3 * WORDS, mask=ok, other=0)[:, None, :],
        )
    else:
        x = tl.load(x_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)[:, None, :]
    return x


@triton.jit
def _sums(w, x, factor, INT4: tl.constexpr):
    """w times x, and times a word's factor; summed over what one thread holds of a chunk.

    float32 [C, N, threads that share a chunk].
    """
    part = word_sums(w, x) if INT4 else w.to(tl.float32) * x
    if factor is not None:
        part *= factor
    OWN: tl.constexpr = 128 // w.dtype.primitive_bitwidth
    part = tl.reshape(part, [w.shape[0], w.shape[1], w.shape[2] // OWN, OWN])
    return tl.sum(part, 3)


@triton.jit
def _store_act(act, act_ptr, column, inside, PAIRS: tl.constexpr, WIDTH: tl.constexpr):
    """Activations as `down` reads them, in a row of WIDTH float32: bfloat16, as the model has them.

    For INT4 weights float16 in pair_order, after which come the factors of each word's eight
    values: the power of two below the largest, so that all fit.
    """
    if PAIRS:
        words: tl.constexpr = act.shape[0] // 8
        top = tl.max(tl.reshape(tl.abs(act), [words, 8]), 1)
        bits = tl.maximum(top, 1e-30).to(tl.int32, bitcast=True) & 0x7F800000
        bits = tl.minimum(bits, 0x7E800000)  # its inverse is a normal number too
        inverse = (0x7F000000 - bits).to(tl.float32, bitcast=True)
        act = tl.reshape(tl.reshape(act, [words, 8]) * inverse[:, None], [act.shape[0]])
        half_ptr = act_ptr.to(tl.pointer_type(tl.float16))
        tl.store(half_ptr + pair_place(column, WIDTH), act.to(tl.float16), mask=inside)
        word = tl.min(column, 0) // 8 + tl.arange(0, words)
        factor = bits.to(tl.float32, bitcast=True)
        tl.store(act_ptr + WIDTH // 2 + word, factor, mask=word < WIDTH // 8)
    else:
        tl.store(
            act_ptr.to(tl.pointer_type(tl.bfloat16)) + column, act.to(tl.bfloat16), mask=inside
        )


@triton.jit
def _one_gate_up(
    x_ptr, w_ptr, scale_ptr, act_ptr, tile, scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr,
    WAIT: tl.constexpr,
):  # fmt: skip
    """One row of x through BLOCK_N gate and up columns of one expert.

    All weights are asked for together, before the wait if there is one.
    """
    EVEN: tl.constexpr = WIDTH % BLOCK_N == 0 and HIDDEN == CHUNKS * 128
    ROW: tl.constexpr = HIDDEN // 8 if INT4 else HIDDEN
    chunk = tl.arange(0, CHUNKS)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < WIDTH
    rows = w_ptr + column * ROW
    gates = _tile(rows, inside, chunk, HIDDEN, INT4, EVEN)
    ups = _tile(rows + WIDTH * ROW, inside, chunk, HIDDEN, INT4, EVEN)
    scale_rows = _scale_rows(scale_ptr, column, tile, scale_stride, SCALES, BLOCK_N)
    UP: tl.constexpr = WIDTH if SCALES == "group" else WIDTH // SCALE_BLOCK
    gate_scale = _scales(scale_rows, inside, chunk, SCALES, GROUP, HIDDEN, EVEN)
    up_scale = _scales(scale_rows + UP * scale_stride, inside, chunk, SCALES, GROUP, HIDDEN, EVEN)
    if WAIT:
        wait_for_previous(True)
        start_next(True)
    x = _row(x_ptr, chunk, HIDDEN, INT4)
    gate = tl.sum(tl.sum(_sums(gates, x, None, INT4) * gate_scale, 2), 0)
    up = tl.sum(tl.sum(_sums(ups, x, None, INT4) * up_scale, 2), 0)
    if SCALES == "channel":
        gate *= tl.load(scale_ptr + column * scale_stride, mask=inside, other=0.0)
        up *= tl.load(scale_ptr + (WIDTH + column) * scale_stride, mask=inside, other=0.0)
    act = gate * tl.sigmoid(gate) * up
    _store_act(act, act_ptr, column, inside, PAIRS, WIDTH)


@triton.jit
def gate_up_one_kernel(
    x_ptr, w_ptr, scale_ptr, ids_ptr, act_ptr, plain_ptr, shared_ptr, shared_scale_ptr,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, SHARED: tl.constexpr,
    SHARED_SCALES: tl.constexpr, PAIRS: tl.constexpr, TOPK: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The shared expert's programs come first: they need no choice. SHARED of them, 0, 1 or 2,
    take a tile's columns, so that a row of more bytes than INT4's needs no more registers.

    The next kernel may start only after this one's wait, so that whatever came before this kernel
    is complete when the next one runs at all: `down` reads the choice without waiting.
    """
    if tl.program_id(1) < SHARED:
        _one_gate_up(
            plain_ptr, shared_ptr, shared_scale_ptr, act_ptr + TOPK * WIDTH,
            tl.program_id(0) * SHARED + tl.program_id(1), shared_scale_stride,
            False, SHARED_SCALES, 0, False, WIDTH, HIDDEN, BLOCK_N // max(SHARED, 1), CHUNKS, PDL,
        )  # fmt: skip
    else:
        wait_for_previous(PDL)
        start_next(PDL)
        choice = tl.program_id(1) - SHARED
        expert = tl.load(ids_ptr + choice).to(tl.int64)
        _one_gate_up(
            x_ptr, w_ptr + expert * expert_stride, scale_ptr + expert * scale_expert_stride,
            act_ptr + choice * WIDTH, tl.program_id(0), scale_stride, INT4, SCALES, GROUP,
            PAIRS, WIDTH, HIDDEN, BLOCK_N, CHUNKS, False,
        )  # fmt: skip


@triton.jit
def _load_choice(at):
    """What an earlier kernel wrote, before the wait: not from this multiprocessor's own cache."""
    return tl.load(at, cache_modifier=".cg")


@triton.jit
def _choice_tile(
    w_ptr, scale_ptr, column, inside, chunk, tile, scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Some columns of one expert's way back: weights and their scales."""
    rows = w_ptr + column * (WIDTH // 8 if INT4 else WIDTH)
    w = _tile(rows, inside, chunk, WIDTH, INT4, EVEN)
    at = _scale_rows(scale_ptr, column, tile, scale_stride, SCALES, BLOCK_N)
    return w, _scales(at, inside, chunk, SCALES, GROUP, WIDTH, EVEN)


@triton.jit
def down_one_kernel(
    act_ptr, w_ptr, scale_ptr, ids_ptr, weight_ptr, out_ptr, shared_ptr, shared_scale_ptr,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, SHARED: tl.constexpr,
    SHARED_SCALES: tl.constexpr, TOPK: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr, ADD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of the way back of all choices, added to the residual stream if ADD.

    The shared expert's weights and those of the first AHEAD choices are asked for before the wait.
    Which they are is known: the kernel before (gate_up) lets this one start only after its own
    wait, when the choice was complete. Only what gate_up itself writes has to be waited for. Sums
    are kept per thread and meet once, at the end, so that nothing stands between the loads.
    """
    start_next(PDL)
    EVEN: tl.constexpr = HIDDEN % BLOCK_N == 0 and WIDTH == CHUNKS * 128
    ROW: tl.constexpr = WIDTH // 8 if INT4 else WIDTH
    tile, chunk = tl.program_id(0), tl.arange(0, CHUNKS)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < HIDDEN
    if SHARED:
        shared_w, shared_scale = _choice_tile(
            shared_ptr, shared_scale_ptr, column, inside, chunk, tile, shared_scale_stride,
            False, SHARED_SCALES, 0, WIDTH, BLOCK_N, EVEN,
        )  # fmt: skip
    experts, weights, tiles, scales = (), (), (), ()
    for c in tl.static_range(TOPK):
        experts += (_load_choice(ids_ptr + c).to(tl.int64),)
        weights += (_load_choice(weight_ptr + c),)
    for c in tl.static_range(min(AHEAD, TOPK)):
        w, scale = _choice_tile(
            w_ptr + experts[c] * expert_stride, scale_ptr + experts[c] * scale_expert_stride,
            column, inside, chunk, tile, scale_stride, INT4, SCALES, GROUP, WIDTH, BLOCK_N, EVEN,
        )  # fmt: skip
        tiles += (w,)
        scales += (scale,)
    wait_for_previous(PDL)
    if ADD:
        out = tl.load(out_ptr + column, mask=inside, other=0.0).to(tl.float32)
    else:
        out = tl.zeros([BLOCK_N], tl.float32)
    for c in tl.static_range(TOPK):
        act = act_ptr + c * WIDTH
        factor = None
        x = _row(act.to(tl.pointer_type(tl.bfloat16)), chunk, WIDTH, INT4)
        if INT4:
            at = _columns(chunk, True)
            factor = tl.load(act + WIDTH // 2 + at, mask=at < ROW, other=0.0)[:, None, :]
        weight = weights[c] * scales[c]
        if SCALES == "channel":
            at = scale_ptr + experts[c] * scale_expert_stride + column * scale_stride
            weight *= tl.load(at, mask=inside, other=0.0)[None, :, None]
        part = _sums(tiles[c], x, factor, INT4) * weight
        total = part if c == 0 else total + part  # noqa: F821  (unrolled)
        if c + AHEAD < TOPK:
            w, scale = _choice_tile(
                w_ptr + experts[c + AHEAD] * expert_stride,
                scale_ptr + experts[c + AHEAD] * scale_expert_stride, column, inside, chunk, tile,
                scale_stride, INT4, SCALES, GROUP, WIDTH, BLOCK_N, EVEN,
            )  # fmt: skip
            tiles += (w,)
            scales += (scale,)
    out += tl.sum(tl.sum(total, 2), 0)
    if SHARED:
        act = (act_ptr + TOPK * WIDTH).to(tl.pointer_type(tl.bfloat16))
        x = _row(act, chunk, WIDTH, False)
        other = tl.sum(tl.sum(_sums(shared_w, x, None, False) * shared_scale, 2), 0)
        if SHARED_SCALES == "channel":
            at = shared_scale_ptr + column * shared_scale_stride
            other *= tl.load(at, mask=inside, other=0.0)
        out += other
    tl.store(out_ptr + column, out.to(out_ptr.dtype.element_ty), mask=inside)
