"""Products with packed INT4 and FP8 in C, for each class of processor, against their numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_support import HERE, kernels_of
from lingflash.kernels.cpu.packed import can_multiply, lanes, multiply_packed, takes_format
from lingflash.kernels.moe_gemm import expert_mlp, expert_mlp_reference
from lingflash.quant.matrix import QuantizedExperts, QuantizedMatrix, linear
from lingflash.quant.pack import quantize_fp8, quantize_int4

WITH_VECTORS = [name for name in HERE if name != "plain"]
INT4 = [(1, 32), (1, 128)]
FP8 = [(128, 128), (1, 0), (64, 256)]


@pytest.fixture(scope="module", params=WITH_VECTORS, autouse=True)
def compiled(request):
    with kernels_of(request.param):
        if not lanes():
            pytest.skip("no C compiler on this machine")
        yield


def rand(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transposed(x):
    """The same numbers, in memory that runs along the rows."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def store(weight, block, part_rows=None, dtype=torch.bfloat16):
    """A matrix quantized part by part, as the loader lays it out."""
    parts = weight.split(list(part_rows or weight.shape[:1]))
    if block in INT4:
        pairs = [quantize_int4(part, block[1], dtype) for part in parts]
    else:
        pairs = [quantize_fp8(part, block) for part in parts]
    values, scales = (torch.cat(list(each)) for each in zip(*pairs, strict=True))
    return QuantizedMatrix(
        transposed(values), transposed(scales), block, torch.float32, tuple(map(len, parts))
    )


def check(x, weight, digits=2):
    assert can_multiply(x, weight)
    (out,) = multiply_packed([(x, weight)], digits=digits)
    expected = x.double() @ weight.dense().double().T
    error = (out - expected).norm() / expected.norm().clamp(min=1e-30)
    is_exact = weight.values.dtype != torch.int32
    assert error < (2e-6 if is_exact else 5e-5 if digits == 2 else 1.2e-2)
    return out


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 11),
    vectors=st.integers(1, 11),
    groups=st.integers(1, 9),
    block=st.sampled_from(INT4),
    digits=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_int4_when_of_any_shape_then_matches_its_numbers(
    rows, vectors, groups, block, digits, dtype
):
    weight = store(rand(vectors * lanes(), groups * block[1], seed=vectors), block, dtype=dtype)
    check(rand(rows, groups * block[1], seed=rows), weight, digits)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 11),
    vectors=st.integers(1, 20),
    columns=st.integers(1, 300),
    block=st.sampled_from(FP8),
)
def test_fp8_when_of_any_shape_then_matches_its_numbers(rows, vectors, columns, block):
    weight = store(rand(vectors * lanes(), columns, seed=vectors), block)
    check(rand(rows, columns, seed=rows), weight)


@pytest.mark.parametrize("block", INT4 + FP8)
def test_parts_when_stacked_then_each_has_scales_of_its_own(block):
    rows = [5 * lanes(), 128, lanes()]
    weight = store(rand(sum(rows), 256, seed=1) * torch.arange(1.0, 257), block, rows)
    check(rand(3, 256, seed=2), weight)
    check(rand(3, 512, seed=2)[:, :256].contiguous(), weight.parts()[1])


@pytest.mark.parametrize("block", INT4 + FP8)
def test_bits_when_rows_stand_alone_or_threads_share_then_are_the_same(block):
    weight, x = store(rand(13 * lanes(), 640 * 2, seed=3), block), rand(70, 640 * 2, seed=4)
    (whole,) = multiply_packed([(x, weight)], 1)
    for count in (1, 2, 3, 5, 16, 33):
        few = x[7 : 7 + count].contiguous()
        for threads in (1, 2, 5):
            (out,) = multiply_packed([(few, weight)], threads)
            assert torch.equal(out, whole[7 : 7 + count])


