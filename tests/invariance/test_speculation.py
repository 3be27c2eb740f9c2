"""Speculation on = off, token for token and bit for bit, whatever is drafted and accepted."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_support import finish, new_engine, request
from lingflash.core.types import GrammarSpec
from lingflash.engine.run import step_sampling
from lingflash.engine.run.speculation import Speculator
from lingflash.structured.grammar import GrammarCompiler
from lingflash.structured.vocabulary import Vocabulary
from models_support import load
from oracle import write_checkpoint

STOP, VOCAB = 127, 128
TOKENS = (
    [bytes([i]) for i in range(120)] + [b"ab", b"ba", b"abc", b"12", b"", b""] + [b"<t>", b"<s>"]
)
GRAMMARS = {
    "choice": GrammarSpec("choice", '["abba", "abc12", "x"]'),
    "letters": GrammarSpec("regex", "[abc]{3,12}"),
    "forced": GrammarSpec("regex", "abcabc(xyz|12)[abc]*"),
}
_small = None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four layers, width 64, with an MTP layer: small enough for hundreds of schedules."""
    global _small
    if _small is None:
        folder = tmp_path_factory.mktemp("small")
        _small = load(write_checkpoint(folder, {"hidden_size": 64}), max_model_len=256)
    return _small


def vocabulary():
    return Vocabulary(
        token_bytes=TOKENS,
        special_ids=[126],
        stop_ids=[STOP],
        size=VOCAB,
        encode=lambda text: list(text.encode()),
    )


compiler = GrammarCompiler(vocabulary)


def engine(model, **changes):
    options = {"num_blocks": 40, "max_num_seqs": 4, "max_model_len": 160}
    options |= {"batch_invariant": True, "max_num_batched_tokens": 48, "stop_token_ids": (STOP,)}
    loop = new_engine(model=model, **(options | changes))
    loop.grammars = compiler
    return loop


