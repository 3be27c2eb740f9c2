"""Each operator against its reference: odd sizes, mixed batches, poisoned memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lingflash.core.anchors import ANCHOR, last_anchor
from lingflash.core.config import ROW_MULTIPLE
from lingflash.kernels.lightning_attn import (
    decay_tables,
    lightning_attention,
    lightning_attention_reference,
    plan_lightning,
)
from lingflash.kernels.mla import mla_attention, mla_attention_reference, plan_mla
from lingflash.kernels.moe_gemm import expert_mlp, expert_mlp_reference
from lingflash.kernels.moe_route import RoutingRule, route_tokens
from lingflash.kernels.rmsnorm import (
    group_rms_norm,
    group_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from lingflash.kernels.rope import (
    apply_rope_half_split,
    apply_rope_interleaved,
    rope_inv_freq,
    rope_table,
    yarn_inv_freq,
)
from lingflash.kernels.sampling import truncate_logits

CPU = torch.device("cpu")
HEADS, K, V = 3, 8, 12
# The fastest head of Ling-2.6-flash forgets within a few tokens, the slowest hardly at all.
RATE = torch.tensor([2**-0.25, 0.05, 1e-6], dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


class LightningMemory:
    """Slots full of NaN, as a former owner may leave them; a new sequence gets a zeroed one."""

    def __init__(self, slots, tail=ANCHOR):
        self.states = torch.full((slots, HEADS, K, V), float("nan"))
        self.tail_k = torch.full((slots, HEADS, tail, K), float("nan"))
        self.tail_v = torch.full((slots, HEADS, tail, V), float("nan"))

    def take(self, slot):
        for pool in (self.states, self.tail_k, self.tail_v):
            pool[slot] = 0

    def step(self, parts, starts, slots, chunk, allow_decode):
        q, k, v = (torch.cat(x) for x in zip(*parts, strict=True))
        plan = plan_lightning(
            starts,
            [last_anchor(s) for s in starts],
            [len(p[0]) for p in parts],
            slots,
            chunk=chunk,
            device=CPU,
            allow_decode=allow_decode,
        )
        tables = decay_tables(RATE, chunk, K, CPU)
        out = lightning_attention(q, k, v, tables, self.states, self.tail_k, self.tail_v, plan)
        return out.split([len(p[0]) for p in parts])


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.lists(st.integers(0, 90) | st.just(1), min_size=3, max_size=3), min_size=1, max_size=6
    ),
    chunk=st.sampled_from([16, 64]),
    allow_decode=st.booleans(),
)
def test_lightning_when_three_sequences_advance_at_random_then_matches_the_recurrence(
    steps, chunk, allow_decode
):
    total = [max(sum(s[i] for s in steps), 1) for i in range(3)]
    data = [
        (rand(n, HEADS, K, seed=i), rand(n, HEADS, K, seed=i + 9), rand(n, HEADS, V, seed=i + 18))
        for i, n in enumerate(total)
    ]
    memory = LightningMemory(6)
    slots = [4, 0, 2]
    for slot in slots:
        memory.take(slot)
    done, got = [0, 0, 0], [[], [], []]
    for lengths in steps:
        active = [i for i in range(3) if lengths[i]]
        if not active:
            continue
        parts = [tuple(x[done[i] : done[i] + lengths[i]] for x in data[i]) for i in active]
        outs = memory.step(
            parts, [done[i] for i in active], [slots[i] for i in active], chunk, allow_decode
        )
        for i, out in zip(active, outs, strict=True):
            got[i].append(out)
            done[i] += lengths[i]
    for i in range(3):
        if not done[i]:
            continue
        q, k, v = (x[: done[i]].double() for x in data[i])
        expected, _ = lightning_attention_reference(q, k, v, RATE)
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            torch.cat(got[i]).double(), expected, atol=2e-5 * max(scale, 1), rtol=2e-5
        )
        folded = last_anchor(done[i])
        _, state = lightning_attention_reference(q[:folded], k[:folded], v[:folded], RATE)
        torch.testing.assert_close(memory.states[slots[i]].double(), state, atol=1e-4, rtol=1e-4)


def test_lightning_when_the_prompt_is_long_then_nothing_overflows():
    n = 3000
    q, k, v = rand(n, HEADS, K), rand(n, HEADS, K, seed=1), rand(n, HEADS, V, seed=2)
    memory = LightningMemory(1)
    memory.take(0)
    (out,) = memory.step([(q, k, v)], [0], [0], 64, True)
    expected, _ = lightning_attention_reference(q.double(), k.double(), v.double(), RATE)
    torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=1e-4)


def test_lightning_when_arguments_do_not_fit_then_names_them():
    memory = LightningMemory(1)
    plan = plan_lightning([0], [0], [4], [0], chunk=16, device=CPU, allow_decode=True)
    q = rand(5, HEADS, K)
    tables = decay_tables(RATE, 16, K, CPU)
    rest = (tables, memory.states, memory.tail_k, memory.tail_v, plan)
    with pytest.raises(ValueError, match="plan of 4 tokens"):
        lightning_attention(q, q, rand(5, HEADS, V), *rest)
    with pytest.raises(ValueError, match="float32"):
        lightning_attention(q[:4].double(), q[:4].double(), rand(4, HEADS, V).double(), *rest)
    with pytest.raises(ValueError, match="multiple of 16"):
        plan_lightning([0], [0], [4], [0], chunk=20, device=CPU, allow_decode=True)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 70)), min_size=1, max_size=5),
    fixed=st.booleans(),
    scatter=st.booleans(),
)
def test_mla_when_decodes_and_runs_are_mixed_then_matches_the_definition(lengths, fixed, scatter):
    heads, nope, rope, rank, value, block = 2, 8, 4, 16, 6, 16
    w_kvb = rand(heads, nope + value, rank)
    needed = [-(-(s + n) // block) for s, n in lengths]
    order = torch.randperm(sum(needed) + 2, generator=torch.Generator().manual_seed(1)).tolist()
    if not scatter:
        order.sort()
    # Rows past a sequence's end hold garbage of a former owner, but no NaN: blocks are zeroed.
    pool = rand(sum(needed) + 2, block, rank + rope) * 100
    tables, parts, expected = [], [], []
    for i, (start, n) in enumerate(lengths):
        table = [order.pop() for _ in range(needed[i])]
        tables.append(table)
        latents = rand(start + n, rank + rope, seed=i)
        for position, row in enumerate(latents):
            pool[table[position // block], position % block] = row
        q_nope, q_rope = rand(n, heads, nope, seed=i), rand(n, heads, rope, seed=i + 5)
        parts.append((q_nope, q_rope))
        expected.append(
            mla_attention_reference(q_nope.double(), q_rope.double(), latents, w_kvb, 0.3)
        )
    # Blocks of others may hold anything, such as the bits of a state checkpoint.
    pool[order] = float("nan")
    plan = plan_mla(
        [s for s, _ in lengths],
        [n for _, n in lengths],
        tables,
        block_size=block,
        device=CPU,
        fixed_blocks=fixed,
    )
    q_nope, q_rope = (torch.cat(x) for x in zip(*parts, strict=True))
    out = mla_attention(q_nope, q_rope, pool, w_kvb, 0.3, plan)
    torch.testing.assert_close(out.double(), torch.cat(expected), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("firsts", [[5], [0, 16, 33], [47, 1, 20]])
@pytest.mark.parametrize("scatter", [False, True])
def test_mla_when_the_first_keys_are_left_out_then_as_if_they_were_not_there(firsts, scatter):
    heads, nope, rope, rank, value, block = 2, 8, 4, 16, 6, 16
    w_kvb = rand(heads, nope + value, rank)
    starts = [48 + 3 * i for i in range(len(firsts))]
    blocks = list(range(5 * len(firsts)))
    tables = [blocks[i * 5 : i * 5 + 5] for i in range(len(firsts))]
    if scatter:
        tables = [table[::-1] for table in tables]
    pool = rand(len(blocks), block, rank + rope)
    q_nope, q_rope = rand(len(firsts), heads, nope), rand(len(firsts), heads, rope, seed=5)
    expected = [
        mla_attention_reference(
            q_nope[i : i + 1].double(),
            q_rope[i : i + 1].double(),
            pool[table].flatten(0, 1)[first : start + 1],
            w_kvb,
            0.3,
        )
        for i, (start, first, table) in enumerate(zip(starts, firsts, tables, strict=True))
    ]
    ones = [1] * len(firsts)
    common = {"block_size": block, "device": CPU}
    plan = plan_mla(starts, ones, tables, fixed_blocks=False, first_keys=firsts, **common)
    out = mla_attention(q_nope, q_rope, pool, w_kvb, 0.3, plan)
    torch.testing.assert_close(out.double(), torch.cat(expected), atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="single query tokens"):
        plan_mla([1], [2], tables[:1], fixed_blocks=False, first_keys=[0], **common)


@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("accepted", [0, 1, 3, 4])
def test_lightning_when_drafts_cross_an_anchor_then_as_one_by_one(chunk, accepted):
    """Drafts in a chunk of their own read a state that nobody has written."""
    heads, width, slots = 3, 8, 2
    rate = torch.tensor([0.5, 0.1, 0.01], dtype=torch.float64)
    tables = decay_tables(rate, chunk, width, CPU)
    q, k, v = (rand(80, heads, width, seed=i) for i in range(3))
    pools = [torch.zeros(slots, heads, width, width)]
    pools += [torch.zeros(slots, heads, ANCHOR + 4, width) for _ in range(2)]

    def run(lo, hi, anchor, certain):
        plan = plan_lightning(
            [lo], [anchor], [hi - lo], [1], chunk=chunk, device=CPU, allow_decode=False,
            num_certain=[certain],
        )  # fmt: skip
        return lightning_attention(q[lo:hi], k[lo:hi], v[lo:hi], tables, *pools, plan)

    whole, _ = lightning_attention_reference(q.double(), k.double(), v.double(), rate)
    run(0, 28, 0, 28)
    out = run(28, 33, 16, 1)  # 29 .. 32 are drafts
    torch.testing.assert_close(out.double(), whole[28:33], atol=2e-5, rtol=1e-4)
    start = 29 + accepted
    out = run(start, start + 5, 16, 1)
    torch.testing.assert_close(out.double(), whole[start : start + 5], atol=2e-5, rtol=1e-4)
    anchor = last_anchor(start + 1)
    out = run(start + 1, 80, anchor, 79 - start)
    torch.testing.assert_close(out.double(), whole[start + 1 :], atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="certain only in part"):
        plan_lightning(
            [0], [0], [150], [1], chunk=64, device=CPU, allow_decode=False, num_certain=[20]
        )


def test_mla_when_sequences_of_unequal_length_decode_then_blocks_of_others_are_not_read():
    pool, w_kvb = rand(8, 16, 20), rand(2, 14, 16)
    q_nope, q_rope = rand(2, 2, 8), rand(2, 2, 4)

    def attend():
        tables = [[3], [4, 5, 6]]
        plan = plan_mla([1, 40], [1, 1], tables, block_size=16, device=CPU, fixed_blocks=False)
        return mla_attention(q_nope, q_rope, pool, w_kvb, 0.3, plan)

    expected = attend()
    pool[[0, 1, 2, 7]] = float("nan")
    torch.testing.assert_close(attend(), expected)


@pytest.mark.parametrize("row_multiple", [1, ROW_MULTIPLE])
@pytest.mark.parametrize("tokens", [1, 2, 13, 40])
def test_experts_when_tokens_are_routed_unevenly_then_match_one_by_one(tokens, row_multiple):
    x, w1, w2 = rand(tokens, 24), rand(6, 40, 24) * 0.2, rand(6, 24, 20) * 0.2
    ids = torch.randint(0, 3, (tokens, 2), generator=torch.Generator().manual_seed(3)) * 2
    ids[:, 1] = (ids[:, 0] + 1) % 6
    weights = rand(tokens, 2).abs()
    out = expert_mlp(x, w1, w2, ids, weights, row_multiple=row_multiple)
    torch.testing.assert_close(
        out, expert_mlp_reference(x, w1, w2, ids, weights), atol=1e-5, rtol=1e-4
    )


def test_route_when_all_biased_scores_are_negative_then_dropped_groups_stay_out():
    x = torch.zeros(1, 4)
    bias = torch.tensor([-3.0, -3.1, -9.0, -9.0, -2.0, -8.0, -7.0, -7.5])
    ids, weights = route_tokens(
        x,
        torch.zeros(8, 4),
        bias,
        RoutingRule(4, 1, 2, norm_topk_prob=True, scaling_factor=2.5),
    )
    # Group sums: -6.1 + 1, -18 + 1, -10 + 1, ...: the first group wins although expert 4 is best.
    assert ids.tolist() == [[0, 1]]
    assert weights.tolist() == [[1.25, 1.25]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 7), (5, 192), (3, 4, 32)])
def test_norm_when_compared_then_matches_the_formula(shape, dtype):
    x, w = rand(*shape).to(dtype), rand(shape[-1]).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(
        rms_norm(x, w, 1e-6), rms_norm_reference(x, w, 1e-6), atol=tolerance, rtol=tolerance
    )
    assert rms_norm(torch.zeros_like(x), w, 1e-6).isfinite().all()


def test_group_norm_when_groups_differ_in_size_then_each_is_normed_by_itself():
    x, w = rand(5, 24), rand(24)
    x[:, :6] *= 1000
    torch.testing.assert_close(
        group_rms_norm(x, w, 4, 1e-6), group_rms_norm_reference(x, w, 4, 1e-6)
    )
    with pytest.raises(ValueError, match="num_groups 5"):
        group_rms_norm(x, w, 5, 1e-6)


def test_rope_when_positions_shift_then_scores_do_not():
    table = rope_table(rope_inv_freq(8, 1e4), 4000, 1.0, CPU)
    cos, sin = table[:, None].chunk(2, -1)
    q, k = rand(1, 1, 12), rand(1, 1, 12, seed=1)
    for rotate, width in ((apply_rope_half_split, 12), (apply_rope_interleaved, 8)):
        scores = []
        for shift in (0, 5, 3000):
            at = slice(shift + 7, shift + 8), slice(shift, shift + 1)
            a = rotate(q[..., :width], cos[at[0]], sin[at[0]])
            b = rotate(k[..., :width], cos[at[1]], sin[at[1]])
            scores.append((a * b).sum())
        torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), atol=1e-5, rtol=1e-5)


def test_yarn_when_channels_are_fast_or_slow_then_kept_or_stretched():
    plain = rope_inv_freq(64, 6e6)
    stretched, scale = yarn_inv_freq(
        64, 6e6, factor=2.0, original_length=131072, beta_fast=32, beta_slow=1
    )
    assert stretched[0] == plain[0]
    assert stretched[-1] == plain[-1] / 2
    assert scale == pytest.approx(1.0693, abs=1e-4)


def test_truncation_when_each_rule_applies_then_keeps_what_it_says():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))
    rows = logits.expand(5, -1)
    out = truncate_logits(
        rows,
        torch.tensor([2, 4, 4, 4, 1]),
        torch.tensor([1.0, 0.7, 0.76, 1.0, 0.01]),
        torch.tensor([0.0, 0.0, 0.0, 0.4, 1.0]),
    )
    assert out.isfinite().sum(-1).tolist() == [2, 2, 3, 2, 1]


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_truncation_when_the_vocabulary_is_large_then_equals_ordering_all_of_it(spread):
    logits = rand(12, 3000) * spread
    top_k = torch.tensor([3000, 5, 3000, 255, 256, 257, 1000, 1, 3000, 300, 3000, 20])
    top_p = torch.tensor([1.0, 1.0, 0.5, 0.9, 0.9, 0.9, 0.99, 0.5, 0.01, 1.0, 0.95, 0.3])
    min_p = torch.tensor([0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0, 0.5, 0.0, 0.0, 0.0])
    for row in range(12):
        out = truncate_logits(
            logits[row : row + 1], top_k[row : row + 1], top_p[row : row + 1], min_p[row : row + 1]
        )
        order = logits[row].argsort(descending=True)[: top_k[row]]
        probs = logits[row, order].double().softmax(0)
        before = probs.cumsum(0) - probs
        keep = (before < top_p[row].item()) | (top_p[row] == 1)
        keep &= probs >= probs[0] * min_p[row].item()
        expected = sorted(order[keep].tolist())
        assert out[0].isfinite().nonzero().flatten().tolist() == expected
    together = truncate_logits(logits, top_k, top_p, min_p)
    alone = [
        truncate_logits(logits[r : r + 1], top_k[r : r + 1], top_p[r : r + 1], min_p[r : r + 1])
        for r in range(12)
    ]
    assert torch.equal(together, torch.cat(alone))
