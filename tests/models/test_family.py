"""Every shape of the family against a float64 implementation, in all ways of feeding a prompt."""

from __future__ import annotations

import pytest
import torch

from lingflash.models.forward_batch import make_forward_batch
from lingflash.models.layers.lightning import head_slopes
from models_support import CPU, feed_in_chunks, load, new_cache
from oracle import FAMILY, Oracle, write_checkpoint

IDS = torch.randint(0, 120, (70,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture(params=FAMILY, scope="module")
def pair(request, tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), FAMILY[request.param])
    return load(folder, max_model_len=512), Oracle(folder)


def test_logits_when_fed_in_any_way_then_match_the_oracle(pair):
    model, oracle = pair
    expected = oracle.logits(IDS).float()
    for size, invariant in ((1, False), (5, False), (1000, False), (1000, True), (3, True)):
        logits, _ = feed_in_chunks(model, IDS, size, batch_invariant=invariant)
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


def test_mtp_logits_when_the_layer_is_there_then_match_the_oracle(pair):
    model, oracle = pair
    if not model.config.num_nextn_predict_layers:
        assert model.mtp is None
        return
    rows = len(IDS) - 1
    batch = make_forward_batch(
        [IDS[:-1]], [0], [list(range(10))], [0], [], block_size=16, device=CPU
    )
    hidden = oracle.hidden(IDS)[:-1].float()
    out = model.mtp_forward(hidden, torch.tensor(IDS[1:]), batch, new_cache(model))
    assert out.shape[0] == rows
    torch.testing.assert_close(
        model.logits(out), oracle.mtp_logits(IDS).float(), atol=2e-4, rtol=1e-4
    )


def test_slopes_when_heads_are_no_power_of_two_then_interleave_the_next_one():
    assert head_slopes(4) == [0.25, 0.0625, 0.015625, 0.00390625]
    assert head_slopes(6) == [*head_slopes(4), *head_slopes(8)[0:4:2]]
    assert len(head_slopes(20)) == 20


def test_batch_when_sequences_prefill_decode_and_verify_together_then_each_is_as_alone(tmp_path):
    """One step with a fresh prompt, a decode, a continued prompt and a four-token verification."""
    model = load(write_checkpoint(tmp_path / "m"), max_model_len=512)
    parts = [(0, 40), (33, 1), (20, 30), (47, 4)]  # start, query tokens
    cache = new_cache(model, slots=5, blocks=64)
    tables = [list(range(8 * i, 8 * i + 8)) for i in range(4)]
    prompts = [[(7 * i + 3 * t) % 120 for t in range(60)] for i in range(4)]
    common = {"block_size": 16, "device": CPU}
    for i, (start, _) in enumerate(parts):
        if start:
            warm = make_forward_batch([prompts[i][:start]], [0], [tables[i]], [i + 1], [], **common)
            model.forward(warm, cache)
    batch = make_forward_batch(
        [prompts[i][s : s + n] for i, (s, n) in enumerate(parts)],
        [s for s, _ in parts],
        tables,
        [1, 2, 3, 4],
        [],
        **common,
    )
    logits = model.logits(model.forward(batch, cache))
    row = 0
    for i, (start, count) in enumerate(parts):
        whole, _ = feed_in_chunks(model, prompts[i][: start + count], 1000)
        torch.testing.assert_close(logits[row : row + count], whole[start:], atol=1e-4, rtol=1e-4)
        row += count


def test_drafts_when_rejected_then_leave_no_trace_in_the_state(tmp_path):
    """Verification folds only certain tokens: dropped drafts need no rollback."""
    model = load(write_checkpoint(tmp_path / "m"), max_model_len=512)
    common = {"block_size": 16, "device": CPU}
    table = [list(range(8))]

    def step(cache, tokens, start, anchor, certain=None):
        batch = make_forward_batch(
            [tokens], [start], table, [1], [], anchors=[anchor], num_certain=certain, **common
        )
        return model.logits(model.forward(batch, cache))

    cache = new_cache(model, drafts=4)
    step(cache, IDS[:30], 0, 0)
    drafts = [IDS[30], 99, 98, 97]  # 30 is certain; 31, 32, 33 would cross the anchor at 32
    step(cache, drafts, 30, 16, certain=[1])
    # All drafts are rejected; the next step starts at 31 from the anchor at 16.
    logits = step(cache, IDS[31:36], 31, 16)
    whole, _ = feed_in_chunks(model, IDS[:36], 1000)
    torch.testing.assert_close(logits, whole[31:], atol=1e-4, rtol=1e-4)
