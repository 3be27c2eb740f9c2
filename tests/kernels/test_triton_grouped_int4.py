"""Experts in INT4 for many tokens against their reference: on a GPU if there is one."""

from __future__ import annotations

import pytest
import torch

from lingflash.kernels.moe_gemm import expert_mlp_reference
from lingflash.kernels.moe_gemm.formats import expert_format
from lingflash.kernels.moe_gemm.triton_grouped import GroupedTile, expert_mlp_grouped, gate_up
from lingflash.kernels.moe_gemm.triton_grouped_int4 import in_fragment_order
from lingflash.kernels.moe_gemm.triton_nibbles import fragment_order
from lingflash.kernels.moe_gemm.triton_sort import sort_rows
from lingflash.quant.matrix import QuantizedExperts
from lingflash.quant.pack import dequantize, quantize_int4
from quant_support import relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
# The interpreter cuts bfloat16 off instead of rounding it.
BF16_LIMIT = 6e-3 if ON_GPU else 1.6e-2

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def experts_of(count, rows, columns, group, scale_dtype=torch.bfloat16):
    """Random matrices of `count` experts, and the numbers [count, rows, columns] in a product."""
    dense = torch.randn(count * rows, columns, device=DEVICE) / columns**0.5
    values, scale = quantize_int4(dense, group, scale_dtype)
    weight = QuantizedExperts(
        values.view(count, rows, -1), scale.view(count, rows, -1), (1, group), torch.bfloat16,
        (rows,),
    )  # fmt: skip
    numbers = dequantize(values, scale, (1, group), torch.bfloat16 if ON_GPU else torch.float32)
    if not ON_GPU:
        numbers = (numbers.view(torch.int32) & -65536).view(torch.float32)
    return weight, numbers.view(count, rows, columns)


def routing(tokens, experts, topk):
    ids = torch.stack([torch.randperm(experts, device=DEVICE)[:topk] for _ in range(tokens)])
    return ids, torch.rand(tokens, topk, device=DEVICE)


@pytest.mark.parametrize("shape", [(1, 32), (5, 96), (300, 128)])
def test_order_when_columns_are_moved_then_each_is_at_its_place(shape):
    x = torch.randn(shape, device=DEVICE).bfloat16()
    order = fragment_order(shape[1]).to(DEVICE)
    assert torch.equal(order.sort().values, torch.arange(shape[1], device=DEVICE))
    assert torch.equal(in_fragment_order(x)[:, order], x)


@pytest.mark.parametrize(
    ("scale_dtype", "group", "depth", "hidden"),
    [
        (torch.bfloat16, 32, 32, 128),
        (torch.bfloat16, 32, 64, 384),
        (torch.bfloat16, 32, 128, 128),
        (torch.bfloat16, 128, 64, 256),
        (torch.bfloat16, 128, 128, 512),
        (torch.bfloat16, 128, 128, 384),  # three scales do not come in pairs
        (torch.float16, 32, 128, 256),
        (torch.float16, 128, 64, 256),
        (torch.float32, 32, 64, 128),
        (torch.float32, 128, 128, 384),
    ],
)
def test_experts_when_scales_and_steps_differ_then_as_the_reference(
    scale_dtype, group, depth, hidden
):
    experts, width, tokens = 3, 128, 17
    x = torch.randn(tokens, hidden, device=DEVICE).bfloat16()
    w1, dense1 = experts_of(experts, 2 * width, hidden, group, scale_dtype)
    w2, dense2 = experts_of(experts, hidden, width, group, scale_dtype)
    kind = expert_format(w1)
    assert kind is not None
    ids, weights = routing(tokens, experts, 2)
    tiles = (GroupedTile(16, 64, 4, 2, depth), GroupedTile(16, 128, 4, 2, depth))
    got = expert_mlp_grouped(x, w1, w2, ids, weights, kind, tiles=tiles)
    expected = expert_mlp_reference(x, dense1, dense2, ids, weights)
    assert relative_error(got, expected) < BF16_LIMIT


def test_gate_up_when_a_tile_does_not_divide_the_width_then_it_is_refused():
    w1, _ = experts_of(2, 256, 128, 32)
    kind = expert_format(w1)
    assert kind is not None
    ids, _ = routing(4, 2, 1)
    x = torch.randn(4, 128, device=DEVICE).bfloat16()
    with pytest.raises(ValueError, match="does not divide"):
        gate_up(x, w1, sort_rows(ids, 2, 16), kind, GroupedTile(16, 256, 4, 2, 64))


@pytest.mark.skipif(not ON_GPU, reason="sizes for a GPU")
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("tokens", [40, 130, 300, 700, 4000])
def test_experts_at_the_models_sizes_then_right_and_the_same_bits_each_time(group, tokens):
    # Products that overlap with the next step's weights would differ from run to run.
    experts, hidden, width, topk = 16, 4096, 1024, 4
    x = torch.randn(tokens, hidden, device=DEVICE).bfloat16()
    w1, dense1 = experts_of(experts, 2 * width, hidden, group)
    w2, dense2 = experts_of(experts, hidden, width, group)
    ids, weights = routing(tokens, experts, topk)
    kind = expert_format(w1)
    assert kind is not None
    expected = torch.zeros(tokens, hidden, device=DEVICE)
    for expert in range(experts):
        gate, up = (x.float() @ dense1[expert].float().t()).chunk(2, -1)
        out = (torch.nn.functional.silu(gate) * up) @ dense2[expert].float().t()
        expected += out * ((ids == expert) * weights).sum(1, keepdim=True)
    got = expert_mlp_grouped(x, w1, w2, ids, weights, kind)
    assert relative_error(got, expected) < BF16_LIMIT
    for _ in range(5):
        assert torch.equal(expert_mlp_grouped(x, w1, w2, ids, weights, kind), got)
