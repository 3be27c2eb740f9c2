"""Masks that take long: no step waits for them, answers stay the same, and they have an end."""

from __future__ import annotations

import threading
import time

import pytest
from test_constrained import CHOICE, OBJECT, constrained, engine, text_of, vocabulary

from engine_support import finish, request, tokens_of
from lingflash.core.errors import InvalidRequestError
from lingflash.core.types import GrammarSpec
from lingflash.engine.grammar_thread import GrammarThreads
from lingflash.engine.run import step_masks
from lingflash.structured import masks
from lingflash.structured.grammar import GrammarCompiler

AMBIGUOUS = GrammarSpec("lark", 'start: s\ns: s s | "a" | "b" | s s s')
# Cheap until the first x is followed by something, dear from there on.
RULES = "\n".join(f'r{i}: "a" s? | /[a-z]/' for i in range(500))
HIDDEN = GrammarSpec("lark", f'start: "x" s\ns: {" | ".join(f"r{i}" for i in range(500))}\n{RULES}')


def run(requests, **changes):
    loop = engine(batch_invariant=True, **changes)
    for one in requests:
        loop.add(one)
    events = finish(loop)
    reasons = {(e.request_id, e.choice): e.finish_reason for e in events if e.finish_reason}
    return tokens_of(events), reasons, loop


def mixed():
    return [
        request("free", [5, 6, 7], max_tokens=12, seed=3, ignore_eos=True),
        constrained("choice", CHOICE, n=3),
        constrained("object", OBJECT, seed=5),
        constrained("again", OBJECT, seed=6, prompt=(3, 2, 1)),
    ]


def test_step_when_every_mask_is_late_then_the_same_answers(monkeypatch):
    expected = run(mixed())
    original = masks.TokenMatcher.fill

    def unhurried(self, row, stop_ids):
        if not self.is_prepared:
            time.sleep(0.02)
        return original(self, row, stop_ids)

    monkeypatch.setattr(masks.TokenMatcher, "fill", unhurried)
    monkeypatch.setattr(step_masks, "STEP_WAIT_S", 0.002)
    tokens, reasons, loop = run(mixed())
    assert (tokens, reasons) == expected[:2]
    assert loop.stats().num_preemptions > 0
    assert loop.scheduler.cache.num_free_blocks == loop.scheduler.cache.num_blocks


def test_step_when_every_grammar_is_slow_then_the_same_answers(monkeypatch):
    expected = run(mixed())
    monkeypatch.setattr(masks, "SLOW_MASK_S", -1.0)
    tokens, reasons, _ = run(mixed())
    assert (tokens, reasons) == expected[:2]


def test_step_when_one_mask_hangs_then_the_others_go_on_without_it(monkeypatch):
    """A free and a constrained sequence finish while a third one's mask is under way."""
    gate, entered = threading.Event(), threading.Event()
    original = masks.TokenMatcher._compute

    def hanging(self, row):
        if self.num_consumed == 2 and not gate.is_set():
            entered.set()
            assert gate.wait(60)
        original(self, row)

    loop = engine()
    loop.add(constrained("stuck", GrammarSpec("regex", "[ab]{9}")))
    loop.add(request("free", [5, 6, 7], max_tokens=30, seed=3, ignore_eos=True))
    loop.add(constrained("choice", GrammarSpec("choice", '["x"]')))
    monkeypatch.setattr(masks.TokenMatcher, "_compute", hanging)
    ended, events = {}, []
    while "free" not in ended or "choice" not in ended:
        events += loop.step()
        ended |= {e.request_id: e.finish_reason for e in events if e.finish_reason}
    assert entered.is_set()
    assert "stuck" not in ended
    gate.set()
    while loop.has_work:
        events += loop.step()
    tokens = tokens_of(events)
    assert len(text_of(tokens["stuck", 0])) == 9
    assert text_of(tokens["choice", 0]) == "x"


@pytest.mark.parametrize("spec", [AMBIGUOUS, HIDDEN])
def test_step_when_a_grammar_is_dear_to_follow_then_a_stream_is_as_alone(spec):
    free = request("free", [5, 6, 7], max_tokens=200, seed=3, ignore_eos=True)
    alone, _, _ = run([free])
    tokens, reasons, _ = run([free, constrained("dear", spec, max_tokens=40, ignore_eos=True)])
    assert tokens["free", 0] == alone["free", 0]
    assert reasons["free", 0] == "length"
    assert reasons["dear", 0] in ("error", "stop", "length")


def test_step_when_masks_took_too_much_in_all_then_ended_alone(monkeypatch):
    monkeypatch.setattr(masks, "SLOW_MASK_S", -1.0)
    monkeypatch.setattr(masks, "_EXPECTED_MASK_S", 0.0)
    monkeypatch.setattr(masks, "MASK_BUDGET_S", 0.0)
    loop = engine()
    loop.add(constrained("dear", GrammarSpec("regex", "[ab]{50}")))
    loop.add(request("free", [5, 6, 7], max_tokens=12, seed=3, ignore_eos=True))
    last = {e.request_id: e for e in finish(loop) if e.finish_reason}
    assert last["dear"].error_code == "invalid_request"
    assert "too complex" in last["dear"].error_message
    assert last["free"].finish_reason == "length"


def test_abort_when_a_mask_is_under_way_then_its_memory_is_free():
    loop = engine()
    loop.add(constrained("dear", HIDDEN, max_tokens=100, ignore_eos=True))
    for _ in range(10):
        loop.step()
    loop.abort("dear")
    assert not loop.has_work
    assert loop.scheduler.cache.num_free_blocks == loop.scheduler.cache.num_blocks


def test_compile_when_two_owners_use_a_grammar_then_nothing_is_shared():
    compiler = GrammarCompiler(vocabulary)
    first, again = compiler.compile(OBJECT, "a:"), compiler.compile(OBJECT, "a:")
    other = compiler.compile(OBJECT, "b:")
    assert first.lexer is again.lexer
    assert first.lexer is not other.lexer


def test_threads_when_one_owner_fills_them_then_another_is_compiled_meanwhile():
    gate, started, delivered = threading.Event(), [], []

    class Held(GrammarCompiler):
        def compile(self, spec, owner=""):
            started.append(owner)
            if owner == "a:":
                assert gate.wait(60)
            return super().compile(spec, owner)

    threads = GrammarThreads(Held(vocabulary), delivered.append, 100)
    for i in range(20):
        threads.submit(_of("a:", i))
    threads.submit(_of("b:", 0))
    for _ in range(1000):
        if delivered:
            break
        time.sleep(0.01)
    assert [compiled.request.cache_salt for compiled in delivered] == ["b:"]
    assert started.count("a:") == 2
    gate.set()
    for _ in range(1000):
        if len(delivered) == 21:
            break
        time.sleep(0.01)
    assert len(delivered) == 21
    assert not any(isinstance(c.outcome, InvalidRequestError) for c in delivered)


def _of(owner, number):
    one = constrained(f"{owner}{number}", CHOICE)
    return type(one)(
        request_id=one.request_id,
        prompt_token_ids=one.prompt_token_ids,
        sampling=one.sampling,
        grammar=one.grammar,
        cache_salt=owner,
    )
