"""Prefill kernels of both kinds of attention against their references.

On a GPU if there is one, at sizes that fill tiles; else in the interpreter, at small ones.
"""

from __future__ import annotations

import pytest
import torch

from lingflash.core.anchors import ANCHOR, last_anchor
from lingflash.kernels.lightning_attn import (
    decay_tables,
    lightning_attention,
    lightning_attention_reference,
    plan_lightning,
)
from lingflash.kernels.lightning_attn.segments import SegmentTables, cut_segments
from lingflash.kernels.lightning_attn.triton_prefill import lightning_prefill_triton
from lingflash.kernels.lightning_attn.triton_prepare import prepare_qkv_triton
from lingflash.kernels.lightning_attn.triton_verify import lightning_verify_triton
from lingflash.kernels.mla import mla_attention, mla_attention_reference, plan_mla
from lingflash.kernels.mla.gpu_plan import TILE_ROWS
from lingflash.kernels.mla.triton_decode import mla_decode_triton, num_parts_for
from lingflash.kernels.rmsnorm import group_rms_norm_reference, rms_norm_reference
from lingflash.kernels.rope import apply_rope_half_split, rope_inv_freq, rope_table

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
CPU = torch.device("cpu")
EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16]
# The fastest head of Ling-2.6-flash forgets within a few tokens, the slowest hardly at all.
RATE = torch.tensor([2**-0.25, 0.05, 1e-6], dtype=torch.float64)
HEADS, TAIL = len(RATE), ANCHOR + 4


def near(got, expected, dtype, bf16_limit=1e-2):
    """Within the kernel's promise, relative to the largest value."""
    limit = 2e-5 if dtype == torch.float32 else bf16_limit
    error = (got.cpu().double() - expected).abs().max() / expected.abs().max()
    assert error < limit, error.item()


class Memory:
    """Slots of NaN but for those taken; sequences advance in steps and are told at the end."""

    def __init__(self, key_dim, value_dim, dtype, slots, spare=5):
        self.dtype, self.slots, self.spare = dtype, slots, spare
        sizes = (key_dim, value_dim), (TAIL, key_dim), (TAIL, value_dim)
        self.pools = [torch.full((6, HEADS, *size), float("nan"), device=DEVICE) for size in sizes]
        for pool in self.pools:
            pool[slots] = 0
        self.tables = decay_tables(RATE, 64, key_dim, DEVICE)
        self.rows = [[] for _ in slots]
        self.outs = [[] for _ in slots]

    def step(self, who, lengths, starts, anchors, certain=None, most_tokens=None, saves=None):
        key_dim, value_dim = self.pools[0].shape[-2:]
        total = sum(lengths)
        # Rows of a wider matrix, as the projection gives them.
        width = HEADS * (2 * key_dim + value_dim)
        fused = torch.randn(total, width + self.spare, device=DEVICE)
        fused = fused.to(self.dtype)
        q, k, v = (
            x.view(total, HEADS, -1)
            for x in fused[:, :width].split([HEADS * d for d in (key_dim, key_dim, value_dim)], -1)
        )
        plan = plan_lightning(
            starts, anchors, lengths, [self.slots[i] for i in who], chunk=64, device=DEVICE,
            allow_decode=False, num_certain=certain, saves=saves, for_gpu=True,
        )  # fmt: skip
        cut = plan.segments
        assert cut is not None
        if most_tokens is not None:
            tails = [s - a for s, a in zip(starts, anchors, strict=True)]
            sure = lengths if certain is None else certain
            folds = [last_anchor(s + c) - a for s, c, a in zip(starts, sure, anchors, strict=True)]
            cut = cut_segments(
                tails, lengths, folds, [self.slots[i] for i in who], device=DEVICE,
                most_tokens=most_tokens,
            )  # fmt: skip
        out = lightning_prefill_triton(
            q, k, v, self.tables.log2_rate, *self.pools, cut, out_dtype=torch.float32
        )
        rows = [x.cpu().double().split(lengths) for x in (q, k, v)]
        for n, i in enumerate(who):
            start = starts[n]
            self.rows[i] = self.rows[i][:start] + list(zip(*(x[n] for x in rows), strict=True))
            self.outs[i] = self.outs[i][:start] + list(out.split(lengths)[n])

    def check(self, i, folded):
        q, k, v = (torch.stack(x) for x in zip(*self.rows[i], strict=True))
        expected, _ = lightning_attention_reference(q, k, v, RATE)
        near(torch.stack(self.outs[i]), expected, self.dtype)
        slot, end = self.slots[i], len(q)
        if folded:
            parts = (x[:folded] for x in (q, k, v))
            near(self.pools[0][slot], lightning_attention_reference(*parts, RATE)[1], self.dtype)
        for pool, x in ((self.pools[1], k), (self.pools[2], v)):
            kept = pool[slot, :, : end - folded].transpose(0, 1).cpu().double()
            assert torch.equal(kept, x[folded:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(8, 12), (16, 16)] + [(128, 128)] * HAS_GPU)
