"""A step that raises: the guilty sequence ends alone, the others never know."""

from __future__ import annotations

import pytest

from deferred_runner import DeferredRunner
from engine_support import finish, new_engine, request, tokens_of
from lingflash.core.errors import EngineDeadError, EngineError
from lingflash.engine.run import step_sampling
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.engine.run.speculation import Speculator
from models_support import load
from oracle import write_checkpoint

PROMPT = [(7 * t) % 120 for t in range(37)]
GUILTY = "guilty"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four layers and an MTP layer, width 64."""
    folder = tmp_path_factory.mktemp("small")
    return load(write_checkpoint(folder, {"hidden_size": 64}), max_model_len=256)


def engine(model, runner_type=ModelRunner, **changes):
    options = {"num_blocks": 60, "prefix_caching": True, "max_num_seqs": 6, "max_model_len": 160}
    options |= {"max_num_batched_tokens": 48, "stop_token_ids": (5,)}
    loop = new_engine(model=model, runner_type=runner_type, **(options | changes))
    loop.overlaps = runner_type is DeferredRunner
    return loop


def fail_for(loop, monkeypatch, place, at):
    """Steps with GUILTY in them raise from its `at`-th token on, before, within or after them."""
    calls = []

    def is_guilty(output):
        return any(
            item.sequence.request_id == GUILTY and item.start + item.num_tokens >= at
            for item in output.scheduled
        )

    def poison():
        calls.append(1)
        raise RuntimeError("poison")

    launch = loop.runner.launch
    output_now = []

    def launching(output):
        output_now[:] = [output]
        if place == "before" and is_guilty(output):
            poison()
        pending = launch(output)
        if place == "after" and is_guilty(output) and not pending.is_under_way:
            poison()
        return pending

    monkeypatch.setattr(loop.runner, "launch", launching)
    if place == "within":
        layer = loop.runner.model.layers[2].attention
        original = layer.forward

        def forward(*args, **kwargs):
            out = original(*args, **kwargs)
            if is_guilty(output_now[0]):
                poison()  # two layers have written their memory, the others have not
            return out

        monkeypatch.setattr(layer, "forward", forward)
    elif place == "sampling":
        original_sample = step_sampling.sample

        def sample(logits, sequences, forbidden=None):
            if any(s.request_id == GUILTY and s.num_tokens >= at for s in sequences):
                poison()
            return original_sample(logits, sequences, forbidden)

        monkeypatch.setattr(step_sampling, "sample", sample)
    elif place == "drafting":
        original_drafts = Speculator._make_drafts

        def make_drafts(self, writes, asked, out):
            original_drafts(self, writes, asked, out)
            if any(s.request_id == GUILTY and s.num_tokens >= at for s in writes.sequences):
                poison()

        monkeypatch.setattr(Speculator, "_make_drafts", make_drafts)
    elif place == "results":

        def before_step(output):
            if is_guilty(output):
                poison()

        loop.runner.before_step = before_step
    return calls


OTHERS = {
    "greedy": (PROMPT, {"temperature": 0.0}),
    "drawn": (PROMPT[:11], {"temperature": 1.0, "seed": 4, "n": 2}),
    "scored": (PROMPT[3:30], {"temperature": 0.0, "logprobs": 2}),
    "late": (PROMPT * 2, {"temperature": 0.7, "seed": 9}),
}


def run(loop, names, steps_first=3):
    for name in names:
        token_ids, rules = OTHERS.get(name, (PROMPT[:19], {"temperature": 0.0}))
        options = {"max_tokens": 60, "ignore_eos": True}
        if name == "late":
            continue
        loop.add(request(name, token_ids, **(options | rules)))
    events = [event for _ in range(steps_first) for event in loop.step()]
    if "late" in names:
        token_ids, rules = OTHERS["late"]
        loop.add(request("late", token_ids, max_tokens=20, ignore_eos=True, **rules))
    return events + finish(loop)


def logprobs_of(events, name):
    return [p.token_id for e in events if e.request_id == name for p in e.logprobs or ()]


@pytest.mark.parametrize("at", [10, 19, 32, 33, 40, 48])
@pytest.mark.parametrize("place", ["before", "within", "after", "sampling"])
def test_step_when_one_sequence_makes_it_raise_then_the_others_go_on_as_without(
    model, monkeypatch, place, at, caplog
):
    expected = tokens_of(run(engine(model), OTHERS))
    loop = engine(model)
    calls = fail_for(loop, monkeypatch, place, at)
    events = run(loop, [GUILTY, *OTHERS])
    assert_only_guilty_ended(loop, events, expected)
    assert len(calls) >= 2
    assert "poison" in caplog.text


def assert_only_guilty_ended(loop, events, expected):
    tokens = tokens_of(events)
    tokens.pop((GUILTY, 0), None)
    assert tokens == expected
    ends = [(e.request_id, e.choice, e.error_code) for e in events if e.finish_reason]
    assert len(ends) == len(set(ends)) == 6
    assert [end for end in ends if end[2] is not None] == [(GUILTY, 0, "engine_error")]
    assert not loop.scheduler.suspects
    assert loop.scheduler._by_request == {}
    stats = loop.stats()
    assert stats.free_state_slots == stats.num_state_slots
    assert stats.free_blocks == stats.num_blocks


@pytest.mark.parametrize("at", [19, 32, 33, 44])
@pytest.mark.parametrize("place", ["before", "within", "after", "sampling", "drafting"])
def test_step_with_drafts_when_it_raises_then_the_others_go_on_as_without(
    model, monkeypatch, place, at
):
    expected = tokens_of(run(engine(model), OTHERS))
    loop = engine(model, num_speculative_tokens=3)
    calls = fail_for(loop, monkeypatch, place, at)
    assert_only_guilty_ended(loop, run(loop, [GUILTY, *OTHERS]), expected)
    assert len(calls) >= 2
    assert loop.stats().accepted_draft_tokens > 0


@pytest.mark.parametrize("at", [19, 20, 31, 32, 33, 47, 48, 49])
@pytest.mark.parametrize("place", ["before", "results"])
def test_overlapped_steps_when_they_raise_then_the_others_go_on_as_without(
    model, monkeypatch, place, at
):
    options = {"temperature": 1.0, "ignore_eos": True, "max_tokens": 40}
    names = {"a": PROMPT, "b": PROMPT[:9], "c": PROMPT[5:25]}

    def answers(loop, guilty=()):
        for seed, (name, token_ids) in enumerate(names.items()):
            loop.add(request(name, token_ids, **options, seed=seed))
        for name in guilty:
            loop.add(request(name, PROMPT[:17], **options, seed=7))
        return finish(loop)

    expected = tokens_of(answers(engine(model)))
    loop = engine(model, DeferredRunner)
    calls = fail_for(loop, monkeypatch, place, at)
    events = answers(loop, [GUILTY])
    tokens = tokens_of(events)
    tokens.pop((GUILTY, 0), None)
    assert tokens == expected
    ends = [(e.request_id, e.error_code) for e in events if e.finish_reason]
    assert sorted(ends, key=str) == [
        ("a", None),
        ("b", None),
        ("c", None),
        (GUILTY, "engine_error"),
    ]
    assert calls
    assert loop.runner.num_ahead > 10
    assert not loop.scheduler.suspects


def test_step_on_the_cpu_decoder_when_it_raises_then_its_one_sequence_ends_and_later_are_served(
    model, monkeypatch
):
    loop = engine(model)
    calls = fail_for(loop, monkeypatch, "sampling", 30)
    events = run(loop, [GUILTY])
    assert [e.error_code for e in events if e.finish_reason] == ["engine_error"]
    assert len(calls) == 1
    monkeypatch.undo()
    assert tokens_of(run(loop, ["greedy"])) == tokens_of(run(engine(model), ["greedy"]))


@pytest.mark.parametrize("runner_type", [ModelRunner, DeferredRunner])
def test_steps_when_one_fails_once_then_nobody_ends(model, monkeypatch, runner_type):
    for number in range(1, 30, 3):
        loop, calls = engine(model, runner_type), []
        launch = loop.runner.launch

        def failing(output, launch=launch, calls=calls, number=number):
            calls.append(len(output.scheduled))
            if len(calls) == number and len(output.scheduled) > 1:
                raise RuntimeError("once")
            return launch(output)

        loop.runner.launch = failing
        events = run(loop, OTHERS)
        assert tokens_of(events) == tokens_of(run(engine(model), OTHERS))
        assert {e.error_code for e in events} == {None}


def test_steps_when_many_requests_are_guilty_then_each_ends_and_the_engine_goes_on(
    model, monkeypatch
):
    loop = engine(model)
    launch = loop.runner.launch

    def failing(output):
        if any(i.sequence.request_id.startswith("bad") for i in output.scheduled):
            raise RuntimeError("poison")
        return launch(output)

    loop.runner.launch = failing
    for i in range(20):
        loop.add(request(f"bad{i}", PROMPT[: 2 + i]))
    events = run(loop, ["greedy"])
    ends = {e.request_id: e.error_code for e in events if e.finish_reason}
    assert ends.pop("greedy") is None
    assert len(ends) == 20
    assert set(ends.values()) == {"engine_error"}
    assert tokens_of(events)["greedy", 0] == tokens_of(run(engine(model), ["greedy"]))["greedy", 0]
    assert "" not in {e.request_id for e in events}, "nobody asked for the probe"


@pytest.mark.parametrize("error", [EngineDeadError("a rank is gone"), RuntimeError("CUDA error")])
def test_step_when_the_device_is_in_doubt_then_the_engine_gives_up(model, monkeypatch, error):
    loop = engine(model)
    loop.runner.launch = lambda output: (_ for _ in ()).throw(error)
    if not isinstance(error, EngineDeadError):
        monkeypatch.setattr(loop.runner, "is_sound", lambda: False)
    loop.add(request("a", PROMPT))
    with pytest.raises(EngineError, match="in doubt"):
        loop.step()


def test_memory_when_a_step_fails_before_it_was_moved_then_nothing_cached_is_trusted(model):
    loop = engine(model)
    run(loop, ["greedy"])
    memory_run, calls = loop.runner.memory.run, []

    def failing(ops):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("moved half of it")
        return memory_run(ops)

    loop.runner.memory.run = failing
    events = run(loop, ["drawn", "scored"])
    assert tokens_of(events) == tokens_of(run(engine(model), ["drawn", "scored"]))
    assert {e.error_code for e in events} == {None}
    found = [e.num_cached_tokens for e in run(loop, ["greedy"])]
    assert not any(found)
