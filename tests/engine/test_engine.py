"""The engine with a real model: sampling, limits, failures, and what each does to the others."""

from __future__ import annotations

import math

import pytest
import torch

from engine_support import finish, new_engine, poison_rows, request, tokens_of
from lingflash.core.errors import ConfigError, EngineError
from lingflash.core.types import SamplingParams
from lingflash.engine.run.sampler import _change_logits
from lingflash.engine.schedule.sequence import sequences_of
from lingflash.kernels.sampling import gumbel_noise, noise_key
from lingflash.models.bailing_hybrid import BailingHybrid
from models_support import feed, new_cache

PROMPT = [(11 * t) % 500 for t in range(40)]


def one(loop, **sampling):
    loop.add(request("r", PROMPT, **({"ignore_eos": True, "max_tokens": 12} | sampling)))
    return finish(loop)


def tokens(loop, **sampling):
    return tokens_of(one(loop, **sampling))["r", 0]


def test_greedy_when_repeated_then_equal_and_equal_to_the_model_alone():
    loop = new_engine()
    got = tokens(loop, temperature=0.0)
    assert got == tokens(loop, temperature=0.0)
    model = loop.runner.model
    logits = feed(model, new_cache(model), PROMPT + got)
    assert got == logits[len(PROMPT) - 1 : -1].argmax(-1).tolist()


@pytest.mark.parametrize("chunk", [8, 16, 39])
def test_prompt_when_computed_in_chunks_then_the_same_answer(chunk):
    """Chunks from whose middle no logits are wanted, alone and beside a decoding sequence."""
    expected = tokens(new_engine(), temperature=0.0)
    loop = new_engine(max_num_batched_tokens=chunk)
    assert tokens(loop, temperature=0.0) == expected
    loop.add(request("x", PROMPT[:3], max_tokens=30, ignore_eos=True))
    loop.step()
    assert tokens(loop, temperature=0.0) == expected


def test_batch_invariant_when_company_changes_a_bit_then_refused(monkeypatch):
    original = BailingHybrid.forward

    def forward(self, batch, cache, trace=None):
        return original(self, batch, cache, trace) * (1 + batch.num_tokens * 1e-6)

    new_engine(batch_invariant=True)
    monkeypatch.setattr(BailingHybrid, "forward", forward)
    with pytest.raises(ConfigError, match="batch-invariant"):
        new_engine(batch_invariant=True)


def test_seed_when_the_same_then_the_same_tokens_in_any_company():
    loop = new_engine(batch_invariant=True)
    alone = tokens(loop, seed=5)
    for i in range(3):
        loop.add(request(f"x{i}", PROMPT[: 9 + i], max_tokens=20, seed=i, ignore_eos=True))
    assert tokens(loop, seed=5) == alone
    assert tokens(loop, seed=6) != alone


def test_choices_when_n_is_three_then_differ_and_each_ends_once():
    loop = new_engine()
    events = one(loop, n=3, seed=1)
    by_choice = tokens_of(events)
    assert len({tuple(t) for t in by_choice.values()}) == 3
    assert sorted(e.choice for e in events if e.finish_reason) == [0, 1, 2]


def test_unseeded_when_repeated_then_differs():
    loop = new_engine()
    assert tokens(loop) != tokens(loop)


@pytest.mark.parametrize("rules", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_truncation_when_only_the_best_token_stays_then_equals_greedy(rules):
    loop = new_engine()
    assert tokens(loop, seed=3, **rules) == tokens(loop, temperature=0.0)


def test_samples_when_drawn_often_then_follow_the_distribution():
    loop = new_engine(max_num_seqs=8)
    loop.add(request("r", PROMPT, max_tokens=1, n=128, seed=2, logprobs=5, top_k=4))
    drawn = [e for e in finish(loop) if e.token_ids]
    top = drawn[0].logprobs[0].top[:4]
    mass = sum(math.exp(p) for _, p in top)
    counts = [sum(e.token_ids == [token] for e in drawn) for token, _ in top]
    assert sum(counts) == 128, "a token outside top_k"
    for count, (_, logprob) in zip(counts, top, strict=True):
        p = math.exp(logprob) / mass
        assert abs(count - 128 * p) < 4 * math.sqrt(128 * p * (1 - p)) + 1


def test_logit_bias_when_strong_then_forces_and_forbids():
    loop = new_engine()
    assert tokens(loop, logit_bias={17: 100.0}) == [17] * 12
    best = tokens(loop, temperature=0.0)[0]
    assert tokens(loop, temperature=0.0, logit_bias={best: -100.0})[0] != best


def test_penalties_when_tokens_were_generated_then_lower_their_logits_as_defined():
    (sequence,) = sequences_of(
        request("r", [2], presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2.0),
        frozenset(),
        99,
        0.0,
    )
    sequence.output_token_ids = [3, 4, 3]
    row = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])
    _change_logits(row, sequence)
    # Prompt and answer tokens are divided (or multiplied) by 2, answer tokens then lose 0.5 + 0.25
    # n.
    assert row.tolist() == [1.0, 1.0, 0.5, 0.5 - 1.0, -2.0 - 0.75]


def test_repetition_penalty_when_high_then_avoids_prompt_and_answer():
    loop = new_engine()
    got = tokens(loop, temperature=0.0, repetition_penalty=50.0)
    assert len(set(got)) == len(got)
    assert not set(got) & set(PROMPT)


def test_min_tokens_when_the_stop_token_is_likely_then_waits():
    loop = new_engine()
    events = one(loop, stop_token_ids=(9,), logit_bias={9: 100.0}, min_tokens=5, ignore_eos=False)
    assert sum(len(e.token_ids) for e in events) == 5
    assert (events[-1].finish_reason, events[-1].stop_token_id) == ("stop", 9)


