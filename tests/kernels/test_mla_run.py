"""Runs of tokens over a paged prefix: on AMX tiles, in vectors of each class, through torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_support import HERE, kernels_of
from lingflash.kernels import mla
from lingflash.kernels.cpu.mla_run import can_attend_on_tiles, has_tiles
from lingflash.kernels.cpu.mla_vectors import attend_in_vectors
from lingflash.kernels.mla import mla_attention, mla_attention_reference, plan_mla

CPU = torch.device("cpu")
BLOCK, SCALE = 16, 0.2


def rand(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attend(
    lengths, *, heads, nope, rope, rank, value, threads=1, spoil=None, strength=1.0, channel=1.0
):
    """Sequences of (start, tokens) over scattered blocks; results and what is expected of each.

    `strength` is a factor of the queries, `channel` one of the last channel of the latents.
    """
    tables, queries, expected = [], [], []
    needed = [-(-(start + tokens) // BLOCK) for start, tokens in lengths]
    order = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(1)).tolist()
    # Rows past an end hold what a former owner left; other blocks the bits of anything.
    pool = rand(sum(needed) + 3, BLOCK, rank + rope, seed=0) * 100
    w_kvb = rand(heads, nope + value, rank, seed=9) * rank**-0.5
    for i, (start, tokens) in enumerate(lengths):
        table = [order.pop() for _ in range(needed[i])]
        latents = rand(start + tokens, rank + rope, seed=i + 1)
        latents[:, -1] *= channel
        if spoil is not None and i == spoil[0]:
            latents[spoil[1]] = spoil[2]
        for position, row in enumerate(latents):
            pool[table[position // BLOCK], position % BLOCK] = row
        q_nope = rand(tokens, heads, nope, seed=i + 50) * strength
        q_rope = rand(tokens, heads, rope, seed=i + 70) * strength
        tables.append(table)
        queries.append((q_nope, q_rope))
        expected.append(
            mla_attention_reference(q_nope.double(), q_rope.double(), latents, w_kvb, SCALE)
        )
    pool[order] = float("nan")
    starts, counts = zip(*lengths, strict=True)
    plan = plan_mla(starts, counts, tables, block_size=BLOCK, device=CPU, fixed_blocks=False)
    q_nope, q_rope = (torch.cat(parts) for parts in zip(*queries, strict=True))
    plan = replace(plan, num_threads=threads)
    out = mla_attention(q_nope, q_rope, pool, w_kvb, SCALE, plan)
    return out.double().split(list(counts)), expected


WAYS = ["torch", *HERE] + (["tiles anywhere"] if has_tiles() else [])


@pytest.fixture(scope="module", params=WAYS, autouse=True)
def way(request):
    """Torch alone, or the kernels of a class; on tiles over any prefix, not only over long ones."""
    name = HERE[0] if request.param in ("torch", "tiles anywhere") else request.param
    with kernels_of(name), pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(mla, "can_attend_in_vectors", lambda latents: False)
            patch.setattr(mla, "can_attend_on_tiles", lambda latents, rank: False)
        if request.param == "tiles anywhere":
            patch.setattr(mla, "_TILES_FROM", 0)
        yield request.param


SHAPES = {
    "ling-nano": {"heads": 8, "nope": 32, "rope": 32, "rank": 128, "value": 48},
    "padded width, odd heads": {"heads": 3, "nope": 32, "rope": 16, "rank": 64, "value": 20},
    "not for tiles": {"heads": 2, "nope": 8, "rope": 4, "rank": 16, "value": 6},
}


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 70)), min_size=1, max_size=4),
    threads=st.integers(1, 3),
)
def test_runs_when_of_any_length_then_match_the_definition(shape, lengths, threads):
    out, expected = attend(lengths, **SHAPES[shape], threads=threads)
    for got, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("start", "tokens"), [(4500, 60), (4093, 170), (0, 300), (2000, 1030)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_runs_when_long_then_match_the_definition(start, tokens, threads):
    (out,), (expected,) = attend([(start, tokens)], **SHAPES["ling-nano"], threads=threads)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_runs_when_scores_are_large_then_nothing_overflows():
    (out,), (expected,) = attend([(300, 40)], **SHAPES["ling-nano"], strength=30.0)
    torch.testing.assert_close(out, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("channel", [10.0, 1e30])
def test_runs_when_a_channel_outweighs_the_rest_then_the_scores_follow_it(channel):
    strength = 1.0 if channel < 100 else 1e-25
    (out,), (expected,) = attend(
        [(300, 40)], **SHAPES["ling-nano"], channel=channel, strength=strength
    )
    torch.testing.assert_close(out, expected, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_runs_when_a_key_is_not_finite_then_only_its_sequence_is_spoilt(bad):
    out, expected = attend([(100, 20), (70, 33)], **SHAPES["ling-nano"], spoil=(0, 5, bad))
    assert out[0].isnan().all()
    torch.testing.assert_close(out[1], expected[1], atol=1e-5, rtol=1e-5)


@pytest.fixture(params=["C", "torch"])
def rows_by(request, monkeypatch):
    """Single tokens by the compiled kernel, if there is a compiler, and by torch."""
    if request.param == "torch":
        monkeypatch.setattr(mla, "can_attend_rows", lambda latents: False)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_when_sequences_decode_then_match_the_definition(shape, rows_by):
    lengths = [(start, 1) for start in (0, 2, 62, 63, 64, 130, 400)] + [(70, 5)]
    out, expected = attend(lengths, **SHAPES[shape], strength=2.0)
    for got, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_when_a_key_is_not_finite_then_only_its_sequence_is_spoilt(bad, rows_by):
    out, expected = attend([(100, 1), (70, 1)], **SHAPES["ling-nano"], spoil=(0, 5, bad))
    assert out[0].isnan().all()
    torch.testing.assert_close(out[1], expected[1], atol=1e-5, rtol=1e-5)


def test_vectors_when_a_row_stands_alone_or_on_other_threads_then_its_bits_are_the_same():
    """A row's sums do not depend on the rows beside it, nor on the number of threads."""
    pool, blocks = rand(20, BLOCK, 160, seed=1), torch.randperm(20)
    q, r, w = rand(40, 8, 32, seed=2), rand(40, 8, 32, seed=3), rand(8, 80, 128, seed=4)

    def ask(q, r, length, threads=1):
        return attend_in_vectors(q, r, pool, blocks, length, w, SCALE, threads)

    whole = ask(q, r, 300)
    assert torch.equal(ask(q, r, 300, threads=3), whole)
    for row in (0, 17, 39):
        one = slice(row, row + 1)
        assert torch.equal(ask(q[one], r[one], 260 + row + 1), whole[one])


def test_tiles_when_the_latents_do_not_fit_them_then_are_not_used():
    assert not can_attend_on_tiles(torch.zeros(2, 16, 40), 32)
    assert not can_attend_on_tiles(torch.zeros(2, 16, 48), 24)
    assert not can_attend_on_tiles(torch.zeros(2, 16, 160, dtype=torch.bfloat16), 128)
    assert not can_attend_on_tiles(torch.zeros(4, 16, 160)[::2], 128)
