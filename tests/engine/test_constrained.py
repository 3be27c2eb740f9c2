"""Sequences under a grammar: batched with free ones, preempted, ended in time, refused alone."""

from __future__ import annotations

import json
import threading

import pytest

from engine_support import finish, new_engine, request, tokens_of
from lingflash.core.errors import InvalidRequestError, QueueFullError
from lingflash.core.types import EngineRequest, GrammarSpec, SamplingParams
from lingflash.engine.grammar_thread import Compiled, GrammarThreads
from lingflash.structured.grammar import GrammarCompiler
from lingflash.structured.vocabulary import Vocabulary

STOP = 511
# Bytes, some longer tokens, one special token and the stop token: the golden checkpoint has no
# text.
TOKENS = [bytes([i]) for i in range(256)] + [b"ab", b"12", b'": ', b"true"]
TOKENS += [b""] * (510 - len(TOKENS)) + [b"<tag>", b"<stop>"]


def vocabulary():
    return Vocabulary(
        token_bytes=TOKENS,
        special_ids=[510],
        stop_ids=[STOP],
        size=512,
        encode=lambda text: list(text.encode()),
    )


def engine(**changes):
    loop = new_engine(**changes)
    loop.grammars = GrammarCompiler(vocabulary)
    return loop


def constrained(name, spec, prompt=(1, 2, 3), **sampling):
    return EngineRequest(
        request_id=name,
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(**{"seed": 1, "max_tokens": 60, **sampling}),
        grammar=spec,
    )


def text_of(token_ids):
    return b"".join(TOKENS[i] for i in token_ids).decode()


CHOICE = GrammarSpec("choice", '["abba", "aba12", "x"]')
SCHEMA = {
    "type": "object",
    "properties": {"ab": {"type": "boolean"}, "n": {"enum": [1, 12, 121]}},
    "required": ["ab", "n"],
}
OBJECT = GrammarSpec("json_schema", json.dumps(SCHEMA))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_step_when_some_follow_grammars_then_they_do_and_the_others_are_as_alone(
    temperature, batch_invariant
):
    free = {"max_tokens": 12, "temperature": temperature, "seed": 3, "ignore_eos": True}
    alone = engine(batch_invariant=batch_invariant)
    alone.add(request("free", [5, 6, 7], **free))
    expected = tokens_of(finish(alone))["free", 0]
    loop = engine(batch_invariant=batch_invariant)
    loop.add(request("free", [5, 6, 7], **free))
    loop.add(constrained("choice", CHOICE, temperature=temperature, n=3))
    loop.add(constrained("object", OBJECT, temperature=temperature, min_tokens=50))
    events = finish(loop)
    tokens = tokens_of(events)
    if batch_invariant:
        assert tokens["free", 0] == expected
    for choice in range(3):
        assert text_of(tokens["choice", choice]) in ("abba", "aba12", "x")
    value = json.loads(text_of(tokens["object", 0]))
    assert isinstance(value["ab"], bool)
    assert value["n"] in (1, 12, 121)
    reasons = {(e.request_id, e.choice): e.finish_reason for e in events if e.finish_reason}
    assert all(reasons[key] == "stop" for key in reasons if key[0] != "free")
    assert loop.scheduler.cache.num_free_blocks == loop.scheduler.cache.num_blocks


def test_step_when_sequences_are_preempted_then_the_same_answers():
    def run(num_blocks):
        loop = engine(num_blocks=num_blocks, block_size=16, max_model_len=96)
        for i in range(4):
            loop.add(constrained(f"r{i}", OBJECT, prompt=range(1 + i, 15 + i), seed=i))
        answers = tokens_of(finish(loop))
        return answers, loop.stats().num_preemptions

    ample, none = run(128)
    tight, some = run(8)
    assert none == 0
    assert some > 0
    assert tight == ample
    for token_ids in ample.values():
        assert set(json.loads(text_of(token_ids))) == {"ab", "n"}


