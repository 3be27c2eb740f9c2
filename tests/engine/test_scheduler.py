"""The scheduler and the cache as a state machine: no leak, no double use, one end each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lingflash.cache.block_pool import IndexPool
from lingflash.cache.manager import CacheManager
from lingflash.cache.memory_ops import CopyState, SaveState
from lingflash.core.errors import (
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    NonFiniteLogitsError,
    QueueFullError,
)
from lingflash.core.types import EngineRequest, SamplingParams
from lingflash.engine.schedule.scheduler import Scheduler
from lingflash.engine.schedule.step import StepResult

EOS = 7


def new_scheduler(num_blocks=12, block_size=16, slots=4, checkpoint_blocks=0, **changes):
    options = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 24,
        "max_num_waiting": 6,
        "max_model_len": 100,
        "vocab_size": 50,
        "stop_token_ids": [EOS],
    } | changes
    return Scheduler(CacheManager(num_blocks, block_size, slots, checkpoint_blocks), **options)


def request(name, length=5, **sampling):
    return EngineRequest(
        request_id=name,
        prompt_token_ids=[1] * length,
        sampling=SamplingParams(**({"seed": 0, "max_tokens": 3} | sampling)),
    )


def run_step(scheduler, token=1):
    output = scheduler.schedule()
    results = [StepResult(token_id=token if s.wants_token else None) for s in output.scheduled]
    return output, scheduler.commit(output, results)


def run_all(scheduler, token=1):
    events = []
    while scheduler.has_work:
        events += run_step(scheduler, token)[1]
    return events


def test_step_when_prompts_and_decodes_compete_then_decodes_come_first_within_the_budget():
    scheduler = new_scheduler()
    scheduler.add(request("a", 4, max_tokens=50), 0.0)
    run_step(scheduler)
    scheduler.add(request("b", 60), 0.0)
    output, _ = run_step(scheduler)
    assert [(s.sequence.request_id, s.num_tokens) for s in output.scheduled] == [
        ("a", 1),
        ("b", 23),
    ]
    assert output.num_tokens == 24
    output, _ = run_step(scheduler)
    assert [(s.start, s.num_tokens, s.wants_token) for s in output.scheduled] == [
        (5, 1, True),
        (23, 23, False),
    ]


def test_stats_when_prompts_wait_then_their_tokens_are_counted_until_they_are_computed():
    scheduler = new_scheduler(max_num_seqs=1)
    for name, length in (("a", 40), ("b", 30)):
        scheduler.add(request(name, length), 0.0)
    seen = []
    while scheduler.has_work:
        stats = scheduler.stats()
        seen.append((stats.queued_prompt_tokens, stats.tokens_in_flight))
        run_step(scheduler)
    # Steps of 24: two for a's prompt, two of its other tokens, and the same for b.
    assert seen[:4] == [(70, 70), (46, 70), (30, 71), (30, 72)]
    assert seen[4:] == [(30, 30), (6, 30), (0, 31), (0, 32)]
    stats = scheduler.stats()
    assert (stats.queued_prompt_tokens, stats.tokens_in_flight) == (0, 0)


def test_sequence_when_it_samples_a_stop_token_then_ends_with_stop_and_hides_it():
    scheduler = new_scheduler()
    scheduler.add(request("a", max_tokens=50), 0.0)
    (event,) = run_all(scheduler, EOS)
    assert (event.finish_reason, event.stop_token_id, event.token_ids) == ("stop", EOS, [])


def test_sequence_when_eos_is_ignored_then_runs_to_max_tokens():
    scheduler = new_scheduler()
    scheduler.add(request("a", ignore_eos=True), 0.0)
    events = run_all(scheduler, EOS)
    assert [e.token_ids for e in events] == [[EOS]] * 3
    assert events[-1].finish_reason == "length"


def test_request_when_max_tokens_is_zero_then_ends_after_its_prompt():
    scheduler = new_scheduler()
    scheduler.add(request("a", 40, max_tokens=0), 0.0)
    (event,) = run_all(scheduler)
    assert (event.finish_reason, event.token_ids) == ("length", [])


def test_blocks_when_they_run_out_then_the_youngest_is_preempted_and_still_finishes():
    scheduler = new_scheduler(num_blocks=7, max_num_batched_tokens=200)
    for name in ("a", "b", "c"):
        scheduler.add(request(name, 30, max_tokens=40), 0.0)
    events = run_all(scheduler)
    assert scheduler.stats().num_preemptions > 0
    tokens = {n: sum(len(e.token_ids) for e in events if e.request_id == n) for n in "abc"}
    assert tokens == {"a": 40, "b": 40, "c": 40}
    first_end = next(e.request_id for e in events if e.finish_reason)
    assert first_end == "a"
    assert scheduler.cache.num_free_blocks == 7


@pytest.mark.parametrize(("length", "steps"), [(45, [45]), (48, [32, 16]), (17, [17]), (5, [5])])
def test_prompt_when_cached_then_its_end_is_one_step_and_a_repeat_finds_all_but_its_last_block(
    length, steps
):
    scheduler = Scheduler(
        CacheManager(40, 16, 4, checkpoint_blocks=1),
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_num_waiting=6,
        max_model_len=100,
        vocab_size=50,
        stop_token_ids=[EOS],
    )
    found = []
    for name, first_steps in (("first", steps), ("again", [length - (length - 1) // 16 * 16])):
        scheduler.add(request(name, length, max_tokens=1), 0.0)
        counts = []
        while scheduler.has_work:
            output, events = run_step(scheduler)
            counts.append(output.num_tokens)
            found += [e.num_cached_tokens for e in events]
        assert counts == first_steps
    assert found == [0, (length - 1) // 16 * 16]


@pytest.mark.parametrize("is_crowded", [False, True])
def test_prompt_when_its_states_can_be_left_on_the_way_then_is_one_step_and_found_as_before(
    is_crowded,
):
    """Where two prompts are in a step, only one's states can be left; the other is cut."""
    scheduler = Scheduler(
        CacheManager(40, 32, 4, checkpoint_blocks=1),
        max_num_seqs=4,
        max_num_batched_tokens=200,
        max_num_waiting=6,
        max_model_len=100,
        vocab_size=50,
        stop_token_ids=[EOS],
        save_slot=4,
    )
    if is_crowded:
        base = request("other", 60, max_tokens=1)
        scheduler.add(replace(base, prompt_token_ids=[2] * 60), 0.0)
    scheduler.add(request("first", 90, max_tokens=1), 0.0)
    output, _ = run_step(scheduler)
    saves = [(item.num_tokens, item.save) for item in output.scheduled]
    assert saves == ([(60, (32, 4)), (64, None)] if is_crowded else [(90, (64, 4))])
    run_all(scheduler)
    scheduler.add(request("again", 90, max_tokens=1), 0.0)
    output, events = run_step(scheduler)
    assert events[0].num_cached_tokens == 64
    assert [item.num_tokens for item in output.scheduled] == [26]
    copied = [op.slot for op in output.memory_ops if isinstance(op, CopyState | SaveState)]
    assert is_crowded or copied[0] == 4


