"""The golden checkpoint: float32 agreement with an independent float64 implementation."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lingflash.models.forward_batch import Trace, make_forward_batch
from models_support import CHECKPOINT, CPU, GOLDEN, feed, feed_in_chunks, load, new_cache

LENGTHS = (1, 7, 64, 200)
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def model():
    return load()


def ids_of(golden, length):
    return golden[f"L{length}.input_ids"].flatten().tolist()


def close(actual, expected, tolerance=TOLERANCE):
    expected = expected.reshape(actual.shape)
    worst = (actual - expected).abs().max().item()
    assert worst < tolerance, worst


@pytest.mark.parametrize("size", [1, 3, 17, 64, 1000])
@pytest.mark.parametrize("length", LENGTHS)
def test_logits_when_fed_in_chunks_then_match(golden, model, length, size):
    logits, _ = feed_in_chunks(model, ids_of(golden, length), size)
    close(logits, golden[f"L{length}.logits"])


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_when_batch_invariant_then_match_and_do_not_depend_on_chunks(golden, model, length):
    ids = ids_of(golden, length)
    whole, _ = feed_in_chunks(model, ids, 1000, batch_invariant=True)
    close(whole, golden[f"L{length}.logits"])
    for size in (1, 3, 17, 64):
        pieces, _ = feed_in_chunks(model, ids, size, batch_invariant=True)
        assert torch.equal(pieces, whole), size


@pytest.mark.parametrize("length", LENGTHS)
def test_every_stored_inner_value_when_traced_then_matches(golden, model, length):
    trace = Trace()
    feed(model, new_cache(model), ids_of(golden, length), trace=trace)
    compared = 0
    for name, expected in golden.items():
        prefix, _, key = name.partition(".")
        if prefix != f"L{length}" or key not in trace.tensors:
            continue
        actual = trace.tensors[key]
        if key.endswith("topk_idx"):
            assert torch.equal(actual, expected.reshape(actual.shape).long()), key
        else:
            close(actual, expected)
        compared += 1
    assert compared >= 16


@pytest.mark.parametrize("size", [1, 17, 1000])
@pytest.mark.parametrize("length", [64, 200])
def test_recurrent_states_when_the_tail_is_folded_in_then_match(golden, model, length, size):
    _, cache = feed_in_chunks(model, ids_of(golden, length), size)
    tail = length % 16
    for place, layer in enumerate(model.config.lightning_layers):
        rate = model.layers[layer].attention._decay_rate
        decay = torch.exp(-rate).float()[:, None, None]
        state = cache.states[place, 1]
        for t in range(tail):
            k, v = cache.tail_k[place, 1, :, t], cache.tail_v[place, 1, :, t]
            state = state * decay + k[:, :, None] * v[:, None]
        close(state, golden[f"L{length}.layer{layer}.state"])


@pytest.mark.parametrize("length", [7, 64])
@pytest.mark.parametrize("size", [1, 17, 1000])
def test_mtp_logits_when_rows_follow_the_main_model_then_match(golden, model, length, size):
    ids = ids_of(golden, length)
    cache = new_cache(model)
    hidden = golden[f"L{length}.final_norm"].reshape(length, -1)
    logits = []
    for lo in range(0, length - 1, size):
        hi = min(lo + size, length - 1)
        batch = make_forward_batch(
            [ids[lo:hi]], [lo], [list(range(20))], [0], [], block_size=16, device=CPU
        )
        out = model.mtp_forward(hidden[lo:hi], torch.tensor(ids[lo + 1 : hi + 1]), batch, cache)
        logits.append(model.logits(out))
    close(torch.cat(logits), golden[f"L{length}.mtp.logits"])


def test_yarn_logits_when_rope_scaling_is_given_then_match(golden):
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
    stretched = load(rope_scaling=scaling)
    logits, _ = feed_in_chunks(stretched, ids_of(golden, 64), 17)
    close(logits, golden["L64.yarn.logits"])


def test_greedy_tokens_when_decoded_one_by_one_then_equal(golden, model):
    ids, expected = ids_of(golden, 7), golden["greedy.tokens"].flatten().tolist()
    cache = new_cache(model)
    logits = feed(model, cache, ids)
    tokens = []
    while len(tokens) < 24:
        tokens.append(int(logits[-1].argmax()))
        logits = feed(model, cache, tokens[-1:], start=len(ids) + len(tokens) - 1)
    assert tokens == expected[-24:]


def test_decay_offset_when_layers_counted_from_one_then_differs(golden, model):
    """The stored variant with the wrong offset must not match: the check can fail."""
    logits, _ = feed_in_chunks(model, ids_of(golden, 64), 1000)
    wrong = golden["L64.slope_offset_minus1.logits"].reshape(logits.shape)
    assert (logits - wrong).abs().max() > 0.1
    assert CHECKPOINT.is_dir()
