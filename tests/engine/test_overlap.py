"""Steps launched before the tokens of the one before are known: nothing but time may differ."""

from __future__ import annotations

import os
import queue
import socket
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache_support import check_cache, check_idle
from deferred_runner import DeferredRunner
from engine_support import Recorder, finish, new_engine, poison_rows, request, tokens_of
from lingflash.cache.memory_ops import StoreBlocks, StoreState
from lingflash.engine.process.connection import Connection
from lingflash.engine.process.serving import serve
from lingflash.engine.run import model_runner
from lingflash.link import messages
from lingflash.link.frames import read_frame
from models_support import load
from oracle import write_checkpoint

PROMPT = [(7 * t) % 120 for t in range(37)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four layers, width 64; its bitwise invariance is checked once."""
    folder = tmp_path_factory.mktemp("small")
    model = load(write_checkpoint(folder, {"hidden_size": 64}), max_model_len=256)
    new_engine(model=model, batch_invariant=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_runner, "check_batch_invariance", lambda *args: None)
        yield model


def engine(model, *, overlaps=True, **changes):
    options = {"num_blocks": 40, "prefix_caching": True, "max_num_seqs": 4, "max_model_len": 160}
    options |= {"batch_invariant": True, "max_num_batched_tokens": 48, "stop_token_ids": (5,)}
    loop = new_engine(model=model, runner_type=DeferredRunner, **(options | changes))
    loop.overlaps = overlaps
    return loop


def ends_of(events):
    return {
        (e.request_id, e.choice): (e.finish_reason, e.stop_token_id, e.error_code)
        for e in events
        if e.finish_reason is not None
    }


def ask(loop, name, token_ids, **sampling):
    options = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True}
    loop.add(request(name, token_ids, **(options | sampling)))
    events = finish(loop)
    return tokens_of(events)[name, 0], ends_of(events)[name, 0]


def copies_under_way(loop):
    """Copies to the host tier that the model's memory or a step in flight was told to make."""
    host = loop.runner.memory.host
    begun = [copy for copy, _ in host._pending] if host else []
    ops = [op for work in loop.runner._stream for op in work.output.memory_ops]
    return begun + [op.copy for op in ops if isinstance(op, StoreBlocks | StoreState)]


def assert_idle(loop):
    assert not loop.has_work
    loop.runner.memory.run(loop.scheduler.cache.take_ops())
    while copies_under_way(loop):
        loop.step()
    assert not loop.runner._stream
    assert loop.scheduler._by_request == {}
    assert loop.stats().free_state_slots == loop.stats().num_state_slots
    check_idle(loop.scheduler.cache)


def test_one_sequence_when_it_decodes_then_every_step_but_the_first_is_launched_ahead(model):
    loop = engine(model)
    tokens, end = ask(loop, "r", PROMPT, max_tokens=40)
    assert (len(tokens), end[0]) == (40, "length")
    plain = engine(model, overlaps=False)
    assert ask(plain, "r", PROMPT, max_tokens=40)[0] == tokens
    # Of 39 steps with one token the first has none before it; none follows the last.
    assert loop.stats().num_steps == plain.stats().num_steps
    assert (loop.runner.num_ahead, plain.runner.num_ahead) == (38, 0)
    assert_idle(loop)


def test_sequence_when_it_stops_then_one_step_is_in_vain_and_what_it_computed_is_kept(model):
    plain = engine(model, overlaps=False)
    tokens, _ = ask(plain, "r", PROMPT, max_tokens=60)
    place = next(i for i in range(20, 60) if tokens[i] not in tokens[:i])
    plain = engine(model, overlaps=False)
    loop = engine(model)
    for each in (plain, loop):
        got = ask(each, "r", PROMPT, max_tokens=60, stop_token_ids=(tokens[place],))
        assert got == (tokens[:place], ("stop", tokens[place], None))
    assert loop.stats().num_steps == plain.stats().num_steps + 1
    assert loop.stats().generated_tokens == plain.stats().generated_tokens
    assert_idle(loop)


@pytest.mark.parametrize("length", range(31, 49))
def test_answer_when_it_stops_anywhere_then_its_continuation_is_the_same_bit_for_bit(model, length):
    """Also where the step in vain folds the state beyond the last token that was asked for."""
    tokens, _ = ask(engine(model, overlaps=False), "r", PROMPT[:30], max_tokens=40, seed=3)
    count = length - 30
    history = PROMPT[:30] + tokens[:count]
    stops = [t for t in tokens[:count] if tokens.index(t) == count - 1]
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        recorder.install(patch)
        ask(engine(model, overlaps=False, prefix_caching=False), "next", [*history, 9, 8])
        loop = engine(model)
        if stops:
            ask(loop, "r", PROMPT[:30], max_tokens=40, stop_token_ids=tuple(stops))
        else:  # a token that came before cannot stop it here: the client goes away instead
            loop.add(request("r", PROMPT[:30], max_tokens=40, temperature=0.0, ignore_eos=True))
            loop.step()
            while len(loop.scheduler._running[0].output_token_ids) < count:
                loop.step()
            loop.abort("r")
            finish(loop)
        ask(loop, "next", [*history, 9, 8])
    assert loop.runner.num_ahead > 0
    assert not recorder.clashes
    # All that was computed is found, the step in vain included; none follows the prompt's own.
    assert loop.stats().prefix_hit_tokens == (30 if length == 31 else length)
    assert_idle(loop)


def test_request_when_aborted_with_a_step_in_flight_then_ends_at_once_and_is_freed_by_it(model):
    loop = engine(model)
    loop.add(request("r", PROMPT, max_tokens=50, ignore_eos=True))
    loop.add(request("other", PROMPT[:9], temperature=0.0, max_tokens=20, ignore_eos=True))
    events = [event for _ in range(5) for event in loop.step()]
    assert loop._in_flight is not None
    (end,) = loop.abort("r")
    assert end.finish_reason == "aborted"
    assert loop.abort("r") == []
    assert loop.stats().free_state_slots == 2
    later = loop.step()
    assert loop.stats().free_state_slots == 3
    assert {e.request_id for e in later} == {"other"}
    tokens = tokens_of(events + later + finish(loop))["other", 0]
    assert tokens == ask(engine(model, overlaps=False), "other", PROMPT[:9])[0]
    loop.add(request("r", PROMPT, max_tokens=2))
    loop.step()
    loop.abort("r")
    finish(loop)
    assert_idle(loop)


def test_reset_when_a_step_is_in_flight_then_nothing_computed_before_is_found(model):
    loop = engine(model)
    loop.add(request("r", PROMPT, max_tokens=50, ignore_eos=True))
    for _ in range(4):
        loop.step()
    loop.reset_prefix_cache()
    loop.abort("r")
    finish(loop)
    ask(loop, "again", PROMPT)
    assert loop.stats().prefix_hit_tokens == 0
    assert_idle(loop)


@pytest.mark.parametrize("where", ["launch", "results"])
def test_step_when_it_fails_then_both_in_flight_are_lost_and_later_requests_are_served(
    model, where, caplog
):
    loop = engine(model)
    loop.runner.random.random = lambda: 1.0  # nothing is computed before it is asked for
    loop.add(request("a", PROMPT, max_tokens=50, ignore_eos=True))
    for _ in range(4):
        loop.step()
    assert loop._in_flight is not None
    launch = loop.runner.launch

    def failing(output):
        raise RuntimeError("lost power")

    if where == "launch":
        loop.runner.launch = failing
    else:
        loop.runner.before_step = failing
    *_, end = finish(loop)  # what cannot be launched ahead fails when its turn comes
    assert (end.finish_reason, end.error_code) == ("error", "engine_error")
    assert "lost power" in caplog.text
    loop.runner.launch = launch
    loop.runner.before_step = lambda output: None
    assert not loop.has_work
    expected = ask(engine(model, overlaps=False), "later", PROMPT)
    assert ask(loop, "later", PROMPT) == expected
    assert loop.stats().prefix_hit_tokens == 0, "what was cached before is not trusted"
    assert_idle(loop)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_steps_when_one_behind_another_fails_once_then_nobody_ends_by_it(model, in_flight):
    loop = engine(model)
    calls = []

    def failing(output):
        calls.append(output)
        if len(calls) == 2 + in_flight:
            raise RuntimeError("lost power")

    loop.runner.before_step = failing
    for name in "ab":
        loop.add(request(name, PROMPT, n=2, max_tokens=30, ignore_eos=True))
    events = finish(loop)
    assert len([e for e in events if e.finish_reason]) == 4
    assert {e.finish_reason for e in events if e.finish_reason} == {"length"}
    assert_idle(loop)


def test_steps_when_launching_ahead_keeps_failing_then_answers_are_the_same(model, caplog):
    loop = engine(model, max_num_seqs=1)
    launch = loop.runner.launch

    def failing(output):
        if loop._in_flight is not None:
            raise RuntimeError("broken")
        return launch(output)

    loop.runner.launch = failing
    expected = ask(engine(model, overlaps=False), "a", PROMPT)
    assert ask(loop, "a", PROMPT) == expected
    assert "could not be launched behind another: broken" in caplog.text
    assert_idle(loop)


def test_nan_when_one_sequence_gives_it_then_it_ends_and_nothing_of_it_is_kept(model):
    loop = engine(model)
    loop.add(request("bad", PROMPT, max_tokens=40, ignore_eos=True))
    loop.add(request("good", PROMPT[:9], temperature=0.0, max_tokens=20, ignore_eos=True))
    events = [event for _ in range(6) for event in loop.step()]
    poison_rows(loop, "bad")
    events += finish(loop)
    assert ends_of(events)["bad", 0] == ("error", None, "non_finite_logits")
    expected = ask(engine(model, overlaps=False), "good", PROMPT[:9])[0]
    assert tokens_of(events)["good", 0] == expected
    assert all(not b.has_state for b in loop.scheduler.cache._kept.tree if b.num_owners)
    assert_idle(loop)


def test_deadline_when_it_passes_with_a_step_in_flight_then_ends_once(model):
    loop = engine(model)
    loop.add(replace(request("r", PROMPT, max_tokens=50, ignore_eos=True), timeout_s=1000.0))
    events = [event for _ in range(4) for event in loop.step()]
    loop.scheduler._running[0].deadline_s = 0.0
    events += finish(loop)
    ends = [e for e in events if e.finish_reason]
    assert [e.error_code for e in ends] == ["deadline_exceeded"]
    assert_idle(loop)


def test_engine_process_when_steps_overlap_then_serves_aborts_and_leaves_nothing(model):
    loop, inbox = engine(model), queue.SimpleQueue()
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(Connection(theirs), inbox, loop), daemon=True)
    thread.start()
    expected = ask(engine(model, overlaps=False), "a", PROMPT)
    options = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True}
    inbox.put(messages.Submit(request("b", PROMPT[:9], max_tokens=100, ignore_eos=True)))
    inbox.put(messages.Submit(request("a", PROMPT, **options)))
    events, stats = [], None
    while ends_of(events).keys() != {("a", 0), ("b", 0)} or stats is None or stats.num_running:
        message = messages.from_engine_decoder.decode(read_frame(ours))
        if isinstance(message, messages.Events):
            events, stats = events + message.events, message.stats
            if ("a", 0) in ends_of(events) and ("b", 0) not in ends_of(events):
                inbox.put(messages.Abort("b"))
    assert (tokens_of(events)["a", 0], ends_of(events)["a", 0]) == expected
    assert ends_of(events)["b", 0][0] == "aborted"
    assert loop.runner.num_ahead > 10
    inbox.put(messages.Submit(request("left", PROMPT, **options)))
    inbox.put(None)  # the server goes away
    thread.join(30)
    assert not thread.is_alive()