def test_products_when_several_at_once_then_each_is_that_alone():
    weights = [store(rand(lanes() * n, 256, seed=n), b) for n in (1, 3) for b in INT4 + FP8]
    xs = [rand(n, 256, seed=n) for n in (1, 4)]
    pairs = [(xs[i // 3 % 2], weight) for i, weight in enumerate(weights)]
    for out, (x, weight) in zip(multiply_packed(pairs, 3), pairs, strict=True):
        assert torch.equal(out, multiply_packed([(x, weight)], 1)[0])


@pytest.mark.parametrize("block", INT4 + FP8)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_when_one_is_not_finite_then_only_that_one_is_spoilt(block, bad):
    weight, x = store(rand(3 * lanes(), 256, seed=5), block), rand(6, 256, seed=6)
    expected = check(x, weight)
    x[2, 100] = bad
    (out,) = multiply_packed([(x, weight)])
    assert not out[2].isfinite().any()
    rest = [0, 1, 3, 4, 5]
    assert torch.equal(out[rest], expected[rest])


@pytest.mark.parametrize("rows", [1, 5])
def test_fp8_when_a_number_is_nan_then_its_output_is_and_no_other(rows):
    weight, x = store(rand(4 * lanes(), 256, seed=7), (128, 128)), rand(rows, 256, seed=8)
    (expected,) = multiply_packed([(x, weight)])
    weight.values.view(torch.uint8)[9, 77] = 0xFF
    (out,) = multiply_packed([(x, weight)])
    others = [i for i in range(4 * lanes()) if i != 9]
    assert out[:, 9].isnan().all()
    assert torch.equal(out[:, others], expected[:, others])


def test_int4_when_rows_are_zeros_or_tiny_then_results_are():
    weight = store(rand(lanes(), 64, seed=9), (1, 32))
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-38), rand(64, seed=1) * 1e30])
    (out,) = multiply_packed([(x, weight)])
    assert (out[0] == 0).all()
    assert out.isfinite().all()
    assert (out[1].abs() < 1e-35).all()


def test_memory_when_it_ends_with_the_weight_then_nothing_behind_it_is_read_into_the_result():
    for block in INT4 + FP8:
        weight = store(rand(3 * lanes(), 256, seed=2), block)
        x = torch.full((5, 300), float("nan"))
        x[:2, :256] = rand(2, 256, seed=3)
        (out,) = multiply_packed([(x[:2, :256].contiguous(), weight)])
        assert out.isfinite().all()


@pytest.mark.parametrize("block", [*INT4, (128, 128)])
@pytest.mark.parametrize("tokens", [1, 9])
def test_experts_when_packed_then_match_the_reference(block, tokens):
    hidden, width, count, topk = 256, 128, 6, 3

    def experts(rows, columns, part_rows, seed):
        stored = [
            store(rand(rows, columns, seed=seed + e) * columns**-0.5, block, part_rows)
            for e in range(count)
        ]
        values = torch.stack([s.values.t() for s in stored]).transpose(1, 2)
        scale = torch.stack([s.scale.t() for s in stored]).transpose(1, 2)
        return QuantizedExperts(values, scale, block, torch.float32, part_rows)

    gate_up = experts(2 * width, hidden, (width, width), 10)
    down = experts(hidden, width, (hidden,), 50)
    x = rand(tokens, hidden, seed=1)
    assert can_multiply(x, gate_up.matrix(0))
    ids = torch.stack([torch.randperm(count)[:topk] for _ in range(tokens)])
    weights = torch.rand(tokens, topk)
    dense = [torch.stack([w[e] for e in range(count)]) for w in (gate_up, down)]
    expected = expert_mlp_reference(x, *dense, ids, weights)
    out = expert_mlp(x, gate_up, down, ids, weights)
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)
    padded = expert_mlp(x, gate_up, down, ids, weights, row_multiple=16)
    torch.testing.assert_close(padded, expected, atol=1e-3, rtol=1e-3)
    if tokens > 1:  # a token's bits do not depend on who else goes to its experts
        some = expert_mlp(x[2:5], gate_up, down, ids[2:5], weights[2:5], row_multiple=16)
        assert torch.equal(some, padded[2:5])


def test_formats_when_there_is_no_kernel_then_are_turned_into_numbers():
    step = lanes()
    assert not takes_format(True, (1, 64), (4 * step,), 128)
    assert not takes_format(True, (1, 32), (step, step + 1), 64)
    assert not takes_format(False, (128, 64), (128,), 128)
    assert not takes_format(False, (step + 1, 128), (4 * step,), 128)
    weight, x = store(rand(2 * step, 64, seed=1), (1, 32)), rand(2, 64, seed=2)
    assert not can_multiply(x.bfloat16(), weight)
    other = QuantizedMatrix(
        weight.values.contiguous(), weight.scale, (1, 32), torch.float32, weight.part_rows
    )
    assert not can_multiply(x, other)
    torch.testing.assert_close(linear(x, other), x @ weight.dense().T)