def test_queue_when_full_then_refuses_and_keeps_what_it_has():
    scheduler = new_scheduler(max_num_waiting=1)
    for i in range(5):
        scheduler.add(request(f"r{i}"), 0.0)
    with pytest.raises(QueueFullError, match="max-num-waiting"):
        scheduler.add(request("late"), 0.0)
    ends = [e.request_id for e in run_all(scheduler) if e.finish_reason]
    assert sorted(ends) == [f"r{i}" for i in range(5)]


def test_deadline_when_it_passes_then_ends_waiting_and_running_with_an_error():
    scheduler = new_scheduler(slots=1)
    for name, timeout in (("runs", 5.0), ("waits", 5.0), ("stays", None)):
        base = request(name)
        scheduler.add(
            EngineRequest(
                request_id=name,
                prompt_token_ids=base.prompt_token_ids,
                sampling=base.sampling,
                timeout_s=timeout,
            ),
            10.0,
        )
    run_step(scheduler)
    assert scheduler.expire(14.9) == []
    events = scheduler.expire(15.0)
    assert sorted((e.request_id, e.error_code) for e in events) == [
        ("runs", "deadline_exceeded"),
        ("waits", "deadline_exceeded"),
    ]
    assert {e.request_id for e in run_all(scheduler)} == {"stays"}