@pytest.mark.parametrize("num_speculative_tokens", [0, 3])
@pytest.mark.parametrize("place", ["forward", "launch"])
def test_step_when_it_fails_after_grammars_moved_on_then_the_same_answers(
    place, num_speculative_tokens, monkeypatch
):
    def run(fails):
        loop = engine(num_speculative_tokens=num_speculative_tokens)
        for i in range(4):
            loop.add(constrained(f"r{i}", OBJECT, prompt=range(1 + i, 15 + i), seed=i))
        launch, calls = loop.runner.launch, []

        def failing(output):
            calls.append(1)
            if fails and len(output.scheduled) > 1 and len(calls) % 3 == 0:
                with monkeypatch.context() as patch:
                    if place == "forward":
                        patch.setattr(loop.runner.general, "forward", lambda batch: 1 / 0)
                    launch(output)
                    raise ZeroDivisionError
            return launch(output)

        monkeypatch.setattr(loop.runner, "launch", failing)
        events = finish(loop)
        assert {e.error_code for e in events} == {None}
        return tokens_of(events)

    assert run(fails=True) == run(fails=False)


def test_step_when_the_grammar_may_end_then_stop_tokens_count_only_there():
    spec = GrammarSpec("regex", "[ab]+")
    loop = engine()
    loop.add(constrained("r", spec, min_tokens=5, max_tokens=20, ignore_eos=False))
    loop.add(constrained("eos", spec, max_tokens=20, ignore_eos=True))
    loop.add(constrained("own", spec, max_tokens=60, stop_token_ids=(300,), ignore_eos=True))
    events = finish(loop)
    tokens = tokens_of(events)
    last = {e.request_id: e for e in events if e.finish_reason}
    assert set(text_of(tokens["r", 0])) <= set("ab")
    assert len(tokens["r", 0]) >= 5
    assert last["r"].stop_token_id in (STOP, None)
    assert (last["eos"].finish_reason, len(tokens["eos", 0])) == ("length", 20)
    assert last["own"].stop_token_id in (300, None)


def test_step_when_logprobs_are_asked_for_then_they_are_raw():
    loop = engine()
    loop.add(constrained("g", GrammarSpec("choice", '["x"]'), logprobs=2, temperature=0.0))
    loop.add(request("free", [1, 2, 3], logprobs=2, max_tokens=1, temperature=0.0))
    found = {e.request_id: e.logprobs[0] for e in finish(loop) if e.logprobs}
    assert dict(found["g"].top) == pytest.approx(dict(found["free"].top))
    assert found["g"].token_id == ord("x")
    assert found["g"].rank >= 1


def test_add_when_a_grammar_cannot_be_compiled_then_refused_alone():
    loop = engine()
    loop.add(request("free", [1], max_tokens=2))
    for spec in (GrammarSpec("regex", "("), GrammarSpec("json_schema", '{"not": {}}')):
        with pytest.raises(InvalidRequestError):
            loop.add(constrained("bad", spec))
    assert {e.request_id for e in finish(loop)} == {"free"}


def test_add_when_the_model_has_no_tokenizer_then_refused():
    loop = new_engine()
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        loop.add(constrained("bad", CHOICE))


def test_step_when_masks_forbid_all_but_unlikely_tokens_then_nan_rows_still_fail_alone(monkeypatch):
    loop = engine()
    loop.add(constrained("g", CHOICE))
    original = loop.runner.model.logits

    def poisoned(hidden, row_multiple=1):
        return original(hidden, row_multiple) * float("nan")

    monkeypatch.setattr(loop.runner, "ways", [loop.runner.general])
    monkeypatch.setattr(type(loop.runner.model), "logits", lambda self, h, m=1: poisoned(h, m))
    (event,) = finish(loop)
    assert event.error_code == "non_finite_logits"


class _Delivered:
    def __init__(self):
        self.items, self.event = [], threading.Event()

    def __call__(self, compiled):
        self.items.append(compiled)
        self.event.set()


def test_thread_when_compiled_aborted_or_full_then_each_ends_once():
    delivered = _Delivered()
    gate = threading.Event()

    def slow_vocabulary():
        assert gate.wait(10)
        return vocabulary()

    compiling = GrammarThreads(GrammarCompiler(slow_vocabulary), delivered, 2)
    good, left = constrained("good", CHOICE), constrained("left", CHOICE, n=2)
    compiling.submit(good)
    compiling.submit(left)
    with pytest.raises(InvalidRequestError, match="already running"):
        compiling.submit(good)
    with pytest.raises(QueueFullError):
        compiling.submit(constrained("third", CHOICE))
    assert [e.finish_reason for e in compiling.abort("left")] == ["aborted"] * 2
    assert compiling.abort("left") == []
    gate.set()
    assert delivered.event.wait(10)
    assert compiling.is_wanted(delivered.items[0])
    assert not compiling.is_wanted(delivered.items[0])
    assert not compiling.is_wanted(Compiled(left, InvalidRequestError("x")))
    assert delivered.items[0].result().num_consumed == 0