@dataclass
class Answer:
    """What a client sees of one choice."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    end: tuple = ()
    prompt_logprobs: list | None = None


def answers_of(events):
    found: dict[tuple[str, int], Answer] = {}
    for event in events:
        answer = found.setdefault((event.request_id, event.choice), Answer())
        assert not answer.end
        answer.token_ids += event.token_ids
        answer.logprobs += event.logprobs or []
        if event.prompt_logprobs is not None:
            answer.prompt_logprobs = event.prompt_logprobs
        if event.finish_reason is not None:
            answer.end = (event.finish_reason, event.stop_token_id, event.error_code)
    return found


def make_request(name, spec):
    spec = dict(spec)
    grammar = spec.pop("grammar", None)
    made = request(name, **spec)
    if grammar is None:
        return made
    return type(made)(
        request_id=name,
        prompt_token_ids=made.prompt_token_ids,
        sampling=made.sampling,
        grammar=GRAMMARS[grammar],
    )


class LogitRows:
    """Rows of logits by (request id, choice, answer so far), drafts that are tried included."""

    def __init__(self, patch):
        self.rows: dict[tuple[str, int, tuple[int, ...]], torch.Tensor] = {}
        original = step_sampling.sample

        def recording(logits, sequences, forbidden=None):
            for row, s in zip(logits, sequences, strict=True):
                key = (s.request_id, s.choice, tuple(s.output_token_ids))
                assert key not in self.rows or torch.equal(self.rows[key], row), key
                self.rows[key] = row.clone()
            return original(logits, sequences, forbidden)

        patch.setattr(step_sampling, "sample", recording)


def fresh(model, spec, cache={}):  # noqa: B006 - one result per request and process is the point
    """Answers and logits of a request alone, without speculation."""
    if repr(spec) not in cache:
        with pytest.MonkeyPatch.context() as patch:
            rows = LogitRows(patch).rows
            loop = engine(model, max_num_batched_tokens=256)
            loop.add(make_request("x", spec))
            answers = answers_of(finish(loop))
        cache[repr(spec)] = (
            {choice: answer for (_, choice), answer in answers.items()},
            {key[1:]: row for key, row in rows.items()},
        )
    return cache[repr(spec)]


def draft_from(patch, expected, share, seed):
    """Let drafts be the true next token with some probability, else anything."""
    rng = random.Random(seed)

    def choose(self, out, drafts):
        chosen = []
        for draft in drafts:
            s = draft.sequence
            place = len(s.output_token_ids) + len(draft.tokens)
            answer = expected(s.request_id)[s.choice].token_ids
            known = place < len(answer) and rng.random() < share
            chosen.append(answer[place] if known else rng.randrange(VOCAB))
        return chosen

    patch.setattr(Speculator, "_choose", choose)


@st.composite
def specs(draw):
    content = draw(st.integers(0, 5))
    length = draw(st.sampled_from([1, 5, 15, 16, 17, 33, 48, 60]))
    spec = {
        "token_ids": [(content * 31 + 7 * t + 1) % 120 for t in range(length)],
        "max_tokens": draw(st.integers(0, 26)),
        "temperature": draw(st.sampled_from([0.0, 1.0])),
        "seed": draw(st.integers(0, 3)),
        "n": draw(st.sampled_from([1, 1, 2])),
        "ignore_eos": draw(st.booleans()),
        "logprobs": draw(st.sampled_from([None, 0, 2])),
    }
    extra = draw(
        st.sampled_from(["", "", "penalty", "bias", "stop", "min", "top", "prompt", "grammar"])
    )
    spec |= {
        "": {},
        "penalty": {
            "presence_penalty": 0.7,
            "frequency_penalty": 0.3,
            "repetition_penalty": 1.3,
        },
        "bias": {"logit_bias": {3: 4.0, 5: -100.0, STOP: 3.0}},
        "stop": {"stop_token_ids": tuple(range(content, 120, 9))},
        "min": {"stop_token_ids": tuple(range(0, 120, 5)), "min_tokens": spec["max_tokens"] // 2},
        "top": {"top_p": 0.8, "top_k": 20, "min_p": 0.01},
        "prompt": {"prompt_logprobs": 1},
        "grammar": {"grammar": draw(st.sampled_from(sorted(GRAMMARS)))},
    }[extra]
    return spec


@st.composite
def schedules(draw):
    return {
        "requests": draw(st.lists(st.tuples(specs(), st.integers(0, 8)), min_size=1, max_size=5)),
        "num_drafts": draw(st.integers(1, 4)),
        "share": draw(st.sampled_from([None, 0.5, 0.8, 1.0])),
        "chunk": draw(st.sampled_from([5, 8, 17, 48, 200])),
        "num_blocks": draw(st.integers(10, 40)),
        "prefix_caching": draw(st.booleans()),
        "num_host_blocks": draw(st.sampled_from([0, 0, 20])),
        "max_num_seqs": draw(st.integers(1, 4)),
        "abort": draw(st.none() | st.integers(0, 4)),
        "off": draw(st.sampled_from([0, 0, 3, 7])),
        "seed": draw(st.integers(0, 3)),
    }


def play(
    model,
    requests,
    num_drafts,
    share,
    chunk,
    num_blocks,
    prefix_caching=False,
    num_host_blocks=0,
    max_num_seqs=4,
    abort=None,
    off=0,
    seed=0,
):
    """Run requests with speculation and compare with each alone without.

    Args:
        requests: (spec, step at which it comes).
        share: of drafts that are true; None asks the MTP layer.
        off: if set, speculation is off in every second run of this many steps.
    """
    specs = [spec for spec, _ in requests]
    expected = {f"r{i}": fresh(model, spec)[0] for i, spec in enumerate(specs)}
    with pytest.MonkeyPatch.context() as patch:
        rows = LogitRows(patch).rows
        if share is not None:
            draft_from(patch, expected.__getitem__, share, seed)
        loop = engine(
            model,
            num_blocks=num_blocks,
            prefix_caching=prefix_caching,
            num_host_blocks=num_host_blocks if prefix_caching else 0,
            max_num_batched_tokens=max(chunk, max_num_seqs),
            max_num_seqs=max_num_seqs,
            num_speculative_tokens=num_drafts,
        )
        count = loop.speculation.num_draft_tokens
        waiting = sorted(enumerate(requests), key=lambda item: item[1][1])
        events, step = [], 0
        while waiting or loop.has_work:
            while waiting and waiting[0][1][1] <= step:
                index, (spec, _) = waiting.pop(0)
                loop.add(make_request(f"r{index}", spec))
            if step == 6 and abort is not None:
                events += loop.abort(f"r{abort}")
            is_off = off and step // off % 2
            loop.speculation.num_draft_tokens = (lambda n: 0) if is_off else count
            events += loop.step()
            step += 1
    for (name, choice), answer in answers_of(events).items():
        wanted = expected[name][choice]
        if answer.end[0] == "aborted":
            assert name == f"r{abort}"
            assert answer.token_ids == wanted.token_ids[: len(answer.token_ids)]
            continue
        assert answer == wanted, (name, choice)
    for (name, choice, said), row in rows.items():
        alone = fresh(model, specs[int(name[1:])])[1].get((choice, said))
        assert alone is None or torch.equal(row, alone), (name, choice, len(said))
    assert loop.scheduler.cache.num_free_blocks == num_blocks
    assert loop.scheduler.cache.num_free_slots == max_num_seqs
    return loop.stats()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule=schedules())
def test_answers_when_speculating_then_bitwise_equal_to_without(model, schedule):
    play(model, **schedule)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(
    max_examples=int(os.environ.get("LINGFLASH_TEST_EXAMPLES", "800")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(schedule=schedules())
def test_answers_when_speculating_many_times_then_bitwise_equal_to_without(model, schedule):
    play(model, **schedule)


def spec_of(i, length, **changes):
    spec = {
        "token_ids": [(31 * i + 7 * t + 1) % 120 for t in range(length)],
        "max_tokens": 40,
        "temperature": 1.0,
        "seed": i,
        "ignore_eos": True,
        "logprobs": 2,
    }
    return spec | changes


@pytest.mark.parametrize("num_drafts", [1, 2, 3, 4])
def test_steps_when_drafts_are_true_then_fewer_and_the_same_tokens(model, num_drafts):
    requests = [(spec_of(i, 20 + 9 * i), i) for i in range(3)]
    stats = play(model, requests, num_drafts, 1.0, 48, 40)
    assert stats.accepted_draft_tokens == stats.draft_tokens
    assert stats.num_steps <= 40 // (num_drafts + 1) + 12
    stats = play(model, requests, num_drafts, 0.7, 48, 40, seed=1)
    assert 0.3 < stats.accepted_draft_tokens / stats.draft_tokens < 0.9


def test_sequences_when_preempted_while_speculating_then_the_same_answers(model):
    requests = [(spec_of(i, 30), 0) for i in range(4)]
    stats = play(model, requests, 4, 0.8, 64, 11)
    assert stats.num_preemptions >= 2


def test_prompts_when_repeated_then_found_and_the_same_answers(model):
    requests = [(spec_of(1, 60, max_tokens=20, seed=s), 12 * s) for s in range(4)]
    stats = play(model, requests, 3, 0.8, 48, 40, prefix_caching=True)
    assert stats.prefix_hit_tokens >= 3 * 48
