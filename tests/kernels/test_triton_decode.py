"""Kernels of a decode step against their references: on a GPU if there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

from lingflash.kernels.moe_gemm import expert_mlp_reference
from lingflash.kernels.moe_gemm.decode import (
    BLOCK_ROWS,
    DecodeExperts,
    OneTokenTiles,
    down_decode,
    down_one_token,
    gate_up_decode,
    lane_order,
    pair_order,
    plan_rows,
)
from lingflash.kernels.moe_route import RoutingRule, route_tokens
from lingflash.kernels.moe_route.triton_few_tokens import ROUTER_PARTS, route_decode
from lingflash.kernels.moe_route.triton_one_token import norm_and_route_one
from lingflash.kernels.rmsnorm import group_rms_norm_reference, rms_norm_reference
from lingflash.kernels.rmsnorm.triton_add_parts import add_parts_rms_norm
from lingflash.kernels.sampling import noise_key, sample_tokens
from lingflash.kernels.sampling.triton_sample import sample_tokens_triton
from lingflash.kernels.skinny_gemm import skinny_gemm_reference
from lingflash.kernels.skinny_gemm.triton_few_rows import skinny_gemm_triton
from lingflash.kernels.skinny_gemm.triton_one_row import GroupNorm, RowNorm, one_row_product
from lingflash.quant.pack import dequantize, quantize_fp8, quantize_int4
from quant_support import relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


@pytest.mark.parametrize("tokens", [0, 1, 3, 40])
@pytest.mark.parametrize(("rows", "width"), [(40, 72), (256, 384)])
@pytest.mark.parametrize("quant", ["none", "block", "channel"])
@pytest.mark.parametrize("scaled", [False, True])
def test_skinny_gemm_when_sizes_are_odd_then_as_the_reference(tokens, rows, width, quant, scaled):
    w, scale = randn(rows, width), None
    x = randn(tokens, width + 8)[:, :width]
    x = (x * 1e6 if scaled else x).to(torch.bfloat16 if scaled or quant == "none" else torch.half)
    if quant == "none":
        w = w.to(torch.bfloat16)
    elif quant == "block":
        scale = torch.rand(-(-rows // 128), -(-width // 128), device=DEVICE) + 0.5
    else:
        scale = torch.rand(rows, 1, device=DEVICE) + 0.5
    if scale is not None:
        w = w.to(torch.float8_e4m3fn)
    out = torch.full((tokens, rows), float("nan"), device=DEVICE)
    skinny_gemm_triton(x, w, scale, out, scaled=scaled)
    expected = skinny_gemm_reference(x, w, scale)
    assert out.isfinite().all()
    if tokens:
        assert relative_error(out, expected) < (2e-3 if scaled else 1e-5)


@pytest.mark.parametrize(("rows", "width"), [(5, 256), (40, 384)])
@pytest.mark.parametrize("quant", ["none", "block"])
@pytest.mark.parametrize("norm", ["none", "row", "groups"])
@pytest.mark.parametrize("add", [False, True])
def test_one_row_product_when_normed_and_added_then_as_one_after_the_other(
    rows, width, quant, norm, add
):
    w, scale = randn(rows, width).to(torch.bfloat16), None
    if quant == "block":
        w = w.to(torch.float8_e4m3fn)
        scale = torch.rand(-(-rows // 128), -(-width // 128), device=DEVICE) + 0.5
    # Beyond float16, which a norm that is not fused would have to pass.
    x, weight = randn(1, width, dtype=torch.bfloat16) * 1e4, randn(width) * 1e4
    given, normed = None, x.float()
    if norm == "row":
        given, normed = RowNorm(weight, EPS), rms_norm_reference(x.float(), weight, EPS)
    elif norm == "groups":
        groups = width // 128
        squares = x.float().square().view(groups, 4, -1).sum(-1)
        given = GroupNorm(squares, EPS)
        normed = group_rms_norm_reference(x.float(), weight, groups, EPS)
        x = x.float() * weight
    out = randn(1, rows)
    expected = skinny_gemm_reference(normed, w, scale) + (out if add else 0.0)
    one_row_product(x, w, scale, out, norm=given, add=add)
    assert relative_error(out, expected) < 1e-5


def experts(fmt, count, rows, width):
    """Stored matrices of `count` experts and the numbers they stand for."""
    w = randn(count, rows, width) / width**0.5
    if fmt == "bf16":
        values = w.to(torch.bfloat16)
        return DecodeExperts(values, None), values.float()
    if fmt.startswith("fp8"):
        block = (1, 0) if fmt == "fp8-channel" else (128, 128)
        pairs = [quantize_fp8(m, block) for m in w.cpu()]
        values, scale = (torch.stack(part).to(DEVICE) for part in zip(*pairs, strict=True))
    else:
        block = (1, int(fmt.removeprefix("int4-")))
        pairs = [quantize_int4(m, block[1], torch.bfloat16) for m in w.cpu()]
        values, scale = (torch.stack(part).to(DEVICE) for part in zip(*pairs, strict=True))
    numbers = [
        dequantize(v, s, block, torch.float32)
        for v, s in zip(values.cpu(), scale.cpu(), strict=True)
    ]
    group = block[1] if fmt.startswith("int4") else 0
    return DecodeExperts(values, scale, group), torch.stack(numbers).to(DEVICE)


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize(
    ("fmt", "shared_fmt"),
    [
        ("bf16", None),
        ("bf16", "bf16"),
        ("fp8", "fp8"),
        ("int4-32", "bf16"),
        ("int4-128", "fp8-channel"),
    ],
)
def test_experts_when_few_tokens_come_then_as_the_reference(tokens, fmt, shared_fmt):
    count, hidden, width, topk = 5, 256, 128, 3
    gate_up, w1 = experts(fmt, count, 2 * width, hidden)
    down, w2 = experts(fmt, count, hidden, width)
    x = randn(tokens, hidden, dtype=torch.bfloat16)
    # The first expert is taken by all, the last by none.
    others = [torch.randperm(count - 2)[: topk - 1] + 1 for _ in range(tokens)]
    ids = torch.stack([torch.cat([torch.zeros(1), o]) for o in others]).to(DEVICE, torch.int32)
    weights = torch.rand(tokens, topk, device=DEVICE)
    expected = expert_mlp_reference(x, w1, w2, ids.long(), weights)
    shared = shared_down = None
    if shared_fmt is not None:
        shared, s1 = experts(shared_fmt, 1, 2 * width, hidden)
        shared_down, s2 = experts(shared_fmt, 1, hidden, width)
        none = torch.zeros(tokens, 1, dtype=torch.int64, device=DEVICE)
        expected += expert_mlp_reference(x, s1, s2, none, torch.ones(tokens, 1, device=DEVICE))
    plan = None if tokens == 1 else plan_rows(ids, count)
    plain = x.half()
    given, nibbles = plain, fmt.startswith("int4")
    if nibbles:
        given = torch.empty_like(plain)
        given[:, (pair_order if tokens == 1 else lane_order)(hidden)] = plain
    choices = topk + (shared is not None)
    act = torch.full((tokens, choices, width), float("nan"), device=DEVICE)
    gate_up_decode(given, gate_up, ids, plan, act, nibbles=nibbles, plain=plain, shared=shared)
    if plan is None:
        got = torch.zeros(1, hidden, device=DEVICE)
        down_one_token(act, down, ids, weights, got, shared=shared_down)
    else:
        parts = torch.full((tokens, choices, hidden), float("nan"), device=DEVICE)
        got = down_decode(act, down, ids, weights, plan, parts, shared=shared_down).sum(1)
    assert relative_error(got, expected) < (2e-3 if fmt == "fp8" and tokens > 1 else 5e-3)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("fmt", ["bf16", "fp8", "fp8-channel", "int4-32", "int4-128"])
@pytest.mark.parametrize("shared_fmt", [None, "fp8"])
def test_one_token_when_activations_pass_float16_then_the_residual_gains_the_sum(fmt, shared_fmt):
    count, hidden, width, topk, size = 4, 384, 640, 2, 3e4
    gate_up, w1 = experts(fmt, count, 2 * width, hidden)
    down, w2 = experts(fmt, count, hidden, width)
    x = randn(1, hidden, dtype=torch.half)
    x[:, ::3] *= size**0.25
    ids = torch.tensor([[3, 1]], dtype=torch.int32, device=DEVICE)
    weights = torch.rand(1, topk, device=DEVICE)
    if gate_up.scale is None:
        gate_up, w1 = DecodeExperts(gate_up.values * 128, None), w1 * 128
    else:
        scale = gate_up.scale * 128
        gate_up, w1 = DecodeExperts(gate_up.values, scale, gate_up.group), w1 * 128
    expected = expert_mlp_reference(x.float(), w1, w2, ids.long(), weights)
    shared = shared_down = None
    if shared_fmt is not None:
        shared, s1 = experts(shared_fmt, 1, 2 * width, hidden)
        shared_down, s2 = experts(shared_fmt, 1, hidden, width)
        none, one = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
        expected += expert_mlp_reference(x.float(), s1, s2, none.to(DEVICE), one.to(DEVICE))
    given, nibbles = x, fmt.startswith("int4")
    if nibbles:
        given = torch.empty_like(x)
        given[:, pair_order(hidden)] = x
    act = torch.full((1, topk + (shared is not None), width), float("nan"), device=DEVICE)
    gate_up_decode(
        given, gate_up, ids, None, act, nibbles=nibbles, plain=x, shared=shared,
        one_token=OneTokenTiles(16, 4),
    )  # fmt: skip
    before = expected.abs().mean() * randn(1, hidden)
    residual = before.clone()
    down_one_token(
        act, down, ids, weights, residual, shared=shared_down,
        tiles=OneTokenTiles(32, 4, ahead=1),
    )  # fmt: skip
    assert expected.abs().max() > 65504
    # BF16 holds the activations for FP8 and BF16 weights, as it does in the model.
    assert relative_error(residual, before + expected) < (1e-3 if nibbles else 5e-3)


def test_one_token_when_nothing_is_active_then_the_residual_stays():
    gate_up, _ = experts("int4-128", 1, 256, 128)
    down, _ = experts("int4-128", 1, 128, 128)
    ids = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)
    act = torch.full((1, 1, 128), float("nan"), device=DEVICE)
    x = torch.zeros(1, 128, dtype=torch.half, device=DEVICE)
    gate_up_decode(x, gate_up, ids, None, act, nibbles=True)
    residual = randn(1, 128, dtype=torch.bfloat16)
    before = residual.clone()
    down_one_token(act, down, ids, torch.ones(1, 1, device=DEVICE), residual)
    assert torch.equal(residual, before)


@pytest.mark.parametrize(
    ("tokens", "topk", "count"), [(1, 2, 4), (9, 3, 5), (40, 1, 2), (64, 8, 20)]
)
def test_row_plan_when_routed_unevenly_then_each_row_is_in_a_block_of_its_expert(
    tokens, topk, count
):
    ids = torch.stack([torch.rand(count).square().argsort()[:topk] for _ in range(tokens)])
    ids[: tokens // 2] = torch.arange(topk)
    plan = plan_rows(ids.to(DEVICE, torch.int32), count)
    used = int(plan.num_used)
    seen = []
    for block in range(used):
        rows = plan.rows[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS].tolist()
        live = [row for row in rows if row < tokens * topk]
        assert live
        assert all(row == tokens * topk for row in rows[len(live) :])
        assert all(int(ids.flatten()[row]) == int(plan.experts[block]) for row in live)
        seen += live
    assert sorted(seen) == list(range(tokens * topk))


@pytest.mark.parametrize(("tokens", "count", "groups"), [(1, 8, 4), (5, 96, 8), (70, 40, 4)])
def test_router_when_called_then_the_same_experts_and_weights(tokens, count, groups):
    x, w_gate, bias = randn(tokens, 200, dtype=torch.half), randn(count, 200), randn(count)
    rule = RoutingRule(groups, 2, 3, norm_topk_prob=True, scaling_factor=2.5)
    ids, weights = route_tokens(x, w_gate, bias, rule)
    got_ids = torch.full((tokens, 3), -7, dtype=torch.int32, device=DEVICE)
    got_weights = torch.full((tokens, 3), float("nan"), device=DEVICE)
    parts = torch.full((tokens, ROUTER_PARTS, count), float("nan"), device=DEVICE)
    route_decode(x, w_gate, bias, parts, got_ids, got_weights, rule)
    assert torch.equal(got_ids.long(), ids)
    torch.testing.assert_close(got_weights, weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "groups"), [(8, 4), (21, 3)])
@pytest.mark.parametrize("ordered", [False, True])
def test_router_of_one_token_when_it_norms_then_as_the_norm_and_the_router(count, groups, ordered):
    width = 256
    residual, weight = randn(1, width, dtype=torch.bfloat16), randn(width)
    w_gate, bias = randn(count, width), randn(count)
    rule = RoutingRule(groups, 2, 3, norm_topk_prob=True, scaling_factor=2.5)
    normed = rms_norm_reference(residual.float(), weight, EPS)
    ids, weights = route_tokens(normed, w_gate, bias, rule)
    got_ids = torch.full((1, 3), -7, dtype=torch.int32, device=DEVICE)
    got_weights = torch.full((1, 3), float("nan"), device=DEVICE)
    logits, x, other = (torch.full((1, n), float("nan"), device=DEVICE) for n in (count, 256, 256))
    order = lane_order(width).to(DEVICE, torch.int32)
    norm_and_route_one(
        residual, weight, EPS, w_gate, bias, logits, x, (other, order) if ordered else None,
        got_ids, got_weights, rule,
    )  # fmt: skip
    assert torch.equal(got_ids.long(), ids)
    torch.testing.assert_close(got_weights, weights, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x, normed, rtol=1e-5, atol=1e-5)
    assert torch.equal(other[:, order.long()], x) if ordered else other.isnan().all()


@pytest.mark.parametrize("num_parts", [0, 1, 3])
def test_norm_when_parts_are_added_then_the_residual_keeps_their_sum(num_parts):
    width = 256
    residual, weight = randn(3, width, dtype=torch.bfloat16), randn(width)
    parts = randn(3, num_parts, width) if num_parts else None
    total = residual.float()
    if parts is not None:
        total = total + parts.sum(1)
    order = lane_order(width).to(DEVICE, torch.int32)
    out, ordered = (torch.full((3, width), float("nan"), device=DEVICE) for _ in range(2))
    add_parts_rms_norm(parts, residual, weight, EPS, out, (ordered, order))
    torch.testing.assert_close(residual, total.bfloat16())
    expected = rms_norm_reference(total.bfloat16().float(), weight, EPS)
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(ordered[:, order.long()], out)


@pytest.mark.parametrize("vocab_size", [7, 5000])
@pytest.mark.parametrize("masked", [False, True])
def test_sampling_when_noise_is_keyed_then_the_tokens_of_the_torch_function(vocab_size, masked):
    rows = 6
    logits = randn(rows, vocab_size) * 3
    temperature = torch.tensor([0.0, 1.0, 0.3, 2.0, 0.0, 1.0], device=DEVICE)
    keys = [noise_key(5, 0, i) for i in range(rows)]
    allowed = None
    expected = logits
    if masked:
        forbidden = torch.rand(rows, vocab_size, device=DEVICE) < 0.9
        forbidden[:, 3] = False
        expected = logits.masked_fill(forbidden, float("-inf"))
        bits = torch.zeros(rows, (vocab_size + 31) // 32 * 32, dtype=torch.int64)
        bits[:, :vocab_size] = ~forbidden.cpu()
        words = (bits.view(rows, -1, 32) << torch.arange(32)).sum(-1)
        allowed = words.to(torch.int32).to(DEVICE)
    scaled = expected / torch.where(temperature == 0, 1.0, temperature)[:, None]
    tokens = sample_tokens(scaled, temperature, keys)
    got = sample_tokens_triton(logits, temperature, torch.tensor(keys, device=DEVICE), allowed)
    assert torch.equal(got, tokens)