def test_error_when_one_sequence_fails_then_only_that_one_ends():
    scheduler = new_scheduler()
    for name in ("a", "b"):
        scheduler.add(request(name), 0.0)
    output = scheduler.schedule()
    bad = NonFiniteLogitsError("NaN")
    events = scheduler.commit(output, [StepResult(error=bad), StepResult(token_id=1)])
    assert [e.error_code for e in events] == ["non_finite_logits", None]
    assert {e.request_id for e in run_all(scheduler)} == {"b"}


@pytest.mark.parametrize(
    ("prompt", "sampling", "error", "param"),
    [
        ([], {}, InvalidRequestError, "prompt"),
        ([50], {}, InvalidRequestError, "prompt"),
        ([-1], {}, InvalidRequestError, "prompt"),
        ([1] * 100, {}, ContextLengthError, "prompt"),
        ([1] * 98, {"max_tokens": 3}, ContextLengthError, "max_tokens"),
        ([1], {"stop_token_ids": (50,)}, InvalidRequestError, "stop_token_ids"),
        ([1], {"logit_bias": {77: 1.0}}, InvalidRequestError, "logit_bias"),
    ],
)
def test_request_when_it_can_never_be_served_then_is_refused_by_field(
    prompt, sampling, error, param
):
    scheduler = new_scheduler()
    bad = EngineRequest(
        request_id="x", prompt_token_ids=prompt, sampling=SamplingParams(seed=0, **sampling)
    )
    with pytest.raises(error) as caught:
        scheduler.add(bad, 0.0)
    assert caught.value.param == param
    assert not scheduler.has_work


def test_pool_when_something_is_given_back_twice_then_refuses_and_changes_nothing():
    pool = IndexPool(4)
    taken = pool.take(3)
    pool.give_back(taken[:1])
    for wrong in ([taken[0]], [taken[1], taken[1]], [9]):
        with pytest.raises(ValueError, match="no owner"):
            pool.give_back(wrong)
    assert pool.num_free == 2
    assert pool.take(3) is None
    assert pool.num_free == 2


def results_of(output, token=1):
    return [StepResult(token_id=token) for _ in output.scheduled]


def decoding(*names, **changes):
    """A scheduler and its first step in which these requests all decode."""
    scheduler = new_scheduler(**changes)
    for name in names:
        scheduler.add(request(name, max_tokens=20), 0.0)
    run_step(scheduler)
    return scheduler, scheduler.schedule()


def test_ahead_when_all_decode_then_each_goes_on_by_the_token_in_flight():
    scheduler, first = decoding("a", "b")
    second = scheduler.schedule_ahead(first)
    assert [(s.start, s.num_tokens, s.wants_token) for s in second.scheduled] == [(6, 1, True)] * 2
    scheduler.commit(first, results_of(first))
    third = scheduler.schedule_ahead(second)
    assert [s.start for s in third.scheduled] == [7, 7]
    assert [e.token_ids for e in scheduler.commit(second, results_of(second))] == [[1], [1]]


def test_ahead_when_a_sequence_ends_by_length_then_the_others_go_on_without_it():
    scheduler = new_scheduler()
    scheduler.add(request("short", max_tokens=2), 0.0)
    scheduler.add(request("long", max_tokens=9), 0.0)
    run_step(scheduler)
    first = scheduler.schedule()
    second = scheduler.schedule_ahead(first)
    assert [s.sequence.request_id for s in second.scheduled] == ["long"]
    events = scheduler.commit(first, results_of(first))
    assert [e.finish_reason for e in events] == ["length", None]
    assert scheduler.cache.num_free_slots == 3


