"""Triton kernels against their references: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import pytest
import torch

from lingflash.kernels.lightning_attn import decay_tables, lightning_attention_reference
from lingflash.kernels.lightning_attn.triton_decode import (
    gated_lightning_decode_triton,
    lightning_decode_triton,
)
from lingflash.kernels.mla import mla_attention_reference
from lingflash.kernels.mla.triton_decode import mla_decode_triton
from lingflash.kernels.moe_route import RoutingRule, route_tokens
from lingflash.kernels.moe_route.triton_choose import choose_experts_triton
from lingflash.kernels.rmsnorm import (
    add_rms_norm,
    group_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from lingflash.kernels.rmsnorm.triton_rows import (
    add_rms_norm_triton,
    gated_group_rms_norm_triton,
    rms_norm_triton,
)
from lingflash.kernels.rope import apply_rope_half_split, rope_inv_freq, rope_table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def tolerance(dtype):
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 5), (3, 96), (2, 200)])
def test_rms_norm_when_rows_are_strided_then_as_the_reference(rows, width, dtype):
    x = randn(rows, width + 7, dtype=dtype)[:, :width]
    weight = randn(width, dtype=dtype)
    expected = rms_norm_reference(x, weight, EPS)
    torch.testing.assert_close(rms_norm_triton(x, weight, EPS), expected, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_rms_norm_when_called_then_the_residual_is_updated_and_normed(dtype):
    x, residual, weight = randn(3, 40, dtype=dtype), randn(3, 40, dtype=dtype), randn(40)
    total = residual + x
    out = add_rms_norm_triton(x, residual, weight, EPS)
    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(
        out, rms_norm_reference(total, weight.to(dtype), EPS), **tolerance(dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_added_norm_when_dispatched_then_the_sum_and_its_norm(dtype):
    x, residual, weight = (randn(*shape, dtype=dtype) for shape in ((3, 47), (3, 40), (40,)))
    x = x[:, :40]
    expected = residual + x
    total, out = add_rms_norm(x, residual.clone(), weight, EPS)
    assert torch.equal(total, expected)
    torch.testing.assert_close(out, rms_norm(expected, weight, EPS), **tolerance(dtype))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gated_group_norm_when_groups_differ_then_as_the_reference(groups):
    x, gate, weight = randn(3, 24), randn(3, 50)[:, :24], randn(24)
    expected = group_rms_norm_reference(x, weight, groups, EPS) * gate.sigmoid()
    got = gated_group_rms_norm_triton(x, gate, weight, groups, EPS)
    torch.testing.assert_close(got, expected, **tolerance(torch.float32))


@pytest.mark.parametrize(
    ("experts", "groups", "topk_groups", "topk"),
    [(8, 1, 1, 2), (8, 4, 2, 2), (12, 3, 2, 5), (6, 6, 3, 3), (20, 4, 2, 3), (256, 8, 4, 8)],
)
@pytest.mark.parametrize(("has_bias", "normalise"), [(False, True), (True, False)])
def test_router_when_groups_limit_it_then_the_same_experts_and_weights(
    experts, groups, topk_groups, topk, has_bias, normalise
):
    x, w_gate = randn(5, 16), randn(experts, 16)
    bias = randn(experts) - 2 if has_bias else None
    rule = RoutingRule(groups, topk_groups, topk, norm_topk_prob=normalise, scaling_factor=2.5)
    ids, weights = route_tokens(x, w_gate, bias, rule)
    got_ids, got_weights = choose_experts_triton(x @ w_gate.t(), bias, rule)
    assert torch.equal(got_ids, ids)
    torch.testing.assert_close(got_weights, weights, **tolerance(torch.float32))


@pytest.mark.parametrize(("heads", "rank", "rope"), [(3, 24, 8), (16, 32, 16), (40, 24, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mla_decode_when_contexts_differ_then_as_the_reference(heads, rank, rope, dtype):
    block_size, lengths = 4, [1, 4, 37]
    nope = value = 8
    num_blocks = 40
    latents = randn(num_blocks, block_size, rank + rope, dtype=dtype).float()
    tables = torch.zeros(3, 10, dtype=torch.int64)
    order = torch.randperm(num_blocks)
    for i, length in enumerate(lengths):
        count = -(-length // block_size)
        tables[i, :count] = order[10 * i : 10 * i + count]
    unused = torch.ones(num_blocks, dtype=torch.bool)
    unused[tables.unique()] = False
    latents[unused] = float("nan")
    w_kvb = randn(heads, nope + value, rank)
    q_nope, q_rope = randn(3, heads, nope), randn(3, heads, rope)
    query = torch.cat([torch.einsum("thn,hnr->thr", q_nope, w_kvb[:, :nope]), q_rope], -1)
    mixed = mla_decode_triton(
        query.to(dtype).contiguous(),
        latents.to(dtype),
        tables.to(DEVICE),
        torch.tensor(lengths, device=DEVICE),
        0.3,
        rank=rank,
        max_length=40,
        part_tokens=16,
    )
    out = torch.einsum("thr,hvr->thv", mixed.float(), w_kvb[:, nope:])
    limit = 2e-4 if dtype == torch.float32 else 0.15
    for i, length in enumerate(lengths):
        cached = latents[tables[i]].flatten(0, 1)[:length]
        expected = mla_attention_reference(q_nope[i : i + 1], q_rope[i : i + 1], cached, w_kvb, 0.3)
        torch.testing.assert_close(out[i : i + 1], expected, rtol=limit, atol=limit)


@pytest.mark.parametrize(
    ("dim", "rotary", "has_norm", "silu", "num_seqs"),
    [
        (8, 8, True, False, 2),
        (12, 6, False, True, 2),
        (40, 40, True, False, 2),
        (40, 40, True, False, 32),
    ],
)
def test_lightning_decode_when_tails_fill_and_fold_then_as_the_recurrence(
    dim, rotary, has_norm, silu, num_seqs
):
    heads, steps = 3, 19
    inner = heads * dim
    rate = torch.tensor([2**-0.25, 0.05, 1e-6], dtype=torch.float64)
    tables = decay_tables(rate, 64, dim, DEVICE)
    fused = randn(num_seqs, steps, 4 * inner)
    norm = randn(2, 1, dim) if has_norm else None
    angles = rope_table(rope_inv_freq(rotary, 1000.0), steps, 1.0, DEVICE)
    cos, sin = angles[:, None].chunk(2, -1)
    sizes = [(num_seqs + 2, heads, n, dim) for n in (dim, 20, 20)]
    memory = [torch.full(size, float("nan"), device=DEVICE) for size in sizes]
    slots = torch.arange(1, num_seqs + 1, device=DEVICE).flip(0)
    for x in memory:
        x[slots] = 0.0
    got = []
    for t in range(steps):
        offsets = torch.full((num_seqs,), t % 16, device=DEVICE)
        at = (angles[t].expand(num_seqs, 1, -1)).chunk(2, -1)
        got.append(
            lightning_decode_triton(
                fused[:, t], norm, *at, tables, *memory, slots, offsets, eps=EPS, silu=silu
            )
        )
    for i in range(num_seqs):
        qkv = fused[i, :, : 3 * inner]
        qkv = torch.nn.functional.silu(qkv) if silu else qkv
        q, k, v = (part.reshape(steps, heads, dim) for part in qkv.chunk(3, -1))
        if norm is not None:
            q, k = (rms_norm_reference(x, w[0], EPS) for x, w in zip((q, k), norm, strict=True))
        q, k = (apply_rope_half_split(x, cos, sin).double() for x in (q, k))
        expected, _ = lightning_attention_reference(q, k, v.double(), rate.to(DEVICE))
        mine = torch.stack([out[i].view(heads, dim) for out in got]).double()
        assert (mine - expected).abs().max() < 2e-5 * expected.abs().max()


def test_lightning_decode_when_gated_then_only_the_norm_factor_is_left():
    heads, dim, num_seqs, groups = 4, 40, 3, 2
    inner = heads * dim
    tables = decay_tables(torch.full((heads,), 0.1, dtype=torch.float64), 64, dim, DEVICE)
    fused, weight = randn(num_seqs, 4 * inner + 8)[:, : 4 * inner], randn(inner)
    cos, sin = randn(num_seqs, 1, 4), randn(num_seqs, 1, 4)
    memory = [randn(4, heads, n, dim) for n in (dim, 16, 16)]
    slots, offsets = (torch.tensor(x, device=DEVICE) for x in ([3, 1, 0], [2, 15, 0]))
    given = fused, None, cos, sin, tables
    plain = [x.clone() for x in memory]
    out = lightning_decode_triton(*given, *plain, slots, offsets, eps=EPS)
    expected = gated_group_rms_norm_triton(out, fused[:, 3 * inner :], weight, groups, EPS)
    y, squares = gated_lightning_decode_triton(
        *given, *memory, slots, offsets, w_gate=weight, eps=EPS
    )
    means = squares.view(num_seqs, groups, -1).sum(-1) / (inner // groups)
    factors = (means + EPS).rsqrt().repeat_interleave(inner // groups, 1)
    torch.testing.assert_close(y * factors, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(plain, memory, strict=True))
