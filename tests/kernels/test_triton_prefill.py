"""Prefill kernels of both kinds of attention against their references.

On a GPU if there is one, at sizes that fill tiles; else in the interpreter, at small ones.
"""

from __future__ import annotations

import pytest
import torch

from lingflash.kernels.lightning_attn import (
    ANCHOR,
    decay_tables,
    lightning_attention,
    lightning_attention_reference,
    plan_lightning,
)
from lingflash.kernels.lightning_attn.segments import cut_segments
from lingflash.kernels.lightning_attn.triton_prefill import lightning_prefill_triton
from lingflash.kernels.lightning_attn.triton_prepare import prepare_qkv_triton
from lingflash.kernels.rmsnorm import rms_norm_reference
from lingflash.kernels.rope import apply_rope_half_split, rope_inv_freq, rope_table

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
CPU = torch.device("cpu")
EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16]
# The fastest head of Ling-2.6-flash forgets within a few tokens, the slowest hardly at all.
RATE = torch.tensor([2**-0.25, 0.05, 1e-6], dtype=torch.float64)
HEADS, TAIL = len(RATE), ANCHOR + 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def near(got, expected, dtype):
    """Within the kernel's promise, relative to the largest value."""
    limit = 2e-5 if dtype == torch.float32 else 1e-2
    error = (got.cpu().double() - expected).abs().max() / expected.abs().max()
    assert error < limit, error.item()


class Memory:
    """Slots of NaN but for those taken; sequences advance in steps and are told at the end."""

    def __init__(self, key_dim, value_dim, dtype, slots):
        self.dtype, self.slots = dtype, slots
        sizes = (key_dim, value_dim), (TAIL, key_dim), (TAIL, value_dim)
        self.pools = [torch.full((6, HEADS, *size), float("nan"), device=DEVICE) for size in sizes]
        for pool in self.pools:
            pool[slots] = 0
        self.tables = decay_tables(RATE, 64, key_dim, DEVICE)
        self.rows = [[] for _ in slots]
        self.outs = [[] for _ in slots]

    def step(self, who, lengths, starts, anchors, certain=None, most_tokens=None):
        key_dim, value_dim = self.pools[0].shape[-2:]
        total = sum(lengths)
        # Rows of a wider matrix, as the projection gives them.
        fused = torch.randn(total, HEADS * (2 * key_dim + value_dim) + 5, device=DEVICE)
        fused = fused.to(self.dtype)
        q, k, v = (
            x.view(total, HEADS, -1)
            for x in fused[:, :-5].split([HEADS * d for d in (key_dim, key_dim, value_dim)], -1)
        )
        plan = plan_lightning(
            starts, anchors, lengths, [self.slots[i] for i in who], chunk=64, device=DEVICE,
            allow_decode=False, num_certain=certain, in_segments=True,
        )  # fmt: skip
        cut = plan.segments
        assert cut is not None
        if most_tokens is not None:
            tails = [s - a for s, a in zip(starts, anchors, strict=True)]
            sure = lengths if certain is None else certain
            folds = [
                (s + c) // ANCHOR * ANCHOR - a
                for s, c, a in zip(starts, sure, anchors, strict=True)
            ]
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
@pytest.mark.parametrize("dims", [(8, 12), (32, 32)] + [(128, 128)] * HAS_GPU)
def test_lightning_prefill_when_sequences_advance_then_as_the_recurrence(dims, dtype):
    memory = Memory(*dims, dtype, [4, 0, 2])
    done = [0, 0, 0]
    for lengths in ([70, 16, 0], [1, 3, 5], [150, 1, 11], [9, 12, 1], [1, 1, 200]):
        who = [i for i in range(3) if lengths[i]]
        starts = [done[i] for i in who]
        memory.step(
            who, [lengths[i] for i in who], starts, [s // ANCHOR * ANCHOR for s in starts],
            most_tokens=64,
        )  # fmt: skip
        for i in who:
            done[i] += lengths[i]
    for i in range(3):
        memory.check(i, done[i] // ANCHOR * ANCHOR)
    unused = [s for s in range(6) if s not in memory.slots]
    assert all(pool[unused].isnan().all() for pool in memory.pools)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 64, 257] + [8192] * HAS_GPU)
def test_lightning_prefill_when_cut_otherwise_then_the_same(length, dtype):
    results = []
    for most in (64, 128, None):
        torch.manual_seed(1)
        memory = Memory(16, 16, dtype, [3])
        memory.step([0], [length], [0], [0], most_tokens=most)
        results.append(torch.stack(memory.outs[0]))
        if length < 1000:
            memory.check(0, length // ANCHOR * ANCHOR)
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
    anchor = (start + 1) // ANCHOR * ANCHOR
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
    for in_segments in (False, True):
        pools = [torch.zeros(2, HEADS, n, dim) for n in (dim, TAIL, TAIL)]
        plan = plan_lightning(
            [0, 0], [0, 0], [37, 63], [1, 0], chunk=64, device=CPU, allow_decode=True,
            in_segments=in_segments,
        )  # fmt: skip
        if in_segments and HAS_GPU:
            continue
        out = lightning_attention(q, k, v, tables, *pools, plan)
        results.append([out, *pools])
    for x, y in zip(*results, strict=True) if len(results) == 2 else ():
        torch.testing.assert_close(x, y, atol=3e-5, rtol=1e-4)


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
