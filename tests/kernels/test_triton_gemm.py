"""Products of many rows against their references: on a GPU if there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

from lingflash.kernels.moe_gemm import expert_mlp, expert_mlp_reference, silu_and_mul
from lingflash.kernels.moe_gemm.formats import expert_format
from lingflash.kernels.moe_gemm.triton_grouped import GroupedTile, expert_mlp_grouped
from lingflash.kernels.moe_gemm.triton_sort import sort_rows
from lingflash.kernels.moe_route import RoutingRule, route_tokens
from lingflash.kernels.moe_route.triton_logits import gate_logits, split_bfloat16
from lingflash.kernels.quant_gemm import (
    Fp8Rows,
    Rows,
    _with_room,
    fp8_gemm,
    fp8_gemm_reference,
    quantize_rows_fp8,
    quantize_rows_reference,
)
from lingflash.kernels.quant_gemm.triton_fp8 import (
    Tile,
    fp8_gemm_triton,
    quantize_rows_triton,
    silu_and_mul_fp8_triton,
    silu_and_mul_triton,
)
from lingflash.quant import matrix
from lingflash.quant.matrix import QuantizedExperts, QuantizedMatrix, gated_linear, linear
from lingflash.quant.pack import quantize_fp8, quantize_int4
from quant_support import relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
# Rounding rows of random numbers to FP8, once before each of two products.
FP8_LIMIT = 5e-2
# The interpreter cuts bfloat16 off instead of rounding it.
BF16_LIMIT = 6e-3 if ON_GPU else 1.6e-2

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def randn(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def numbers(rows):
    return rows.values.float() * rows.scale.t().repeat_interleave(128, 1)


@pytest.mark.parametrize(("rows", "columns"), [(0, 128), (1, 128), (37, 384)])
def test_rows_when_strided_and_partly_zero_then_are_rounded_as_the_reference(rows, columns):
    x = randn(rows, columns + 64)[:, :columns] * torch.logspace(-6, 3, columns, device=DEVICE).to(
        torch.bfloat16
    )
    x[rows // 2 :, :128] = 0
    if rows > 1:
        x = torch.cat([x, x], 1)[:, :columns]
    got = Fp8Rows(*quantize_rows_triton(x))
    expected = Fp8Rows(*quantize_rows_reference(x))
    torch.testing.assert_close(got.scale, expected.scale)
    # A scale that differs by a rounding may move a number that lies between two others.
    same = (got.values.view(torch.uint8) == expected.values.view(torch.uint8)).float()
    assert not rows or same.mean() > 0.99
    torch.testing.assert_close(numbers(got), numbers(expected), rtol=0.13, atol=1e-3)


@pytest.mark.parametrize("rows", [0, 1, 35])
def test_silu_when_quantized_then_as_in_two_steps(rows):
    gate_up = randn(rows, 512)
    gate, up = gate_up.float().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    got = numbers(Fp8Rows(*silu_and_mul_fp8_triton(gate_up)))
    assert got.shape == expected.shape
    assert relative_error(got, expected) < 3.5e-2


@pytest.mark.parametrize("tile", [Tile(16, 64, 4, 2, pieces=2), Tile(64, 128, 4, 3)])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(1, 16, 128), (37, 200, 256), (130, 384, 384)]
)
@pytest.mark.parametrize("block", [(128, 128), (1, 0)])
def test_fp8_product_when_sizes_are_odd_then_as_the_reference(rows, columns, depth, block, tile):
    x = randn(rows, depth)
    w8, w_scale = quantize_fp8(randn(columns, depth, dtype=torch.float32), block)
    fp8 = quantize_rows_fp8(x)
    expected = fp8_gemm_reference(fp8.values, fp8.scale, w8, w_scale)
    got = fp8_gemm_triton(fp8.values, fp8.scale, w8, w_scale, tile)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, expected) < BF16_LIMIT
    unrounded = x.float() @ (
        fp8_gemm_reference(
            torch.eye(depth, device=DEVICE).to(torch.float8_e4m3fn),
            torch.ones(depth // 128, depth, device=DEVICE),
            w8,
            w_scale,
        )
    )
    assert relative_error(got, unrounded) < 4e-2


@pytest.mark.parametrize(
    ("tokens", "topk", "experts"), [(1, 2, 4), (9, 3, 5), (70, 2, 3), (300, 1, 2)]
)
def test_sorted_rows_when_routed_unevenly_then_blocks_cover_each_experts_places(
    tokens, topk, experts
):
    ids = torch.randint(experts, (tokens, topk), device=DEVICE) // 2
    rows = sort_rows(ids, experts, 16)
    order = ids.flatten().argsort(stable=True)
    assert torch.equal(rows.tokens.long(), order // topk)
    assert torch.equal(rows.places.long()[order], torch.arange(tokens * topk, device=DEVICE))
    owners = ids.flatten()[order].tolist()
    seen = []
    for owner, begin, end in rows.blocks.t().tolist():
        if owner < 0:
            continue
        mine = list(range(begin, min(begin + 16, end)))
        assert mine
        assert all(owners[place] == owner for place in mine)
        seen += mine
    assert seen == list(range(tokens * topk))


def experts_in(name, count, parts, columns):
    """Random matrices [count, sum(parts), columns] stored in this format."""
    dense = randn(count, sum(parts), columns, dtype=torch.float32) / columns**0.5
    if name == "bf16":
        return dense.to(torch.bfloat16)
    found = []
    for expert in dense:
        pieces = expert.split(list(parts))
        if name.startswith("int4"):
            found.append([quantize_int4(p, int(name[4:])) for p in pieces])
        else:
            found.append([quantize_fp8(p, (128, 128) if name == "fp8" else (1, 0)) for p in pieces])
    values = torch.stack([torch.cat([v.view(torch.uint8) for v, _ in e]) for e in found])
    values = values.view(found[0][0][0].dtype)
    scale = torch.stack([torch.cat([s for _, s in e]) for e in found])
    block = {"fp8": (128, 128), "fp8-rows": (1, 0)}.get(name) or (1, int(name[4:]))
    return QuantizedExperts(values, scale, block, torch.bfloat16, tuple(parts))


def dense(weight):
    if isinstance(weight, torch.Tensor):
        return weight
    return torch.stack([weight[e] for e in range(weight.shape[0])])


@pytest.mark.parametrize("name", ["bf16", "fp8", "fp8-rows", "int432", "int4128"])
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("spread", ["all", "one"])
def test_grouped_experts_in_each_format_then_as_the_reference(name, tokens, spread):
    experts, hidden, width, topk = 5, 256, 128, 2
    x = randn(tokens, hidden)
    w1 = experts_in(name, experts, [width, width], hidden)
    w2 = experts_in(name, experts, [hidden], width)
    kind = expert_format(w1)
    assert kind is not None
    assert kind == expert_format(w2)
    ids = torch.stack([torch.randperm(experts, device=DEVICE)[:topk] for _ in range(tokens)])
    if spread == "one":
        ids = torch.full_like(ids, 3)
    weights = torch.rand(tokens, topk, device=DEVICE)
    shared = randn(tokens, hidden) if spread == "one" else None
    expected = expert_mlp_reference(x, dense(w1), dense(w2), ids, weights)
    if shared is not None:
        expected = expected + shared.float()
    got = expert_mlp_grouped(x, w1, w2, ids, weights, kind, shared=shared)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, expected) < (FP8_LIMIT if "fp8" in name else BF16_LIMIT)


@pytest.mark.parametrize("name", ["bf16", "fp8", "int432"])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("tokens", [60, 150])
def test_grouped_experts_when_a_last_block_is_half_then_as_the_reference(name, permuted, tokens):
    experts, hidden, width = 3, 128, 128
    x = randn(tokens, hidden)
    w1 = experts_in(name, experts, [width, width], hidden)
    w2 = experts_in(name, experts, [hidden], width)
    kind = expert_format(w1)
    assert kind is not None
    ids = torch.ones(tokens, 1, dtype=torch.int64, device=DEVICE)
    weights = torch.rand(tokens, 1, device=DEVICE)
    depth = 128 if name == "fp8" else 64
    tile = GroupedTile(128, 128, 8, 2, depth, permuted=permuted)
    expected = expert_mlp_reference(x, dense(w1), dense(w2), ids, weights)
    got = expert_mlp_grouped(x, w1, w2, ids, weights, kind, tiles=(tile, tile))
    assert relative_error(got, expected) < (FP8_LIMIT if "fp8" in name else BF16_LIMIT)


@pytest.mark.parametrize(("hidden", "width"), [(72, 24), (200, 136)])
def test_grouped_bf16_when_widths_are_no_multiple_of_a_tile_then_as_the_reference(hidden, width):
    x = randn(21, hidden)
    w1, w2 = randn(3, 2 * width, hidden) / 8, randn(3, hidden, width) / 8
    ids = torch.randint(3, (21, 2), device=DEVICE)
    weights = torch.rand(21, 2, device=DEVICE)
    kind = expert_format(w1)
    assert kind is not None
    got = expert_mlp_grouped(x, w1, w2, ids, weights, kind)
    assert relative_error(got, expert_mlp_reference(x, w1, w2, ids, weights)) < BF16_LIMIT


def test_grouped_experts_when_cut_into_passes_then_the_same_numbers(monkeypatch):
    from lingflash.kernels.moe_gemm import triton_grouped

    x = randn(50, 128)
    w1, w2 = experts_in("fp8", 4, [128, 128], 128), experts_in("fp8", 4, [128], 128)
    ids, weights = torch.randint(4, (50, 2), device=DEVICE), torch.rand(50, 2, device=DEVICE)
    kind = expert_format(w1)
    assert kind is not None
    tiles = (GroupedTile(16, 128, 4, 2), GroupedTile(16, 128, 4, 2))
    whole = expert_mlp_grouped(
        x, w1, w2, ids, weights, kind, x_fp8=quantize_rows_fp8(x), tiles=tiles
    )
    monkeypatch.setattr(triton_grouped, "PASS_TOKENS", 24)
    cut = expert_mlp_grouped(x, w1, w2, ids, weights, kind, tiles=tiles)
    # The rows are rounded to FP8 by the reference or by a kernel, which may differ by a rounding.
    torch.testing.assert_close(cut, whole, rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not ON_GPU, reason="sizes for a GPU")
@pytest.mark.parametrize("name", ["bf16", "fp8", "fp8-rows", "int432", "int4128"])
def test_grouped_experts_at_the_models_sizes_then_as_float32_products(name):
    experts, hidden, width, tokens, topk = 8, 4096, 1024, 2000, 4
    x = randn(tokens, hidden)
    w1 = experts_in(name, experts, [width, width], hidden)
    w2 = experts_in(name, experts, [hidden], width)
    ids = torch.stack([torch.randperm(experts, device=DEVICE)[:topk] for _ in range(tokens)])
    weights = torch.rand(tokens, topk, device=DEVICE)
    kind = expert_format(w1)
    assert kind is not None
    expected = torch.zeros(tokens, hidden, device=DEVICE)
    for expert in range(experts):
        gate, up = (x.float() @ w1[expert].float().t()).chunk(2, -1)
        out = (torch.nn.functional.silu(gate) * up) @ w2[expert].float().t()
        expected += out * ((ids == expert) * weights).sum(1, keepdim=True)
    got = expert_mlp_grouped(x, w1, w2, ids, weights, kind)
    assert relative_error(got, expected) < (FP8_LIMIT if "fp8" in name else BF16_LIMIT)


@pytest.mark.parametrize("shape", [(3, 5), (8, 300)])
def test_gate_when_split_into_bfloat16_then_nothing_is_lost(shape):
    weight = randn(*shape, dtype=torch.float32) * torch.logspace(-8, 4, shape[1], device=DEVICE)
    parts = split_bfloat16(weight)
    assert parts.dtype == torch.bfloat16
    total = parts.double().sum(0)
    # The interpreter cuts off instead of rounding, which loses another bit.
    assert ((total - weight.double()).abs() <= 2.0 ** (-24 if ON_GPU else -22) * weight.abs()).all()


@pytest.mark.skipif(not ON_GPU, reason="a product with float32 results is for GPUs")
def test_gate_when_tokens_are_many_then_as_in_float64():
    x, w_gate = randn(700, 4096), randn(256, 4096, dtype=torch.float32)
    expected = x.double() @ w_gate.double().t()
    assert (
        relative_error(gate_logits(x, w_gate).double(), expected) < 1e-5
    )  # tensor cores round sums a little


@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 24), (9, 1030)])
def test_silu_when_widths_are_odd_then_as_torch(rows, width):
    gate_up = randn(rows, 2 * width + 3, dtype=torch.float32)[:, : 2 * width]
    gate, up = gate_up.chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(silu_and_mul_triton(gate_up), expected, rtol=1e-5, atol=1e-6)


def stacked(parts, columns, block):
    """A matrix [sum(parts), columns] in FP8, bfloat16 to compute in."""
    pieces = [quantize_fp8(randn(r, columns, dtype=torch.float32), block) for r in parts]
    values = torch.cat([v.view(torch.uint8) for v, _ in pieces]).view(torch.float8_e4m3fn)
    scale = torch.cat([s for _, s in pieces])
    return QuantizedMatrix(values, scale, block, torch.bfloat16, tuple(parts))


@pytest.mark.parametrize(
    ("parts", "columns", "block", "fits"),
    [
        ([256, 128, 40], 256, (128, 128), True),
        ([40, 128], 256, (128, 128), False),  # the second part's blocks begin within one
        ([40, 24], 128, (1, 0), True),
        ([128], 200, (128, 128), False),
        ([128], 128, (64, 64), False),
    ],
)
def test_linear_when_rows_are_many_and_weights_fp8_then_as_the_dequantized_product(
    monkeypatch, parts, columns, block, fits
):
    weight = stacked(parts, columns, block)
    assert matrix._is_fp8_grid(weight) == fits
    x = randn(300, columns)
    expected = x.float() @ weight.dense().float().t()
    if not ON_GPU:  # the rule but for the device
        monkeypatch.setattr(matrix, "_takes_fp8", lambda x, w: matrix._is_fp8_grid(w))
    rows = Rows(x)
    got = linear(rows, weight)
    assert (rows._fp8 is not None) == fits
    assert relative_error(got, expected) < 4e-2
    assert torch.equal(linear(x, weight), got)


def test_gated_linear_when_weights_are_fp8_then_as_in_two_steps(monkeypatch):
    if not ON_GPU:
        monkeypatch.setattr(matrix, "_takes_fp8", lambda x, w: matrix._is_fp8_grid(w))
    gate_up, weight = randn(270, 512), stacked([128], 256, (128, 128))
    expected = silu_and_mul(gate_up.float()) @ weight.dense().float().t()
    assert relative_error(gated_linear(gate_up, weight), expected) < 4e-2


@pytest.mark.skipif(not ON_GPU, reason="the grouped kernels are taken on a GPU")
@pytest.mark.parametrize("name", ["bf16", "fp8", "int432"])
@pytest.mark.parametrize("tokens", [257, 700])
def test_experts_when_tokens_are_many_on_a_gpu_then_the_grouped_kernels_agree(name, tokens):
    x, shared = randn(tokens, 256), randn(tokens, 256)
    w1, w2 = experts_in(name, 6, [128, 128], 256), experts_in(name, 6, [256], 128)
    ids = torch.randint(6, (tokens, 2), device=DEVICE)
    weights = torch.rand(tokens, 2, device=DEVICE)
    expected = expert_mlp_reference(x, dense(w1), dense(w2), ids, weights) + shared.float()
    got = expert_mlp(Rows(x), w1, w2, ids, weights, shared=shared)
    assert relative_error(got, expected) < (FP8_LIMIT if "fp8" in name else BF16_LIMIT)


@pytest.mark.skipif(not ON_GPU, reason="cuBLAS is on a GPU")
@pytest.mark.parametrize("rows", [65, 66, 67, 300, 1341, 8191, 8192])
def test_fp8_product_of_cublas_when_compared_then_is_ours(rows):
    x = quantize_rows_fp8(randn(rows + 8, 4096))
    w8, w_scale = quantize_fp8(randn(512, 4096, dtype=torch.float32), (128, 128))
    for part in (x.cut(0, rows), x.cut(8, rows + 8), quantize_rows_fp8(randn(rows, 4096))):
        ours = fp8_gemm_triton(part.values, part.scale, w8, w_scale)
        got = fp8_gemm(part, w8, w_scale)
        assert got.shape == ours.shape
        assert relative_error(got, ours) < BF16_LIMIT


@pytest.mark.parametrize("rows", [1, 3, 4, 7])
def test_rows_when_given_room_then_are_the_same_with_anything_behind(rows):
    x = quantize_rows_triton(randn(rows, 256))
    for part in (Fp8Rows(*x), Fp8Rows(*x).cut(rows // 2, rows)):
        count, room = part.shape[0], -(-part.shape[0] // 4) * 4
        values, scale = _with_room(part.values, 0, room), _with_room(part.scale, 1, room)
        assert (values.shape, scale.shape) == ((room, 256), (2, room))
        assert torch.equal(values[:count].float(), part.values.float())
        assert torch.equal(scale[:, :count], part.scale)


@pytest.mark.skipif(not ON_GPU, reason="the GPU's router against the CPU's")
def test_router_when_on_a_gpu_then_chooses_as_the_cpu_does():
    x, w_gate, bias = randn(500, 4096), randn(256, 4096, dtype=torch.float32) / 64, randn(256)
    rule = RoutingRule(8, 4, 8, norm_topk_prob=True, scaling_factor=2.5)
    got_ids, got_weights = route_tokens(x, w_gate, bias.float() / 100, rule)
    ids, weights = route_tokens(x.cpu(), w_gate.cpu(), bias.float().cpu() / 100, rule)
    same = (got_ids.cpu() == ids).all(1)
    assert same.float().mean() > 0.98  # a near-tie may flip
    torch.testing.assert_close(got_weights.cpu()[same], weights[same], rtol=1e-4, atol=1e-5)