def test_model_stop_token_when_sampled_then_ends_the_answer():
    loop = new_engine()
    (event,) = one(loop, logit_bias={511: 100.0}, ignore_eos=False)
    assert (event.finish_reason, event.stop_token_id) == ("stop", 511)


def test_logprobs_when_asked_for_then_match_the_model():
    loop = new_engine()
    events = one(loop, temperature=0.0, logprobs=3, prompt_logprobs=2)
    got = [t for e in events for t in e.token_ids]
    model = loop.runner.model
    expected = feed(model, new_cache(model), PROMPT + got).log_softmax(-1)
    for i, event in enumerate(events):
        (item,) = event.logprobs
        row = expected[len(PROMPT) - 1 + i]
        assert item.token_id == got[i] == item.top[0][0]
        assert item.rank == 1
        assert item.logprob == pytest.approx(row[got[i]].item(), abs=1e-3)
        assert len(item.top) == 3
    prompt = events[0].prompt_logprobs
    assert len(prompt) == len(PROMPT)
    assert prompt[0] is None
    for position in range(1, len(PROMPT)):
        row = expected[position - 1]
        item = prompt[position]
        assert item.token_id == PROMPT[position]
        assert item.logprob == pytest.approx(row[item.token_id].item(), abs=1e-3)
        assert item.rank == int((row > row[item.token_id]).sum()) + 1
    assert all(e.prompt_logprobs is None for e in events[1:])


def test_prompt_logprobs_when_the_prompt_is_chunked_then_the_same():
    whole = one(new_engine(), max_tokens=0, prompt_logprobs=1)
    pieces = one(new_engine(max_num_batched_tokens=8), max_tokens=0, prompt_logprobs=1)
    assert len(whole) == len(pieces) == 1
    for a, b in zip(whole[0].prompt_logprobs[1:], pieces[0].prompt_logprobs[1:], strict=True):
        assert a.token_id == b.token_id
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_nan_when_one_request_gives_it_then_only_that_one_ends_with_an_error():
    clean = new_engine()
    clean.add(request("good", PROMPT[:20], temperature=0.0, max_tokens=10, ignore_eos=True))
    expected = tokens_of(finish(clean))["good", 0]
    loop = new_engine()
    poison_rows(loop, "bad")
    loop.add(request("bad", PROMPT, max_tokens=10, logprobs=2))
    loop.add(request("good", PROMPT[:20], temperature=0.0, max_tokens=10, ignore_eos=True))
    events = finish(loop)
    (bad,) = [e for e in events if e.request_id == "bad"]
    assert (bad.finish_reason, bad.error_code) == ("error", "non_finite_logits")
    assert tokens_of(events)["good", 0] == expected
    assert loop.stats().free_blocks == loop.stats().num_blocks


def test_memory_when_the_last_owner_left_nan_then_the_next_one_does_not_see_it():
    loop = new_engine()
    expected = tokens(loop, temperature=0.0)
    for pool in (loop.runner.cache.latents, loop.runner.cache.states, loop.runner.cache.tail_k):
        pool.fill_(float("nan"))
    loop.runner.cache.tail_v.fill_(float("nan"))
    assert tokens(loop, temperature=0.0) == expected


def test_step_when_the_model_raises_then_its_requests_end_and_later_ones_are_served(caplog):
    loop = new_engine(max_num_seqs=1)
    forward, calls = loop.runner.launch, []

    def failing(output):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return forward(output)

    loop.runner.launch = failing
    loop.add(request("a", PROMPT, max_tokens=5))
    loop.add(request("b", PROMPT, max_tokens=5, ignore_eos=True))
    events = finish(loop)
    ends = {e.request_id: e for e in events if e.finish_reason}
    assert ends["a"].error_code == "engine_error"
    assert "out of memory" not in ends["a"].error_message, "details belong to the log"
    assert ends["b"].finish_reason == "length"
    assert "out of memory" in caplog.text


def test_steps_when_they_keep_failing_then_the_engine_gives_up():
    loop = new_engine(max_num_seqs=1)

    def failing(output):
        raise RuntimeError("broken")

    loop.runner.launch = failing
    for i in range(4):
        loop.add(request(f"r{i}", PROMPT))
    loop.step()
    loop.step()
    with pytest.raises(EngineError, match="3 steps failed"):
        loop.step()


def test_abort_when_running_then_frees_everything_at_once():
    loop = new_engine()
    loop.add(request("r", PROMPT, n=2, max_tokens=50, ignore_eos=True))
    loop.step()
    events = loop.abort("r")
    assert [e.finish_reason for e in events] == ["aborted", "aborted"]
    assert not loop.has_work
    assert loop.stats().free_blocks == loop.stats().num_blocks
    assert loop.abort("r") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("min_p", 2.0),
        ("presence_penalty", 3.0),
        ("repetition_penalty", 0.0),
        ("n", 0),
        ("n", 1000),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("stop", ("",)),
        ("logit_bias", {1: 101.0}),
        ("seed", 2**63),
    ],
)
def test_sampling_params_when_out_of_range_then_name_the_field(name, value):
    with pytest.raises(ValueError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_noise_when_the_key_changes_then_is_independent():
    keys = [noise_key(s, c, p) for s in (0, 1, -5) for c in (0, 1) for p in range(50)]
    assert len(set(keys)) == len(keys)
    noise = gumbel_noise(keys, 512, torch.device("cpu"))
    assert torch.equal(noise[7], gumbel_noise([keys[7]], 512, torch.device("cpu"))[0])
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)
    correlation = torch.corrcoef(noise[:20])
    assert (correlation - torch.eye(20)).abs().max() < 0.25