def test_ahead_when_a_request_waits_then_only_if_it_could_not_be_admitted():
    scheduler, first = decoding("a")
    scheduler.add(request("new"), 0.0)
    assert scheduler.schedule_ahead(first) is None
    full, first = decoding("a", "b", slots=2)
    full.add(request("new"), 0.0)
    assert full.schedule_ahead(first) is not None
    # All of "large" finds no memory, until "b" has ended.
    short, first = decoding("a", "b", num_blocks=7)
    short.add(request("large", 95), 0.0)
    assert short.schedule_ahead(first) is None
    short.commit(first, results_of(first))
    second = short.schedule()
    third = short.schedule_ahead(second)
    assert third is not None
    short.commit(second, [StepResult(token_id=1), StepResult(token_id=EOS)])
    assert short.schedule_ahead(third) is None


def test_ahead_when_blocks_are_too_few_then_the_plain_order_preempts():
    scheduler = new_scheduler(num_blocks=7)
    for name in ("a", "b", "c"):
        scheduler.add(request(name, 16, max_tokens=50), 0.0)
    while any(s.num_tokens == 16 for s in scheduler._running) or scheduler._waiting:
        run_step(scheduler)
    step, count = scheduler.schedule(), 0
    while (ahead := scheduler.schedule_ahead(step)) is not None:
        assert all(len(s.sequence.lease.blocks) * 16 > s.start for s in ahead.scheduled)
        scheduler.commit(step, results_of(step))
        step, count = ahead, count + 1
    assert count > 10
    assert scheduler.stats().num_preemptions == 0
    scheduler.commit(step, results_of(step))
    scheduler.schedule()
    assert scheduler.stats().num_preemptions == 1


def test_sequence_when_it_ended_with_a_step_in_flight_then_holds_its_memory_until_that_is_done():
    scheduler, first = decoding("a", "b")
    second = scheduler.schedule_ahead(first)
    events = scheduler.commit(first, [StepResult(token_id=EOS), StepResult(token_id=1)])
    assert [e.finish_reason for e in events] == ["stop", None]
    third = scheduler.schedule_ahead(second)
    assert [s.sequence.request_id for s in third.scheduled] == ["b"]
    assert scheduler.cache.num_free_slots == 2
    assert [e.request_id for e in scheduler.commit(second, results_of(second))] == ["b"]
    assert scheduler.cache.num_free_slots == 3
    (event,) = scheduler.abort("b")
    assert (event.finish_reason, scheduler.has_work) == ("aborted", False)
    assert scheduler.commit(third, results_of(third)) == []
    assert scheduler.cache.num_free_blocks == scheduler.cache.num_blocks


@pytest.mark.parametrize(("num_computed", "is_kept"), [(32, True), (46, True), (47, False)])
def test_states_when_the_step_in_flight_folds_them_further_then_are_not_kept(num_computed, is_kept):
    """What is decided at a commit is carried out behind the step that is under way."""
    scheduler = new_scheduler(num_blocks=20, checkpoint_blocks=8)
    scheduler.add(request("a", 10, max_tokens=60), 0.0)
    run_step(scheduler)
    step = scheduler.schedule()
    (sequence,) = scheduler._running
    while sequence.num_computed < num_computed:
        ahead = scheduler.schedule_ahead(step)
        scheduler.commit(step, results_of(step))
        step = ahead
    before = scheduler.cache.num_checkpoints
    sequence.last_checkpoint = 0
    assert (sequence.num_in_flight, before) == (1, 0)
    scheduler.prefixes.keep(sequence, checkpoint=True)
    assert scheduler.cache.num_checkpoints == is_kept


