"""Expert products of one token on the GPU: each thread multiplies what it loaded itself.

Tensor cores would be given 1 row of 16, and need no plan of rows here. Weights are read as words,
16 bytes a thread: INT4 as words of eight values, FP8 and BF16 as words of four. x is cut into
slices that are laid out like the words: a word's values meet the word's place in each slice.

Nothing passes through shared memory before the last sums, because a step takes fewer words of a row
than there are threads: a load of so few elements (x, scales) Triton makes again in the layout that
its user has, where it would convert a larger one behind a barrier (docs/gpu-notes.md).
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from lingflash.kernels.moe_gemm.triton_nibbles import pair_place, word_sums
from lingflash.kernels.skinny_gemm.triton_kernel import SCALE_BLOCK
from lingflash.kernels.triton_launch import start_next, wait_for_previous

__all__ = ["down_one_kernel", "gate_up_one_kernel"]

# The interpreter knows no assembly.
_INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
# Four FP8 values, exact as float16, times four float32.
_FP8_SUMS = tl.constexpr(
    "{ .reg .b16 l, h, a, b, c, d; .reg .b32 s, t; .reg .f32 p, q; mov.b32 {l, h}, $1;"
    " cvt.rn.f16x2.e4m3x2 s, l; cvt.rn.f16x2.e4m3x2 t, h;"
    " mov.b32 {a, b}, s; mov.b32 {c, d}, t;"
    " cvt.f32.f16 p, a; mul.f32 q, p, $2; cvt.f32.f16 p, b; fma.rn.f32 q, p, $3, q;"
    " cvt.f32.f16 p, c; fma.rn.f32 q, p, $4, q; cvt.f32.f16 p, d; fma.rn.f32 $0, p, $5, q; }"
)


@triton.jit
def _load(at, ok, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(at)
    return tl.load(at, mask=ok, other=0)


@triton.jit
def _load_words(w_row, row_ok, at, WORDS: tl.constexpr, EVEN: tl.constexpr):
    """A tile of weights, each read once."""
    places = w_row[:, None] + at[None, :]
    if EVEN:
        return tl.load(places, eviction_policy="evict_first")
    return tl.load(places, mask=row_ok[:, None] & (at < WORDS)[None, :], other=0)


@triton.jit
def _slices(x_ptr, at, WORDS: tl.constexpr, EVEN: tl.constexpr):
    """x of the words `at`, from four slices of x: pairs of float16 for INT4, else float32."""
    ok = at < WORDS
    return (
        _load(x_ptr + at, ok, EVEN)[None, :],
        _load(x_ptr + WORDS + at, ok, EVEN)[None, :],
        _load(x_ptr + 2 * WORDS + at, ok, EVEN)[None, :],
        _load(x_ptr + 3 * WORDS + at, ok, EVEN)[None, :],
    )


@triton.jit
def _in_order(x_ptr, at, WORDS: tl.constexpr, EVEN: tl.constexpr):
    """x of the words `at` from float16 or bfloat16 in its own order: four float32."""
    four = _load(x_ptr.to(tl.pointer_type(tl.int64)) + at, at < WORDS, EVEN)[None, :]
    kind: tl.constexpr = x_ptr.dtype.element_ty
    return (
        four.to(tl.int16).to(kind, bitcast=True).to(tl.float32),
        (four >> 16).to(tl.int16).to(kind, bitcast=True).to(tl.float32),
        (four >> 32).to(tl.int16).to(kind, bitcast=True).to(tl.float32),
        (four >> 48).to(tl.int16).to(kind, bitcast=True).to(tl.float32),
    )


@triton.jit
def _products(words, x, INT4: tl.constexpr):
    """Each word's values times x, summed over the word: float32."""
    if INT4:
        return word_sums(words, x)
    if words.dtype == tl.int64:  # four BF16 values
        low, high = words.to(tl.int32), (words >> 32).to(tl.int32)
        total = (low << 16).to(tl.float32, bitcast=True) * x[0]
        total += (low & -65536).to(tl.float32, bitcast=True) * x[1]
        total += (high << 16).to(tl.float32, bitcast=True) * x[2]
        return total + (high & -65536).to(tl.float32, bitcast=True) * x[3]
    if _INTERPRETED:
        total = tl.zeros_like(words).to(tl.float32)
        for j in tl.static_range(4):
            byte = ((words >> (8 * j)) & 0xFF).to(tl.uint8)
            total += byte.to(tl.float8e4nv, bitcast=True).to(tl.float32) * x[j]
        return total
    return tl.inline_asm_elementwise(
        _FP8_SUMS, "=f,r,f,f,f,f", [words, x[0], x[1], x[2], x[3]], tl.float32,
        is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _load_scales(
    scale_row, row_ok, step,
    SCALES: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Scales of a step's groups [N or 1, groups, 1]: "row", of each row; "block", one for all."""
    group = step * GROUPS + tl.arange(0, GROUPS)
    ok = group * GROUP < WIDTH
    if SCALES == "row":
        at = scale_row[:, None] + group[None, :]
        scale = _load(at, row_ok[:, None] & ok[None, :], EVEN)[:, :, None]
    elif SCALES == "block":
        scale = _load(scale_row + group, ok, EVEN)[None, :, None]
    else:
        scale = tl.full([1, 1, 1], 1.0, tl.float32)
    return scale


@triton.jit
def _add(total, words, x, factor, scale, weight, INT4: tl.constexpr):
    """total [N, groups, n] + one step: what one thread holds of a group is summed, then scaled."""
    OWN: tl.constexpr = 128 // words.dtype.primitive_bitwidth
    part = _products(words, x, INT4)
    if factor is not None:
        part *= factor
    part = tl.reshape(part, [total.shape[0], total.shape[1], total.shape[2], OWN])
    return total + tl.sum(part, 3) * (scale.to(tl.float32) * weight)


@triton.jit
def _zeros(
    w_ptr, INT4: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr
):
    """Sums of a step of STEP words: float32 [rows, groups, threads of a group]."""
    VALUES: tl.constexpr = 8 if INT4 else 4
    OWN: tl.constexpr = 128 // w_ptr.dtype.element_ty.primitive_bitwidth
    GROUPS: tl.constexpr = STEP * VALUES // GROUP if GROUP else 1
    return tl.zeros([BLOCK_N, GROUPS, STEP // GROUPS // OWN], tl.float32)


@triton.jit
def _store_act(act, act_ptr, column, inside, PAIRS: tl.constexpr, WIDTH: tl.constexpr):
    """Activations as `down` reads them, in a row of WIDTH float32.

    Four slices of float32; for INT4 weights four slices of float16 pairs, after which come the
    factors of each word's eight values: the power of two below the largest, so that all fit.
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
        tl.store(act_ptr + column % 4 * (WIDTH // 4) + column // 4, act, mask=inside)


@triton.jit
def _one_gate_up(
    x_ptr, w_ptr, scale_ptr, act_ptr, tile, scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr,
    AHEAD: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """One row of x through BLOCK_N gate and up columns of one expert.

    The weights of AHEAD steps are asked for together; the first before the wait, if there is one.
    """
    VALUES: tl.constexpr = 8 if INT4 else 4
    WORDS: tl.constexpr = HIDDEN // VALUES
    EVEN: tl.constexpr = WIDTH % BLOCK_N == 0 and WORDS % (STEP * AHEAD) == 0
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < WIDTH
    row = w_ptr + column * WORDS
    up_row = row + WIDTH * WORDS
    if SCALES == "row":
        scale_row = scale_ptr + column * scale_stride
        up_scale_row = scale_row + WIDTH * scale_stride
    else:
        scale_row = scale_ptr + (tile * BLOCK_N // SCALE_BLOCK) * scale_stride
        up_scale_row = scale_row + WIDTH // SCALE_BLOCK * scale_stride
    k = tl.arange(0, STEP)
    g = _zeros(w_ptr, INT4, GROUP, BLOCK_N, STEP)
    u = _zeros(w_ptr, INT4, GROUP, BLOCK_N, STEP)
    GROUPS: tl.constexpr = g.shape[1]
    for first in range(0, WORDS, STEP * AHEAD):
        gates, ups, gate_scales, up_scales = (), (), (), ()
        for i in tl.static_range(AHEAD):
            at = first + i * STEP + k
            gates += (_load_words(row, inside, at, WORDS, EVEN),)
            ups += (_load_words(up_row, inside, at, WORDS, EVEN),)
        for i in tl.static_range(AHEAD):
            step = first // STEP + i
            scale = _load_scales(scale_row, inside, step, SCALES, GROUP, GROUPS, HIDDEN, EVEN)
            gate_scales += (scale,)
            scale = _load_scales(up_scale_row, inside, step, SCALES, GROUP, GROUPS, HIDDEN, EVEN)
            up_scales += (scale,)
        if WAIT:  # noqa: SIM102  (decided when this is compiled, unlike the next)
            if first == 0:
                wait_for_previous(True)
                start_next(True)
        for i in tl.static_range(AHEAD):
            at = first + i * STEP + k
            x = _slices(x_ptr, at, WORDS, EVEN) if INT4 else _in_order(x_ptr, at, WORDS, EVEN)
            g = _add(g, gates[i], x, None, gate_scales[i], 1.0, INT4)
            u = _add(u, ups[i], x, None, up_scales[i], 1.0, INT4)
    gate, up = tl.sum(tl.sum(g, 2), 1), tl.sum(tl.sum(u, 2), 1)
    if SCALES == "channel":
        gate *= tl.load(scale_ptr + column * scale_stride, mask=inside, other=0.0)
        up *= tl.load(scale_ptr + (WIDTH + column) * scale_stride, mask=inside, other=0.0)
    act = gate * tl.sigmoid(gate) * up
    _store_act(act, act_ptr, column, inside, PAIRS, WIDTH)


@triton.jit
def gate_up_one_kernel(
    x_ptr, w_ptr, scale_ptr, ids_ptr, act_ptr, plain_ptr, shared_ptr, shared_scale_ptr,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr,
    SHARED: tl.constexpr, SHARED_SCALES: tl.constexpr, SHARED_GROUP: tl.constexpr,
    SHARED_STEP: tl.constexpr, PAIRS: tl.constexpr, TOPK: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr, AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The shared expert's programs come first: they need no choice and, in FP8, take longest.

    The next kernel may start only after this one's wait, so that whatever came before this kernel
    is complete when the next one runs at all: `down` reads the choice without waiting.
    """
    if SHARED and tl.program_id(1) == 0:
        _one_gate_up(
            plain_ptr, shared_ptr, shared_scale_ptr, act_ptr + TOPK * WIDTH, tl.program_id(0),
            shared_scale_stride, False, SHARED_SCALES, SHARED_GROUP, False, WIDTH, HIDDEN,
            BLOCK_N, SHARED_STEP, AHEAD, PDL,
        )  # fmt: skip
    else:
        wait_for_previous(PDL)
        start_next(PDL)
        choice = tl.program_id(1) - SHARED
        expert = tl.load(ids_ptr + choice).to(tl.int64)
        _one_gate_up(
            x_ptr, w_ptr + expert * expert_stride, scale_ptr + expert * scale_expert_stride,
            act_ptr + choice * WIDTH, tl.program_id(0), scale_stride, INT4, SCALES, GROUP,
            PAIRS, WIDTH, HIDDEN, BLOCK_N, STEP, AHEAD, False,
        )  # fmt: skip


@triton.jit
def _rows_of(
    w_ptr, scale_ptr, column, scale_stride, tile,
    SCALES: tl.constexpr, WORDS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Where the rows of an expert's matrix and of its scales begin."""
    if SCALES == "row":
        scale_row = scale_ptr + column * scale_stride
    else:
        scale_row = scale_ptr + (tile * BLOCK_N // SCALE_BLOCK) * scale_stride
    return w_ptr + column * WORDS, scale_row


@triton.jit
def _load_choice(at):
    """What an earlier kernel wrote, before the wait: not from this multiprocessor's own cache."""
    return tl.load(at, cache_modifier=".cg")


@triton.jit
def down_one_kernel(
    act_ptr, w_ptr, scale_ptr, ids_ptr, weight_ptr, out_ptr, shared_ptr, shared_scale_ptr,
    expert_stride, scale_expert_stride, scale_stride, shared_scale_stride,
    INT4: tl.constexpr, SCALES: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr,
    SHARED: tl.constexpr, SHARED_SCALES: tl.constexpr, SHARED_GROUP: tl.constexpr,
    SHARED_STEP: tl.constexpr, TOPK: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr, AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of the way back of all choices, added to the residual stream.

    The shared expert's weights and those of the first AHEAD steps are asked for before the wait.
    Which they are is known: the kernel before (gate_up) lets this one start only after its own
    wait, when the choice was complete. Only what gate_up itself writes has to be waited for. Sums
    are kept per thread and meet once, at the end, so that nothing stands between the loads.
    """
    start_next(PDL)
    tile = tl.program_id(0)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < HIDDEN
    VALUES: tl.constexpr = 8 if INT4 else 4
    WORDS: tl.constexpr = WIDTH // VALUES
    STEPS: tl.constexpr = (WORDS + STEP - 1) // STEP
    EVEN: tl.constexpr = HIDDEN % BLOCK_N == 0 and WORDS % STEP == 0
    SHARED_WORDS: tl.constexpr = WIDTH // 4
    SHARED_STEPS: tl.constexpr = (SHARED_WORDS + SHARED_STEP - 1) // SHARED_STEP if SHARED else 0
    SHARED_EVEN: tl.constexpr = HIDDEN % BLOCK_N == 0 and SHARED_WORDS % SHARED_STEP == 0
    k, shared_k = tl.arange(0, STEP), tl.arange(0, SHARED_STEP)
    shared_row, shared_scales = _rows_of(
        shared_ptr, shared_scale_ptr, column, shared_scale_stride, tile, SHARED_SCALES,
        SHARED_WORDS, BLOCK_N,
    )  # fmt: skip
    total = _zeros(w_ptr, INT4, GROUP, BLOCK_N, STEP)
    GROUPS: tl.constexpr = total.shape[1]
    shared_total = _zeros(shared_ptr, False, SHARED_GROUP, BLOCK_N, SHARED_STEP)
    rows, scale_rows, words, scales, weights, shared_words = (), (), (), (), (), ()
    for c in tl.static_range(TOPK):
        expert = _load_choice(ids_ptr + c).to(tl.int64)
        row, scale_row = _rows_of(
            w_ptr + expert * expert_stride, scale_ptr + expert * scale_expert_stride, column,
            scale_stride, tile, SCALES, WORDS, BLOCK_N,
        )  # fmt: skip
        rows += (row,)
        scale_rows += (scale_row,)
        weights += (_load_choice(weight_ptr + c),)
    for i in tl.static_range(SHARED_STEPS):
        at = i * SHARED_STEP + shared_k
        tile_words = _load_words(shared_row, inside, at, SHARED_WORDS, SHARED_EVEN)
        shared_words += (tile_words,)
    for i in tl.static_range(min(AHEAD, TOPK * STEPS)):
        at = i % STEPS * STEP + k
        words += (_load_words(rows[i // STEPS], inside, at, WORDS, EVEN),)
    for i in tl.static_range(min(AHEAD, TOPK * STEPS)):
        scale = _load_scales(
            scale_rows[i // STEPS], inside, i % STEPS, SCALES, GROUP, GROUPS, WIDTH, EVEN
        )
        scales += (scale,)
    wait_for_previous(PDL)
    before = tl.load(out_ptr + column, mask=inside, other=0.0).to(tl.float32)
    for c in tl.static_range(TOPK):
        act = act_ptr + c * WIDTH
        weight = weights[c]
        if SCALES == "channel":
            scale = tl.load(
                scale_ptr + _load_choice(ids_ptr + c).to(tl.int64) * scale_expert_stride
                + column * scale_stride, mask=inside, other=0.0,
            )  # fmt: skip
            weight = (weight * scale)[:, None, None]
        for step in tl.static_range(STEPS):
            if c * STEPS + step + AHEAD < TOPK * STEPS:
                at = (step + AHEAD) % STEPS * STEP + k
                row = rows[c + (step + AHEAD) // STEPS]
                words += (_load_words(row, inside, at, WORDS, EVEN),)
                scale = _load_scales(
                    scale_rows[c + (step + AHEAD) // STEPS], inside, (step + AHEAD) % STEPS,
                    SCALES, GROUP, GROUPS, WIDTH, EVEN,
                )  # fmt: skip
                scales += (scale,)
            at = step * STEP + k
            factor = None
            if INT4:
                x = _slices(act.to(tl.pointer_type(tl.int32)), at, WORDS, EVEN)
                factor = _load(act + WIDTH // 2 + at, at < WORDS, EVEN)[None, :]
            else:
                x = _slices(act, at, WORDS, EVEN)
            total = _add(
                total, words[c * STEPS + step], x, factor, scales[c * STEPS + step], weight, INT4
            )
    out = tl.sum(tl.sum(total, 2), 1)
    if SHARED:
        for i in tl.static_range(SHARED_STEPS):
            at = i * SHARED_STEP + shared_k
            x = _slices(act_ptr + TOPK * WIDTH, at, SHARED_WORDS, SHARED_EVEN)
            scale = _load_scales(
                shared_scales, inside, i, SHARED_SCALES, SHARED_GROUP, shared_total.shape[1],
                WIDTH, SHARED_EVEN,
            )  # fmt: skip
            shared_total = _add(shared_total, shared_words[i], x, None, scale, 1.0, False)
        other = tl.sum(tl.sum(shared_total, 2), 1)
        if SHARED_SCALES == "channel":
            scale_at = shared_scale_ptr + column * shared_scale_stride
            other *= tl.load(scale_at, mask=inside, other=0.0)
        out += other
    tl.store(out_ptr + column, (before + out).to(out_ptr.dtype.element_ty), mask=inside)