def test_lightning_prefill_when_sequences_advance_then_as_the_recurrence(dims, dtype):
    memory = Memory(*dims, dtype, [4, 0, 2])
    done = [0, 0, 0]
    for lengths in ([70, 16, 0], [1, 3, 5], [90, 1, 11], [9, 12, 1], [1, 1, 70]):
        who = [i for i in range(3) if lengths[i]]
        starts = [done[i] for i in who]
        memory.step(
            who, [lengths[i] for i in who], starts, [last_anchor(s) for s in starts],
            most_tokens=64,
        )  # fmt: skip
        for i in who:
            done[i] += lengths[i]
    for i in range(3):
        memory.check(i, last_anchor(done[i]))
    unused = [s for s in range(6) if s not in memory.slots]
    assert all(pool[unused].isnan().all() for pool in memory.pools)


@pytest.mark.parametrize("spare", [5, 8])
def test_lightning_prefill_when_rows_are_on_the_copy_engines_grid_then_the_same(spare):
    memory = Memory(16, 16, torch.bfloat16, [3, 1], spare)
    memory.step([0, 1], [150, 64], [0, 0], [0, 0], most_tokens=64)
    memory.step([0, 1], [70, 130], [150, 64], [144, 64])
    memory.check(0, 208)
    memory.check(1, 192)


@pytest.mark.parametrize("place", [16, 96])
def test_lightning_prefill_when_states_are_saved_on_the_way_then_are_those_of_that_place(place):
    memory = Memory(8, 8, torch.float32, [2])
    memory.step([0], [7], [0], [0])
    memory.step([0], [150], [7], [0], saves=[(place, 4)])
    memory.check(0, 144)
    parts = [torch.stack(x)[:place] for x in zip(*memory.rows[0], strict=True)]
    near(memory.pools[0][4], lightning_attention_reference(*parts, RATE)[1], torch.float32)
    with pytest.raises(ValueError, match="GPU's kernels alone"):
        plan_lightning(
            [0], [0], [40], [0], chunk=64, device=torch.device("cpu"), allow_decode=False,
            saves=[(16, 4)], for_gpu=False,
        )  # fmt: skip


@pytest.mark.usefixtures("poisoned_memory")
def test_lightning_prefill_when_padded_then_gaps_are_zeros_and_touch_nothing():
    memory = Memory(8, 8, torch.float32, [2])
    q, k, v = (torch.randn(40, HEADS, 8, device=DEVICE) for _ in range(3))
    cut = cut_segments([0], [33], [32], [2], device=DEVICE)
    size = memory.pools[0].shape[0] - 1
    number = torch.arange(4, dtype=torch.int32, device=DEVICE)
    none = torch.zeros_like(number)
    columns = [none + size, none, none, number, number, number + 1, *[none] * 5]
    padded = SegmentTables(
        torch.cat([cut.segments, torch.stack([none, none, number], 1)[len(cut.segments) :]]),
        torch.cat([cut.sequences, torch.stack(columns, 1)[1:]]), 40, 40, has_gaps=True,
    )  # fmt: skip
    before = [pool.clone() for pool in memory.pools]
    out = lightning_prefill_triton(q, k, v, memory.tables.log2_rate, *memory.pools, padded)
    expected, _ = lightning_attention_reference(*(x[:33].cpu().double() for x in (q, k, v)), RATE)
    near(out[:33], expected, torch.float32)
    assert not out[33:].any()
    near(
        memory.pools[0][2],
        lightning_attention_reference(*(x[:32].cpu().double() for x in (q, k, v)), RATE)[1],
        torch.float32,
    )
    for pool, old in zip(memory.pools, before, strict=True):
        rest = [i for i in range(size + 1) if i != 2]
        assert torch.equal(pool[rest].nan_to_num(7.0), old[rest].nan_to_num(7.0))


