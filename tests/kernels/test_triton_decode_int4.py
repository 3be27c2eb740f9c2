"""INT4 experts of few tokens against their reference: on a GPU or, without one, interpreted."""

from __future__ import annotations

import pytest
import torch

from lingflash.kernels.moe_gemm.decode import (
    DecodeExperts,
    ExpertTiles,
    Int4Tiles,
    down_decode,
    gate_up_decode,
    lane_order,
    plan_rows,
)
from lingflash.quant.pack import dequantize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Weights, activations and what is between the products are rounded to bfloat16, 2^-9 at most.
LIMIT = 5e-3


def int4_experts(count, rows, width, group, scale_dtype=torch.bfloat16):
    """Random words of nibbles, scales of both signs, and the numbers that they stand for."""
    words = torch.randint(-(2**31), 2**31, (count, rows, width // 8), device=DEVICE).int()
    scale = torch.rand(count, rows, width // group, device=DEVICE) + 0.5
    scale = (scale * torch.randn_like(scale).sign() / 5 / width**0.5).to(scale_dtype)
    numbers = [
        dequantize(w, s, (1, group), torch.float32) for w, s in zip(words, scale, strict=True)
    ]
    return DecodeExperts(words, scale, group), numbers


def routed(tokens, count, topk):
    """Choices of each token; the first expert is taken by all, so that blocks of rows are full."""
    others = torch.stack([torch.randperm(count - 1)[: topk - 1] + 1 for _ in range(tokens)])
    ids = torch.cat([torch.zeros(tokens, 1, dtype=others.dtype), others], 1)
    return ids.to(DEVICE, torch.int32), torch.rand(tokens, topk, device=DEVICE)


def reference(x, w1, w2, ids, weights):
    total = torch.zeros_like(x)
    for expert, (first, second) in enumerate(zip(w1, w2, strict=True)):
        gate, up = (x @ first.t()).chunk(2, -1)
        out = (torch.nn.functional.silu(gate) * up) @ second.t()
        total += out * ((ids == expert) * weights).sum(1, keepdim=True)
    return total


def run(x, gate_up, down, ids, weights, tiles=None, rows=16):
    tokens, topk = ids.shape
    hidden, width = x.shape[1], down.values.shape[2] * 8
    given = torch.empty_like(x)
    given[:, lane_order(hidden)] = x
    plan = plan_rows(ids, gate_up.values.shape[0], rows)
    act = torch.full((tokens, topk, width), float("nan"), device=DEVICE).bfloat16()
    out = torch.full((tokens, topk, hidden), float("nan"), device=DEVICE)
    gate_up_decode(given, gate_up, ids, plan, act, nibbles=True, tiles=tiles)
    return down_decode(act, down, ids, weights, plan, out, tiles=tiles).sum(1)


def relative_error(got, expected):
    return ((got.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("tokens", "rows", "group", "scale_dtype", "tiles"),
    [
        (2, 16, 32, torch.bfloat16, None),
        (8, 8, 128, torch.float32, None),
        (9, 16, 32, torch.float32, Int4Tiles(16, 2, False)),
        (19, 16, 32, torch.bfloat16, Int4Tiles(64, 1, True, 2)),
        (19, 8, 128, torch.bfloat16, Int4Tiles(32, 1, False, 1, 2)),
    ],
)
def test_int4_experts_when_blocks_are_full_or_not_then_as_the_reference(
    tokens, rows, group, scale_dtype, tiles
):
    count, hidden, width, topk = 3, 384, 128, 2
    gate_up, w1 = int4_experts(count, 2 * width, hidden, group, scale_dtype)
    down, w2 = int4_experts(count, hidden, width, group, scale_dtype)
    ids, weights = routed(tokens, count, topk)
    x = torch.randn(tokens, hidden, device=DEVICE).bfloat16()
    expected = reference(x.float(), w1, w2, ids, weights)
    got = run(x, gate_up, down, ids, weights, tiles, rows)
    assert relative_error(got, expected) < LIMIT


@pytest.mark.parametrize(
    ("tiles", "said"),
    [
        (ExpertTiles(64, 64, 4, 4), "cut by Int4Tiles"),
        (Int4Tiles(24), "a multiple of 16"),
        (Int4Tiles(256), "divides"),
    ],
)
def test_int4_experts_when_a_tile_does_not_suit_then_it_is_refused(tiles, said):
    gate_up, _ = int4_experts(2, 256, 128, 32)
    down, _ = int4_experts(2, 128, 128, 32)
    ids, weights = routed(3, 2, 1)
    x = torch.randn(3, 128, device=DEVICE).bfloat16()
    with pytest.raises(ValueError, match=said):
        run(x, gate_up, down, ids, weights, tiles)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="sizes for a GPU")
@pytest.mark.parametrize(("group", "rows"), [(32, 8), (32, 16), (128, 8)])
@pytest.mark.parametrize("tokens", [2, 32, 130, 256])
def test_int4_experts_at_the_models_sizes_then_right_and_the_same_bits(group, rows, tokens):
    count, hidden, width, topk = 48, 4096, 1024, 8
    gate_up, w1 = int4_experts(count, 2 * width, hidden, group)
    down, w2 = int4_experts(count, hidden, width, group)
    ids, weights = routed(tokens, count, topk)
    x = torch.randn(tokens, hidden, device=DEVICE).bfloat16()
    got = run(x, gate_up, down, ids, weights, rows=rows)
    assert relative_error(got, reference(x.float(), w1, w2, ids, weights)) < LIMIT
    for _ in range(3):
        assert torch.equal(run(x, gate_up, down, ids, weights, rows=rows), got)