@st.composite
def specs(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 8)))
    length = draw(st.integers(1, 60))
    max_tokens = draw(st.sampled_from([0, 1, 2, 9, 30, 70]))
    return {
        "token_ids": torch.randint(0, 120, (length,), generator=generator).tolist(),
        "max_tokens": max_tokens,
        "temperature": draw(st.sampled_from([0.0, 1.0, 3.0])),
        "top_k": draw(st.sampled_from([0, 0, 0, 20])),
        "logprobs": draw(st.sampled_from([None, None, None, 1])),
        "min_tokens": min(draw(st.sampled_from([0, 0, 2])), max_tokens),
        "seed": draw(st.integers(0, 5)),
        "n": draw(st.integers(1, 2)),
        "ignore_eos": draw(st.booleans()),
        "stop_token_ids": tuple(draw(st.lists(st.integers(0, 127), max_size=8))),
    }


schedules = {
    # What is asked, and the step before which it is.
    "asked": st.lists(st.tuples(specs(), st.integers(0, 12)), min_size=1, max_size=6),
    "turns": st.lists(st.tuples(st.integers(0, 5), specs()), max_size=3),
    "aborts": st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=3),
    "chunk": st.sampled_from([8, 17, 48, 200]),
    "num_blocks": st.integers(10, 24),
    "num_host_blocks": st.sampled_from([0, 0, 20]),
    "max_num_seqs": st.integers(1, 5),
    "clock": st.integers(0, 1000),
}