def test_lightning_prefill_when_segments_are_many_then_each_begins_with_all_before_it():
    memory = Memory(8, 8, torch.float32, [2])
    memory.step([0], [7], [0], [0])
    memory.step([0], [64 * 9 + 30], [7], [0], most_tokens=64)
    memory.check(0, 608)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 64, 150] + [8192] * HAS_GPU)
def test_lightning_prefill_when_cut_otherwise_then_the_same(length, dtype):
    results = []
    for most in (64, 128, None):
        torch.manual_seed(1)
        memory = Memory(8, 8, dtype, [3])
        memory.step([0], [length], [0], [0], most_tokens=most)
        results.append(torch.stack(memory.outs[0]))
        if length < 1000:
            memory.check(0, last_anchor(length))
    for other in results[1:]:
        near(other, results[0].cpu().double(), dtype)


@pytest.mark.parametrize("accepted", [0, 1, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lightning_prefill_when_drafts_cross_an_anchor_then_they_are_not_folded(accepted, dtype):
    memory = Memory(8, 8, dtype, [1, 5])
    memory.step([0, 1], [28, 3], [0, 0], [0, 0])
    memory.step([0, 1], [5, 5], [28, 3], [16, 0], certain=[1, 1])
    memory.check(0, 16)
    start = 29 + accepted
    memory.step([0], [5], [start], [16], certain=[1])
    anchor = last_anchor(start + 1)
    memory.check(0, anchor)
    memory.step([0], [79 - start], [start + 1], [anchor])
    memory.check(0, 80)
    memory.step([1], [1], [4], [0])
    memory.check(1, 0)


def test_lightning_prefill_when_the_tail_is_longer_than_an_anchor_then_the_rest_moves_down():
    memory = Memory(8, 8, torch.float32, [2])
    memory.step([0], [15], [0], [0])
    memory.step([0], [3], [15], [0], certain=[0])
    memory.check(0, 0)
    memory.step([0], [2], [18], [0], certain=[0])  # folds 16 of the 18 old tokens
    memory.check(0, 16)


def test_lightning_op_when_planned_in_chunks_then_equals_the_segments():
    rows, dim = 100, 16
    q, k, v = (torch.randn(rows, HEADS, dim) for _ in range(3))
    tables = decay_tables(RATE, 64, dim, CPU)
    results = []
    for for_gpu in (False, True):
        pools = [torch.zeros(2, HEADS, n, dim) for n in (dim, TAIL, TAIL)]
        plan = plan_lightning(
            [0, 0], [0, 0], [37, 63], [1, 0], chunk=64, device=CPU, allow_decode=True,
            for_gpu=for_gpu,
        )  # fmt: skip
        if for_gpu and HAS_GPU:
            continue
        out = lightning_attention(q, k, v, tables, *pools, plan)
        results.append([out, *pools])
    for x, y in zip(*results, strict=True) if len(results) == 2 else ():
        torch.testing.assert_close(x, y, atol=3e-5, rtol=1e-4)


class Verified:
    """Sequences that advance by a few tokens at a time, drafts among them."""

    def __init__(self, dim, rotary, has_norm, silu, groups, dtype):
        self.dim, self.silu, self.groups, self.dtype = dim, silu, groups, dtype
        self.slots = [4, 1]
        self.pools = [torch.full((5, HEADS, n, dim), float("nan"), device=DEVICE) for n in
                      (dim, TAIL, TAIL)]  # fmt: skip
        for pool in self.pools:
            pool[self.slots] = 0
        self.log2_rate = decay_tables(RATE, 64, dim, DEVICE).log2_rate
        self.norm = torch.randn(2, 1, dim, device=DEVICE) if has_norm else None
        self.g_norm = torch.randn(HEADS * dim, device=DEVICE)
        self.angles = rope_table(rope_inv_freq(rotary, 1000.0), 100, 1.0, DEVICE)
        self.rows = [[], []]
        self.outs = [[], []]

    def step(self, *parts):
        """Each part: sequence, start, anchor, tokens, how many of them are certain."""
        who, starts, anchors, lengths, certain = (list(x) for x in zip(*parts, strict=True))
        fused = torch.randn(sum(lengths), 4 * HEADS * self.dim + 3, device=DEVICE)
        fused = fused[:, :-3].to(self.dtype)
        plan = plan_lightning(
            starts, anchors, lengths, [self.slots[i] for i in who], chunk=64, device=DEVICE,
            allow_decode=False, num_certain=certain, for_gpu=True,
        )  # fmt: skip
        assert plan.segments is not None
        at = [p for s, n in zip(starts, lengths, strict=True) for p in range(s, s + n)]
        cos, sin = self.angles[at][:, None].chunk(2, -1)
        out = lightning_verify_triton(
            fused, self.norm, cos, sin, self.log2_rate, *self.pools, plan.segments, self.g_norm,
            num_groups=self.groups, eps=EPS, silu=self.silu,
        )  # fmt: skip
        for n, i in enumerate(who):
            self.rows[i] = self.rows[i][: starts[n]] + list(fused.split(lengths)[n])
            self.outs[i] = self.outs[i][: starts[n]] + list(out.split(lengths)[n])

    def check(self, i, folded):
        fused = torch.stack(self.rows[i]).float()
        rows, inner = fused.shape[0], HEADS * self.dim
        qkv = fused[:, : 3 * inner]
        qkv = torch.nn.functional.silu(qkv) if self.silu else qkv
        q, k, v = (x.reshape(rows, HEADS, self.dim) for x in qkv.chunk(3, -1))
        if self.norm is not None:
            q, k = (
                rms_norm_reference(x, w[0], EPS) for x, w in zip((q, k), self.norm, strict=True)
            )
        cos, sin = self.angles[:rows, None].chunk(2, -1)
        q, k = (apply_rope_half_split(x, cos, sin) for x in (q, k))
        q, k, v = (x.cpu().double() for x in (q, k, v))
        out, _ = lightning_attention_reference(q, k, v, RATE)
        expected = group_rms_norm_reference(
            out.flatten(1).float(), self.g_norm.cpu(), self.groups, EPS
        )
        expected = (expected * fused[:, 3 * inner :].cpu().sigmoid()).double()
        near(torch.stack(self.outs[i]), expected, self.dtype)
        slot = self.slots[i]
        if folded:
            parts = (x[:folded] for x in (q, k, v))
            state = lightning_attention_reference(*parts, RATE)[1]
            near(self.pools[0][slot], state, torch.float32)
        for pool, x in ((self.pools[1], k), (self.pools[2], v)):
            kept = pool[slot, :, : rows - folded].transpose(0, 1).cpu().double()
            torch.testing.assert_close(kept, x[folded:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("accepted", [0, 2, 4])
@pytest.mark.parametrize(
    ("dim", "rotary", "has_norm", "silu", "groups", "dtype"),
    [
        (16, 8, True, False, 1, torch.bfloat16),
        (12, 12, False, True, 3, torch.float32),
        (40, 20, True, True, 2, torch.float32),
    ],
)
def test_verified_drafts_when_they_cross_anchors_then_as_the_recurrence(
    dim, rotary, has_norm, silu, groups, dtype, accepted
):
    run = Verified(dim, rotary, has_norm, silu, groups, dtype)
    run.step((0, 0, 0, 8, 8), (1, 0, 0, 3, 3))
    run.step((0, 8, 0, 6, 6))
    run.step((0, 14, 0, 5, 1), (1, 3, 0, 5, 1))  # drafts past the anchor at 16: not folded
    run.check(0, 0)
    run.check(1, 0)
    start = 15 + accepted
    # Now what was accepted is certain, and with the next token the anchor may be crossed.
    run.step((1, 4, 0, 1, 1), (0, start, 0, 5, 1))
    folded = 16 if start + 1 >= 16 else 0
    run.check(0, folded)
    run.check(1, 0)
    run.step((0, start + 1, folded, 8, 4))
    run.check(0, 16)
    run.step((0, start + 5, 16, 8, 8))
    run.step((0, start + 13, (start + 13) // 16 * 16, 8, 8))
    run.check(0, (start + 21) // 16 * 16)
    unused = [s for s in range(5) if s not in run.slots]
    assert all(pool[unused].isnan().all() for pool in run.pools)


def test_verification_when_a_sequence_has_more_tokens_than_it_takes_then_refuses():
    run = Verified(16, 16, True, False, 1, torch.float32)
    with pytest.raises(ValueError, match="9 tokens"):
        run.step((0, 0, 0, 9, 9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "dim", "rotary", "has_norm", "silu"),
    [(3, 8, 8, True, False), (3, 12, 6, False, True), (17, 40, 20, True, True)],
)
def test_prepared_qkv_when_shapes_are_odd_then_as_norm_and_rotation(
    heads, dim, rotary, has_norm, silu, dtype
):
    rows = 5
    inner = heads * dim
    fused = torch.randn(rows, 4 * inner + 3, device=DEVICE).to(dtype)[:, : 4 * inner]
    norm = torch.randn(2, 1, dim, device=DEVICE) if has_norm else None
    angles = rope_table(rope_inv_freq(rotary, 1000.0), rows, 1.0, DEVICE)
    cos, sin = angles[:, None].chunk(2, -1)
    got = prepare_qkv_triton(
        fused, norm, cos, sin, num_heads=heads, head_dim=dim, eps=EPS, silu=silu
    )
    x = fused[:, : 3 * inner].float()
    x = torch.nn.functional.silu(x) if silu else x
    q, k, v = (part.reshape(rows, heads, dim) for part in x.chunk(3, -1))
    if norm is not None:
        q, k = (rms_norm_reference(x, w[0], EPS) for x, w in zip((q, k), norm, strict=True))
    expected = apply_rope_half_split(q, cos, sin), apply_rope_half_split(k, cos, sin), v
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    for mine, reference in zip(got, expected, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.float(), reference, rtol=limit, atol=limit)


class LatentPool:
    """Blocks of NaN but for the sequences' latents: past their ends too lies what nobody wrote."""

    def __init__(self, totals, block_size, heads, nope, rope, rank, value, dtype):
        self.block_size, self.dtype, self.rank = block_size, dtype, rank
        counts = [-(-total // block_size) for total in totals]
        order = torch.randperm(sum(counts) + 2).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in counts]
        size = (sum(counts) + 2, block_size, rank + rope)
        self.pool = torch.full(size, float("nan"), dtype=dtype, device=DEVICE)
        self.latents = [torch.randn(n, rank + rope, device=DEVICE).to(dtype) for n in totals]
        for table, latents in zip(self.tables, self.latents, strict=True):
            where = torch.arange(len(latents), device=DEVICE)
            blocks = torch.tensor(table, device=DEVICE)[where // block_size]
            self.pool[blocks, where % block_size] = latents
        self.w_kvb = (torch.randn(heads, nope + value, rank, device=DEVICE) * rank**-0.5).to(dtype)

    def expected(self, i, q_nope, q_rope, first=0):
        q_nope, q_rope, latents, w_kvb = (
            x.cpu().double() for x in (q_nope, q_rope, self.latents[i][first:], self.w_kvb)
        )
        return mla_attention_reference(q_nope, q_rope, latents, w_kvb, 0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("runs", "shape"),
    [
        # (start, queries): decode rows, verification, runs with and without prefix
        ([(0, 1), (40, 1), (0, 70), (30, 3), (9, 130)], (2, 8, 4, 16, 12)),
        ([(0, 5), (0, 130)], (2, 16, 16, 16, 16)),
        ([(21, 2), (63, 1)], (17, 8, 8, 24, 8)),
    ]
    + [([(700, 1), (0, 1000), (3000, 4), (2000, 513)], (32, 128, 64, 512, 128))] * HAS_GPU,
)
def test_mla_on_the_gpu_when_decodes_and_runs_are_mixed_then_matches_the_definition(
    runs, shape, dtype
):
    heads, nope, rope = shape[:3]
    lengths = [n for _, n in runs]
    pool = LatentPool([s + n for s, n in runs], 16, *shape, dtype)
    # Channels side by side, as the projection gives them.
    q = torch.randn(sum(lengths), heads, nope + rope, device=DEVICE).to(dtype)
    plan = plan_mla(
        [s for s, _ in runs], lengths, pool.tables, block_size=16, device=DEVICE,
        fixed_blocks=False, for_gpu=True,
    )  # fmt: skip
    q_nope, q_rope = q[..., :nope], q[..., nope:].contiguous()
    out = mla_attention(q_nope, q_rope, pool.pool, pool.w_kvb, 0.3, plan)
    parts = (x.split(lengths) for x in (q_nope, q_rope, out))
    for i, (qn, qr, mine) in enumerate(zip(*parts, strict=True)):
        near(mine, pool.expected(i, qn, qr), dtype, 2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mla_on_the_gpu_when_first_keys_are_left_out_then_they_are_not_read(dtype):
    heads, nope, rope, rank, value = 2, 8, 4, 16, 6
    starts, firsts = [48, 51, 90], [5, 33, 70]
    pool = LatentPool([s + 1 for s in starts], 32, heads, nope, rope, rank, value, dtype)
    for table, first in zip(pool.tables, firsts, strict=True):
        for position in range(first):
            pool.pool[table[position // 32], position % 32] = float("nan")
    q_nope = torch.randn(3, heads, nope, device=DEVICE).to(dtype)
    q_rope = torch.randn(3, heads, rope, device=DEVICE).to(dtype)
    plan = plan_mla(
        starts, [1] * 3, pool.tables, block_size=32, device=DEVICE, fixed_blocks=False,
        first_keys=firsts, for_gpu=True,
    )  # fmt: skip
    out = mla_attention(q_nope, q_rope, pool.pool, pool.w_kvb, 0.3, plan)
    for i, first in enumerate(firsts):
        rows = slice(i, i + 1)
        expected = pool.expected(i, q_nope[rows], q_rope[rows], first)
        near(out[rows], expected, dtype, 2e-2)


def test_mla_on_the_gpu_when_no_row_is_wanted_then_nothing_is_computed():
    # The middle of a prompt: its latents are written, none of the last layer's rows is read.
    pool = LatentPool([40], 32, 2, 8, 4, 16, 6, torch.float32)
    plan = plan_mla([], [], [], block_size=32, device=DEVICE, fixed_blocks=False, for_gpu=True)
    none = [torch.empty(0, 2, width, device=DEVICE) for width in (8, 4)]
    assert mla_attention(*none, pool.pool, pool.w_kvb, 0.3, plan).shape == (0, 2, 6)


def test_mla_plan_when_runs_are_long_then_tiles_with_most_keys_come_first():
    plan = plan_mla(
        [0, 100], [300, 200], [list(range(19)), list(range(19, 38))], block_size=16, device=CPU,
        fixed_blocks=False, for_gpu=True,
    ).gpu  # fmt: skip
    assert plan is not None
    (group,) = plan.groups
    keys = [rows + position for _, rows, _, position in group.tiles.tolist()]
    assert keys == sorted(keys, reverse=True)
    assert sum(rows for _, rows, _, _ in group.tiles.tolist()) == 500
    assert max(rows for _, rows, _, _ in group.tiles.tolist()) == TILE_ROWS


@pytest.mark.parametrize("num_seqs", [1, 2, 32, 128, 1000])
def test_parts_when_chosen_then_few_sequences_fill_the_machine_once(num_seqs):
    programs = num_seqs * num_parts_for(num_seqs, 132)
    assert programs <= max(4 * 132, num_seqs)
    if num_seqs <= 2:
        assert programs == 132


def test_mla_decode_when_the_grid_is_for_longer_rows_then_unused_parts_are_not_read():
    pool = LatentPool([5], 16, 2, 8, 4, 16, 6, torch.float32)
    query = torch.randn(1, 2, 20, device=DEVICE)
    tables = torch.tensor([pool.tables[0] + [-1000] * 63], device=DEVICE)
    length = torch.tensor([5], device=DEVICE)
    results = [
        mla_decode_triton(query, pool.pool, tables, length, 0.3, rank=16, max_length=n)
        for n in (5, 262_144)
    ]
    assert torch.equal(*results)
    assert results[0].isfinite().all()
