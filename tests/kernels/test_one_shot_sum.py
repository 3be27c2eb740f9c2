"""The sum over GPUs in one launch; one process plays all ranks, half a call at a time."""

from __future__ import annotations

import pytest
import torch

from lingflash.kernels.all_reduce.triton_one_shot import (
    BLOCK,
    PeerBuffers,
    buffer_words,
    one_shot_gather,
    one_shot_sum,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_peers(size, num_values):
    shape = buffer_words(size, num_values)
    words = [torch.zeros(shape, dtype=torch.int64, device=DEVICE) for _ in range(size)]
    addresses = torch.tensor([w.data_ptr() for w in words], device=DEVICE)
    return [
        PeerBuffers(
            addresses,
            words[rank],
            torch.zeros(shape[2] // BLOCK, dtype=torch.int32, device=DEVICE),
            torch.zeros(1, dtype=torch.int32, device=DEVICE),
            rank,
        )
        for rank in range(size)
    ]


def call(peers, parts, outs, *, add):
    for rank, mine in enumerate(peers):
        one_shot_sum(parts[rank], outs[rank], mine, add=add, receives=False)
    for rank, mine in enumerate(peers):
        one_shot_sum(parts[rank], outs[rank], mine, add=add, sends=False)


@pytest.mark.parametrize("size", [2, 4])
def test_sums_when_calls_of_many_sizes_follow_each_other_then_each_rank_has_the_same_bits(size):
    generator = torch.Generator().manual_seed(size)
    peers = new_peers(size, 3 * 700)
    for rows, num_parts, width, add in [
        (1, 1, 700, True), (3, 2, 700, True), (1, 3, 40, False), (2, 1, 700, False),
        (3, 1, 700, True),
    ]:  # fmt: skip
        parts = [torch.randn(rows, num_parts, width, generator=generator).to(DEVICE) for _ in peers]
        before = torch.randn(rows, width, generator=generator).bfloat16().to(DEVICE)
        outs = [before.clone() for _ in peers]
        call(peers, parts, outs, add=add)
        expected = sum(part.double().sum(1) for part in parts) + (before.double() if add else 0)
        for out in outs:
            assert torch.equal(out, outs[0])
            assert (out.double() - expected).abs().max() < 0.01 * expected.abs().max()


def test_sum_when_it_is_written_over_what_was_read_then_is_the_same():
    peers = new_peers(2, 64)
    values = [torch.full((1, 64), float(rank + 1), device=DEVICE) for rank in range(2)]
    call(peers, [v[:, None] for v in values], values, add=False)
    # The halves of a call meet the first rank's sum again: 1 + 2 on it, then 3 is not read anew.
    assert torch.equal(values[1], torch.full((1, 64), 3.0, device=DEVICE))


def test_columns_when_gathered_between_sums_then_stand_side_by_side():
    peers = new_peers(3, 700)
    for rows, width in [(1, 700), (2, 30), (7, 100)]:
        parts = [torch.randn(rows, width, device=DEVICE) for _ in peers]
        call(peers, [p[:, None] for p in parts], [p.clone() for p in parts], add=True)
        for mine, x in zip(peers, parts, strict=True):
            one_shot_gather(x, mine, receives=False)
        for mine, x in zip(peers, parts, strict=True):
            assert torch.equal(one_shot_gather(x, mine, sends=False), torch.cat(parts, -1))


def test_sum_when_a_rank_is_gone_then_nobody_waits_and_it_is_not_a_number():
    peers = new_peers(2, 64)
    parts, out = torch.ones(1, 1, 64, device=DEVICE), torch.zeros(1, 64, device=DEVICE)
    peers[0].stop.fill_(1)
    one_shot_sum(parts, out, peers[0], add=False)
    assert out.isnan().all()


def test_sum_when_shapes_do_not_fit_then_is_refused():
    peers = new_peers(2, 64)
    parts = torch.zeros(1, 1, 64, device=DEVICE)
    with pytest.raises(ValueError, match="both contiguous"):
        one_shot_sum(parts, torch.zeros(1, 63, device=DEVICE), peers[0], add=False)
    big = torch.zeros(2, 1, 512, device=DEVICE)
    with pytest.raises(ValueError, match="1024 values"):
        one_shot_sum(big, big[:, 0], peers[0], add=False)