def play(loop, asked, aborts=()):
    """Ask (name, spec, step) at their steps and abort (name, step) at theirs; events."""
    events, step = [], 0
    waiting = sorted(asked, key=lambda item: item[2])
    while waiting or loop.has_work:
        while waiting and waiting[0][2] <= step:
            name, spec, _ = waiting.pop(0)
            loop.add(request(name, **spec))
        for name, when in aborts:
            if when == step:
                events += loop.abort(name)
        events += loop.step()
        check_cache(loop.scheduler.cache, copies_under_way(loop))
        step += 1
    return events


def continued(spec, tokens):
    """The next turn of a conversation."""
    return spec | {"token_ids": [*tokens[:90], *spec["token_ids"][:20]], "max_tokens": 30}


def check(model, *, asked, turns, aborts, clock, chunk, **changes):
    """The same requests with overlap, and without it and without a prefix cache."""
    asked = [(f"r{i}", spec, step) for i, (spec, step) in enumerate(asked)]
    aborts = [(f"r{i}", step) for i, step in aborts]
    options = changes | {"max_num_batched_tokens": max(chunk, changes["max_num_seqs"])}
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        recorder.install(patch)
        loop = engine(model, **options)
        loop.runner.random.seed(clock)
        events = play(loop, asked, aborts)
        for number, (index, spec) in enumerate(turns):
            name, first, _ = asked[index % len(asked)]
            history = first["token_ids"] + tokens_of(events).get((name, 0), [])
            asked.append((f"t{number}", continued(spec, history), 0))
            events += play(loop, asked[-1:])
        plain = engine(model, overlaps=False, prefix_caching=False, max_num_seqs=5)
        every = play(plain, asked)
    assert not recorder.clashes, "other bits than alone"
    got, expected = tokens_of(events), tokens_of(every)
    aborted = {name for name, _ in aborts}
    for key, tokens in expected.items():
        mine = got.get(key, [])
        if key[0] in aborted:
            assert mine == tokens[: len(mine)]
        else:
            assert mine == tokens
            assert ends_of(events)[key] == ends_of(every)[key]
    assert len([e for e in events if e.finish_reason]) == len(ends_of(every)), "an end or two"
    assert_idle(loop)
    return loop


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(**schedules)
def test_closed_batch_when_steps_overlap_then_equal_to_the_plain_loop(model, **schedule):
    check(model, **schedule)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(
    max_examples=int(os.environ.get("LINGFLASH_TEST_EXAMPLES", "200")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(**schedules)
def test_closed_batches_when_steps_overlap_many_times_then_equal(model, **schedule):
    check(model, **schedule)


def test_memory_when_short_then_preempts_the_same_and_overlaps_in_between(model):
    spec = {"token_ids": PROMPT[:28], "max_tokens": 60, "temperature": 1.0, "ignore_eos": True}
    asked = [(spec | {"seed": i}, 0) for i in range(4)]
    loop = check(
        model, asked=asked, turns=[], aborts=[], clock=1, chunk=64, num_blocks=11,
        num_host_blocks=0, max_num_seqs=4,
    )  # fmt: skip
    assert loop.stats().num_preemptions > 0
    assert loop.runner.num_ahead > 40
