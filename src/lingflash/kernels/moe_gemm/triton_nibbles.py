"""INT4 weights on the GPU: from words of eight nibbles to numbers, without moving them.

Weights multiply activations in an order in which no value moves between threads: of one token in
`pair_order`, where a word's eight values meet four slices of x; of many in `fragment_order`, where
they are a tensor core's first operand, and of several in `lane_order`, where x comes from memory as
the second one too.
Source of the layout: quant/pack.py.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from lingflash.kernels.triton_dot import to_bf16

__all__ = [
    "fragment_column",
    "fragment_order",
    "fragments",
    "lane_numbers",
    "lane_order",
    "pair_order",
    "pair_place",
    "place_of",
    "word_sums",
]

# The interpreter knows no assembly.
_INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


def lane_order(width: int) -> Tensor:
    """Places of columns 0 .. width - 1 in the order that `lane_numbers` meets x in: int64 [width].

    Of 128 columns, 16 words, each of four threads that share a row has four words that lie
    together, and takes 32 bytes of 16-bit x for two of them: column 8 (4 t + i) + 4 a + 2 b + c
    goes to place 32 i + 8 t + 4 c + 2 b + a.
    """
    column = torch.arange(width)
    word, a, b, c = column // 8 % 16, column // 4 % 2, column // 2 % 2, column % 2
    return column // 128 * 128 + word % 4 * 32 + word // 4 * 8 + c * 4 + b * 2 + a


def pair_order(width: int) -> Tensor:
    """Places of columns 0 .. width - 1 in the order that one row is read in: int64 [width].

    Nibbles j and j + 4 of a word come out of it together, as two halves of a register, so x is
    kept as such pairs: first pair 0 of all words, then pair 1, 2 and 3.
    """
    column = torch.arange(width)
    nibble = column % 8
    return (nibble % 4 * (width // 8) + column // 8) * 2 + nibble // 4


def fragment_order(width: int) -> Tensor:
    """Places of columns 0 .. width - 1 in the order that `fragments` gives: int64 [width].

    Within the 32 columns of four words, column 8 w + 4 a + 2 b + c goes to place
    16 b + 8 c + 2 w + a: of 16 columns of a product, one thread has two neighbours and the two
    eight further on, and nibbles four apart come out of a word as neighbours.
    """
    column = torch.arange(width)
    word, a, b, c = column // 8 % 4, column // 4 % 2, column // 2 % 2, column % 2
    return column // 32 * 32 + b * 16 + c * 8 + word * 2 + a


@triton.jit
def fragment_column(place):
    """The column that fragment_order puts at a place."""
    word, a, b, c = place // 2 % 4, place % 2, place // 16 % 2, place // 8 % 2
    return place // 32 * 32 + word * 8 + a * 4 + b * 2 + c


@triton.jit
def pair_place(column, WIDTH: tl.constexpr):
    """Where pair_order puts a column."""
    nibble_of = column % 8
    return (nibble_of % 4 * (WIDTH // 8) + column // 8) * 2 + nibble_of // 4


@triton.jit
def place_of(column, NIBBLES: tl.constexpr):
    """Where a column of activations is kept: in lane_order for INT4 weights."""
    if NIBBLES:
        word, a, b, c = column // 8 % 16, column // 4 % 2, column // 2 % 2, column % 2
        return column // 128 * 128 + word % 4 * 32 + word // 4 * 8 + c * 4 + b * 2 + a
    return column


# Words to float16 pairs and their product with x. Nibbles 0 and 4 lie where float16's last ten bits
# count ones, 1 and 5 where they count sixteens: 1024 + n - 1032 and (1024 + 16 n) / 16 - 72 both
# are n - 8, exact.
_SUMS = tl.constexpr(
    "{ .reg .b32 a, b, c, d, t, k, m, z; .reg .b16 l, h; .reg .f32 p, q;"
    " mov.b32 z, 0x64086408; mov.b32 k, 0x2C002C00; mov.b32 m, 0xD480D480; shr.u32 t, $1, 8;"
    " lop3.b32 a, $1, 0x000F000F, 0x64006400, 0xEA; lop3.b32 b, $1, 0x00F000F0, 0x64006400, 0xEA;"
    " lop3.b32 c, t, 0x000F000F, 0x64006400, 0xEA; lop3.b32 d, t, 0x00F000F0, 0x64006400, 0xEA;"
    " sub.f16x2 a, a, z; fma.rn.f16x2 b, b, k, m; sub.f16x2 c, c, z; fma.rn.f16x2 d, d, k, m;"
    " mul.f16x2 a, a, $2; fma.rn.f16x2 a, b, $3, a; fma.rn.f16x2 a, c, $4, a;"
    " fma.rn.f16x2 a, d, $5, a;"
    " mov.b32 {l, h}, a; cvt.f32.f16 p, l; cvt.f32.f16 q, h; add.f32 $0, p, q; }"
)


@triton.jit
def _half(pair, upper: tl.constexpr):
    """One half of a register as float16."""
    bits = (pair >> 16) if upper else pair
    return (bits & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def word_sums(words, x):
    """Eight values of each word times x's four pairs (int32), summed: float32.

    Sums of four products are made in float16, two side by side, then added in float32: each of
    three additions is off by 2^-12 of the sum so far at most: 3e-4 of a product of many words, for
    half the instructions of sums in float32. Eight times four magnitudes of x must fit float16.
    """
    if _INTERPRETED:
        lower = tl.zeros_like(words).to(tl.float16)
        upper = lower
        for j in tl.static_range(4):
            low = (((words >> (4 * j)) & 0xF) - 8).to(tl.float16)
            high = (((words >> (4 * j + 16)) & 0xF) - 8).to(tl.float16)
            lower += low * _half(x[j], False)
            upper += high * _half(x[j], True)
        return lower.to(tl.float32) + upper.to(tl.float32)
    return tl.inline_asm_elementwise(
        _SUMS, "=f,r,r,r,r,r", [words, x[0], x[1], x[2], x[3]], tl.float32, is_pure=True, pack=1
    )


@triton.constexpr_function
def _pairs_assembly() -> str:
    """PTX that makes eight scaled bfloat16 numbers of a word: two by two, four nibbles apart."""
    lines = ["{ .reg .b32 n, o, s; mov.b32 o, 0x43084308; mov.b32 s, $9; prmt.b32 s, s, s, 0x3232;"]
    for j in range(4):
        shifted = f"shr.u32 n, $8, {4 * j}; lop3.b32 n, n" if j else "lop3.b32 n, $8"
        lines.append(
            f"{shifted}, 0x000F000F, 0x43004300, 0xEA; sub.bf16x2 n, n, o; mul.bf16x2 n, n, s;"
            f" mov.b32 {{${j}, ${j + 4}}}, n;"
        )
    return " ".join(lines) + " }"


_PAIRS = tl.constexpr(_pairs_assembly())


@triton.jit
def _scaled(words, scale, j: tl.constexpr):
    # A nibble in the low bits of float32's 2^23 is 2^23 + nibble: no conversion needed.
    bits = ((words >> (4 * j)) & 15) | 0x4B000000
    return to_bf16((bits.to(tl.float32, bitcast=True) - 8388616.0) * scale)


@triton.jit
def _numbers(words, scale, EXACT: tl.constexpr):
    """Numbers [ROWS, words, a, c, b] bfloat16: nibble 4 a + 2 b + c of each word times its scale.

    Value times its word's scale, float32, rounded once; EXACT: the scale's upper half is a bfloat16
    number, the lower is not read.
    """
    if _INTERPRETED and EXACT:
        scale = (scale.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    if _INTERPRETED or not EXACT:
        n0, n1 = _scaled(words, scale, 0), _scaled(words, scale, 1)
        n2, n3 = _scaled(words, scale, 2), _scaled(words, scale, 3)
        n4, n5 = _scaled(words, scale, 4), _scaled(words, scale, 5)
        n6, n7 = _scaled(words, scale, 6), _scaled(words, scale, 7)
    else:
        # 128 + (value + 8) by bits, less 136; both steps are exact, as is the product's rounding.
        n0, n1, n2, n3, n4, n5, n6, n7 = tl.inline_asm_elementwise(
            _PAIRS, "=h,=h,=h,=h,=h,=h,=h,=h,r,f", [words, scale], (tl.bfloat16,) * 8,
            is_pure=True, pack=1,
        )  # fmt: skip
    return tl.join(
        tl.join(tl.join(n0, n4), tl.join(n1, n5)), tl.join(tl.join(n2, n6), tl.join(n3, n7))
    )


@triton.jit
def fragments(words, scale, ROWS: tl.constexpr, DEPTH: tl.constexpr, EXACT: tl.constexpr):
    """Numbers [ROWS, DEPTH] bfloat16, columns in fragment_order, of int32 [ROWS, DEPTH / 8].

    See _numbers. Every number stays with the thread that has its word, if a tensor core's first
    operand is made of it.
    """
    numbers = _numbers(words, scale, EXACT)
    # [ROWS, 32 columns, word, a, c, b], see fragment_order.
    numbers = tl.reshape(numbers, [ROWS, DEPTH // 32, 4, 2, 2, 2])
    return tl.reshape(tl.permute(numbers, [0, 1, 5, 4, 2, 3]), [ROWS, DEPTH])


@triton.jit
def lane_numbers(words, scale, ROWS: tl.constexpr, EXACT: tl.constexpr):
    """Numbers [ROWS, 128] bfloat16 of int32 [ROWS, 16], as `lane_columns` has x.

    See _numbers. In registers as they come from memory, 16 bytes a thread, a row's words are where
    a warp's product wants its first operand: four threads to a row, eight rows beside each other.
    """
    numbers = tl.reshape(_numbers(words, scale, EXACT), [ROWS, 4, 4, 2, 2, 2])
    # [ROWS, t, i, a, c, b]
    return lane_columns(tl.permute(numbers, [0, 2, 1, 4, 5, 3]), ROWS)


@triton.jit
def lane_columns(x, ROWS: tl.constexpr):
    """[ROWS, i, t, c, b, a], places in lane_order, to [ROWS, 128], columns of a product.

    Of each 16 columns a thread t takes four that follow each other; that it is not two, and the
    two eight further on, is what Triton makes of operands that come from less than 16 bits.
    """
    return tl.reshape(tl.permute(x, [0, 1, 4, 2, 3, 5]), [ROWS, 128])