class SchedulerMachine(RuleBasedStateMachine):
    """Random requests, steps, aborts, failures and deadlines against a small cache.

    Now and then a step is scheduled ahead and stays in flight until the next call of step().
    """

    def __init__(self):
        super().__init__()
        self.scheduler = new_scheduler(num_blocks=10, max_num_waiting=8)
        self.open: dict[str, set[int]] = {}
        self.now = 0.0
        self.count = 0
        self.in_flight = None

    def take(self, events):
        for event in events:
            assert event.choice in self.open[event.request_id], "an event after the end"
            if event.finish_reason is not None:
                self.open[event.request_id].discard(event.choice)

    @rule(
        length=st.integers(1, 90),
        max_tokens=st.integers(0, 40),
        n=st.integers(1, 3),
        timeout=st.none() | st.integers(1, 20),
        owner=st.sampled_from(["", "", "", "a", "b"]),
    )
    def add(self, length, max_tokens, n, timeout, owner):
        name = f"r{self.count}"
        self.count += 1
        wanted = EngineRequest(
            request_id=name,
            prompt_token_ids=[1] * length,
            sampling=SamplingParams(seed=0, max_tokens=max_tokens, n=n),
            timeout_s=timeout,
            cache_salt=f"{owner}:",
        )
        try:
            self.scheduler.add(wanted, self.now)
        except (ContextLengthError, QueueFullError):
            return
        self.open[name] = set(range(n))

    @rule(
        tokens=st.lists(st.integers(0, 8), min_size=4, max_size=4),
        fail=st.integers(0, 20),
        breaks=st.integers(0, 20),
        ahead=st.booleans(),
    )
    def step(self, tokens, fail, breaks, ahead):
        self.now += 1
        self.take(self.scheduler.expire(self.now))
        output, self.in_flight = self.in_flight, None
        if output is None:
            output = self.scheduler.schedule()
            if self.scheduler.has_work:
                assert output.scheduled, "work, but nothing was scheduled"
        self.check(output)
        if (
            ahead
            and output.scheduled
            and all(s.num_tokens == 1 and s.wants_token for s in output.scheduled)
        ):
            self.in_flight = self.scheduler.schedule_ahead(output)
        if self.in_flight is not None:
            self.check(self.in_flight)
            for item in self.in_flight.scheduled:
                assert item.start == item.sequence.num_tokens
        if breaks == 0:
            error = EngineError("broken")
            for lost in (self.in_flight, output):
                if lost is not None:
                    self.take(self.scheduler.step_failed(lost, error))
            self.in_flight = None
            return
        if breaks in (1, 2):  # and is made again, in parts
            if breaks == 1:  # the operations were carried out
                output.memory_ops = []
            if self.in_flight is not None:
                self.scheduler.take_back(self.in_flight)
                self.in_flight = None
            for item in self.scheduler.take_back(output):
                part = self.scheduler.again([item], 0)
                self.check(part)
                self.take(self.scheduler.commit(part, results_of(part)))
            return
        results = []
        for i, item in enumerate(output.scheduled):
            if i == fail:
                results.append(StepResult(error=NonFiniteLogitsError("NaN")))
            else:
                results.append(StepResult(token_id=tokens[i] if item.wants_token else None))
        self.take(self.scheduler.commit(output, results))

    def check(self, output):
        assert output.num_tokens <= 24
        leases = self.scheduler.cache._leases.values()
        leased = [b for lease in leases for b in lease.own_blocks]
        assert len(leased) == len(set(leased)), "a block with two owners"
        slots = [s.sequence.lease.state_slot for s in output.scheduled]
        assert len(slots) == len(set(slots)), "a slot with two owners"
        for item in output.scheduled:
            blocks = item.sequence.lease.blocks
            assert len(blocks) * 16 >= item.start + item.num_tokens, "tokens without memory"

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data):
        name = data.draw(st.sampled_from(sorted(self.open)))
        events = self.scheduler.abort(name)
        assert all(e.finish_reason == "aborted" for e in events)
        self.take(events)
        assert not self.open[name]

    @invariant()
    def memory_adds_up(self):
        cache = self.scheduler.cache
        holding = set(self.scheduler._running)
        if self.in_flight is not None:
            holding |= {item.sequence for item in self.in_flight.scheduled}
        held = sum(len(s.lease.blocks) for s in holding)
        assert held + cache.num_free_blocks == cache.num_blocks
        assert len(holding) + cache.num_free_slots == cache.num_slots
        assert all(s.num_in_flight == (self.in_flight is not None) for s in holding)

    def teardown(self):
        if self.in_flight is not None:
            self.take(self.scheduler.commit(self.in_flight, results_of(self.in_flight)))
        while self.scheduler.has_work:
            self.take(run_step(self.scheduler)[1])
        assert not any(self.open.values()), "a sequence that never ended"
        assert self.scheduler.cache.num_free_blocks == self.scheduler.cache.num_blocks
        assert self.scheduler._by_request == {}
        assert not self.scheduler.suspects


SchedulerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestSchedulerMachine = SchedulerMachine.TestCase
