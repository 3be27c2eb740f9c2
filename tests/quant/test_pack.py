"""The layouts, worked out by hand, and their rounding."""

from __future__ import annotations

import pytest
import torch

from lingflash.quant.pack import (
    dequantize,
    expand_scale,
    fp8_to_float,
    pack_int4,
    quantize_fp8,
    quantize_int4,
    unpack_int4,
)
from quant_support import relative_error


def test_word_when_packed_by_hand_then_nibble_j_is_column_j_plus_eight():
    values = torch.tensor([[-8, -7, -1, 0, 1, 2, 6, 7]], dtype=torch.int8)
    # Nibbles 0 1 7 8 9 a e f, the first one lowest: 0xfea98710.
    assert pack_int4(values).tolist() == [[0xFEA98710 - (1 << 32)]]
    assert torch.equal(unpack_int4(pack_int4(values)), values)
    assert pack_int4(torch.zeros(1, 8, dtype=torch.int8)).tolist() == [[0x88888888 - (1 << 32)]]
    assert pack_int4(torch.tensor([[0, -8, -8, -8, -8, -8, -8, -8]], dtype=torch.int8)).item() == 8


def test_words_when_there_are_several_then_columns_follow_each_other():
    values = torch.randint(-8, 8, (3, 5, 40), dtype=torch.int8)
    packed = pack_int4(values)
    assert packed.shape == (3, 5, 5)
    assert packed.dtype == torch.int32
    for word in range(5):
        for j in range(8):
            nibble = (packed[..., word] >> (4 * j)) & 15
            assert torch.equal(nibble.to(torch.int8) - 8, values[..., 8 * word + j])
    assert torch.equal(unpack_int4(packed), values)
    with pytest.raises(ValueError, match="7 columns"):
        pack_int4(values[..., :7])


def test_fp8_when_turned_into_floats_then_all_256_are_exact():
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert torch.equal(fp8_to_float(every).isnan(), every.float().isnan())
    assert torch.equal(fp8_to_float(every).nan_to_num(), every.float().nan_to_num())
    assert every.float().isnan().sum() == 2
    assert fp8_to_float(every[:0]).shape == (0,)
    by_hand = {0x01: 2.0**-9, 0x08: 2.0**-6, 0x38: 1.0, 0x39: 1.125, 0x7E: 448.0, 0xB8: -1.0}
    assert {bits: float(fp8_to_float(every)[bits]) for bits in by_hand} == by_hand


def test_int4_when_dequantized_by_hand_then_value_times_its_groups_scale():
    values = torch.zeros(2, 64, dtype=torch.int8)
    values[0, 31], values[0, 32], values[1, 63] = 7, -8, 3
    scale = torch.tensor([[0.5, 0.25], [1.0, 2.0]], dtype=torch.bfloat16)
    numbers = dequantize(pack_int4(values), scale, (1, 32), torch.float32)
    expected = torch.zeros(2, 64)
    expected[0, 31], expected[0, 32], expected[1, 63] = 3.5, -2.0, 6.0
    assert torch.equal(numbers, expected)


def test_fp8_block_when_dequantized_by_hand_then_edges_have_their_own_scale():
    values = torch.ones(130, 200).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    numbers = dequantize(values, scale, (128, 128), torch.float32)
    for rows, columns, expected in (
        (slice(0, 128), slice(0, 128), 1.0),
        (slice(0, 128), slice(128, 200), 2.0),
        (slice(128, 130), slice(0, 128), 3.0),
        (slice(128, 130), slice(128, 200), 4.0),
    ):
        assert (numbers[rows, columns] == expected).all()


def test_fp8_channel_when_dequantized_then_each_row_has_its_scale():
    values = torch.tensor([[1.0, -2.0], [0.5, 448.0]]).to(torch.float8_e4m3fn)
    numbers = dequantize(values, torch.tensor([[2.0], [0.25]]), (1, 0), torch.bfloat16)
    assert numbers.tolist() == [[2.0, -4.0], [0.125, 112.0]]
    assert numbers.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 127), (300, 260), (5, 512)])
@pytest.mark.parametrize("block", [(128, 128), (1, 0)])
def test_fp8_when_quantized_then_within_half_a_step_of_each_number(shape, block):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values, scale = quantize_fp8(weight, block)
    back = dequantize(values, scale, block, torch.float32)
    # e4m3 has 3 bits of mantissa (half a step is 1/16) and steps of 2^-9 below 2^-6.
    grid = expand_scale(scale, weight.shape, block)
    assert ((back - weight).abs() <= weight.abs() / 16 + grid * 2**-10 + 1e-9).all()
    assert float(values.float().abs().max()) == 448.0


def test_fp8_when_a_block_is_zero_then_stays_zero():
    weight = torch.zeros(130, 130)
    weight[129, 129] = 3.0
    values, scale = quantize_fp8(weight, (128, 128))
    assert torch.equal(dequantize(values, scale, (128, 128), torch.float32), weight)


@pytest.mark.parametrize("group_size", [32, 128])
def test_int4_when_quantized_then_no_worse_than_the_plain_rounding(group_size):
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(2))
    packed, scale = quantize_int4(weight, group_size)
    assert packed.shape == (64, 64)
    assert scale.shape == (64, 512 // group_size)
    assert scale.dtype == torch.bfloat16
    back = dequantize(packed, scale, (1, group_size), torch.float32)
    groups = weight.unflatten(1, (-1, group_size))
    for divisor in (7.0, 7.5):
        step = (groups.abs().amax(-1, keepdim=True) / divisor).bfloat16().float()
        plain = ((groups / step).round().clamp(-8, 7) * step).flatten(1)
        assert relative_error(back, weight) <= relative_error(plain, weight)


def test_int4_when_the_numbers_are_on_the_grid_then_comes_back_exactly():
    values = torch.randint(-7, 8, (6, 64), generator=torch.Generator().manual_seed(3))
    values[:, ::32] = 7
    weight = values * 0.125
    packed, scale = quantize_int4(weight, 32)
    assert torch.equal(dequantize(packed, scale, (1, 32), torch.float32), weight)
    zero, scale = quantize_int4(torch.zeros(2, 32), 32)
    assert not dequantize(zero, scale, (1, 32), torch.float32).any()


def test_int4_when_the_group_does_not_divide_then_is_refused():
    with pytest.raises(ValueError, match="48 columns"):
        quantize_int4(torch.ones(2, 48), 32)
