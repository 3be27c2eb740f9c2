"""Several keys share an engine: the pure scheduler, driven without a model."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from lingflash.cache.manager import CacheManager
from lingflash.core.errors import QueueFullError
from lingflash.core.types import EngineRequest, SamplingParams
from lingflash.engine.schedule.scheduler import Scheduler
from lingflash.engine.schedule.step import StepResult


def new_scheduler(
    *, slots=8, budget=256, shared=None, num_blocks=2000, max_num_waiting=10_000, max_model_len=4000
):
    return Scheduler(
        CacheManager(num_blocks, 16, slots, 4),
        max_num_seqs=slots,
        max_num_batched_tokens=budget,
        max_num_shared_tokens=shared,
        max_num_waiting=max_num_waiting,
        max_model_len=max_model_len,
        vocab_size=1000,
        stop_token_ids=[],
    )


class Drive:
    """Runs a scheduler's steps, each sequence's tokens being its own (nothing is shared)."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.served, self.slots, self.blocks = Counter(), Counter(), Counter()
        self.first_token_step = {}
        self.step_number = self.num_requests = 0
        self.steps = []

    def add(self, owner, length, max_tokens):
        self.num_requests += 1
        name = f"{owner}-{self.num_requests}"
        first = [self.num_requests % 1000, self.num_requests // 1000 % 1000]
        self.scheduler.add(
            EngineRequest(
                request_id=name,
                prompt_token_ids=(first + [1] * length)[: max(length, 2)],
                sampling=SamplingParams(seed=0, max_tokens=max_tokens),
                cache_salt=f"{owner}:",
            ),
            0.0,
        )
        return name

    def step(self):
        self.step_number += 1
        output = self.scheduler.schedule()
        assert output.num_tokens <= self.scheduler.max_num_batched_tokens
        for sequence in self.scheduler._running:
            self.slots[sequence.owner] += 1
            self.blocks[sequence.owner] += len(sequence.lease.blocks)
        for item in output.scheduled:
            self.served[item.sequence.owner] += item.num_tokens
            if item.wants_token:
                self.first_token_step.setdefault(item.sequence.request_id, self.step_number)
        self.steps.append(
            [(i.sequence.request_id, i.start, i.num_tokens) for i in output.scheduled]
        )
        results = [StepResult(token_id=1 if i.wants_token else None) for i in output.scheduled]
        return self.scheduler.commit(output, results)

    def waiting(self, owner):
        return sum(s.owner == owner for s in self.scheduler._waiting)


kinds = st.sampled_from(
    [(2, 1), (2, 400), (30, 4), (300, 2), (300, 300), (1500, 1), (3000, 50), (3500, 2)]
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take an hour
)
@given(
    mixes=st.lists(st.lists(kinds, min_size=1, max_size=4), min_size=2, max_size=5),
    slots=st.sampled_from([5, 8, 16]),
    budget=st.sampled_from([64, 256, 1024]),
    num_blocks=st.sampled_from([260, 600, 2000]),
    late=st.integers(0, 4),
)
@example(  # key 1's short prompts stood behind long ones that found no memory
    mixes=[
        [(3500, 2), (2, 400)],
        [(300, 2)],
        [(2, 400), (30, 4), (3500, 2), (3000, 50)],
        [(2, 400), (2, 400), (2, 1), (2, 1)],
        [(3500, 2)],
    ],
    slots=16,
    budget=64,
    num_blocks=260,
    late=4,
)
def test_keys_when_all_want_more_then_none_gets_less_than_half_its_share(
    mixes, slots, budget, num_blocks, late
):
    """Of tokens, slots or memory: whichever its kind of requests runs out of first."""
    drive = Drive(new_scheduler(slots=slots, budget=budget, num_blocks=num_blocks))
    names = [str(number) for number in range(len(mixes))]
    late = names[late % len(names)]
    turns = Counter()

    def run(num_steps, active):
        for _ in range(num_steps):
            for name in active:
                while drive.waiting(name) < slots + 2:
                    mix = mixes[int(name)]
                    drive.add(name, *mix[turns[name] % len(mix)])
                    turns[name] += 1
            drive.step()

    # One comes when the others have taken everything.
    run(150, [name for name in names if name != late])
    drive.served.clear()
    drive.slots.clear()
    drive.blocks.clear()
    run(1000, names)
    share = {
        "tokens": sum(drive.served.values()) / len(names),
        "slots": min(sum(drive.slots.values()) / len(names), 1000 * (slots // len(names))),
        "blocks": sum(drive.blocks.values()) / len(names),
    }
    for name in names:
        had = {
            "tokens": drive.served[name],
            "slots": drive.slots[name],
            "blocks": drive.blocks[name],
        }
        assert any(had[what] >= share[what] / 2 for what in share), (name, had, share)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), kinds), min_size=1, max_size=30), st.booleans())
def test_schedule_when_there_is_one_key_then_it_is_as_without_keys(arrivals, is_tight):
    num_blocks = 260 if is_tight else 2000

    def steps(owner):
        drive = Drive(new_scheduler(num_blocks=num_blocks))
        todo = sorted(arrivals)
        while todo or drive.scheduler.has_work:
            while todo and todo[0][0] <= drive.step_number:
                drive.add(owner, *todo.pop(0)[1])
            drive.step()
            assert drive.step_number < 5000
        assert not drive.scheduler.shares.are_needed
        return [[(name.split("-")[1], *rest) for name, *rest in step] for step in drive.steps]

    assert steps("a") == steps("")


def test_prompt_of_one_key_when_another_has_many_long_ones_then_comes_with_the_next_steps():
    drive = Drive(new_scheduler(slots=64, budget=2048, num_blocks=30_000, max_model_len=8100))
    for _ in range(48):
        drive.add("a", 8000, 4)
    for _ in range(3):
        drive.step()
    for _ in range(20):
        name, asked = drive.add("b", 40, 4), drive.step_number
        for _ in range(6):
            drive.step()
        assert drive.first_token_step[name] - asked <= 2


def test_prompts_while_several_keys_are_served_then_have_fewer_tokens_of_a_step():
    drive = Drive(new_scheduler(budget=256, shared=32, max_model_len=40_000, num_blocks=5000))

    def longest_chunk():
        drive.step()
        return max(num_tokens for _, _, num_tokens in drive.steps[-1])

    drive.add("a", 39_000, 1)
    assert longest_chunk() == 256, "nobody else is there"
    drive.add("b", 10, 8)
    drive.step()
    assert sum(num_tokens for _, _, num_tokens in drive.steps[-1]) == 32
    chunks = {longest_chunk() for _ in range(100)}
    assert max(chunks) == 32, "b has left, and may come again"
    for _ in range(430):
        drive.step()
    assert 256 in {longest_chunk() for _ in range(10)}


@pytest.mark.parametrize(
    "mixes",
    [
        [[(3000, 50)], [(30, 4)]],
        [[(2, 400)], [(3500, 2)], [(300, 2)]],
        [[(300, 300), (1500, 1)], [(2, 1)], [(3000, 50), (30, 4)], [(2, 400)]],
    ],
)
def test_keys_when_steps_are_short_while_they_share_then_each_has_half_its_share_of_tokens(mixes):
    drive = Drive(new_scheduler(budget=256, shared=32))
    for step in range(1100):
        if step == 100:
            drive.served.clear()
            drive.slots.clear()
        for number, mix in enumerate(mixes):
            while drive.waiting(str(number)) < 10:
                drive.add(str(number), *mix[drive.num_requests % len(mix)])
        drive.step()
    names = [str(number) for number in range(len(mixes))]
    assert all(
        drive.served[name] >= sum(drive.served.values()) / len(names) / 2
        or drive.slots[name] >= sum(drive.slots.values()) / len(names) / 2
        for name in names
    )


def test_schedule_when_there_is_one_key_then_sharing_costs_no_sequence_anything():
    """Counted in calls, of which each takes as long as the rest of a sequence's turn."""

    def calls_for(num_sequences):
        drive = Drive(new_scheduler(slots=64, budget=2048))
        for _ in range(num_sequences):
            drive.add("a", 10, 100)
        for _ in range(3):
            drive.step()
        calls = Counter()

        def note(frame, event, _):
            if event == "call":
                calls[frame.f_code.co_name, Path(frame.f_code.co_filename).stem] += 1

        sys.setprofile(note)
        drive.scheduler.schedule()
        sys.setprofile(None)
        return calls

    few, many = calls_for(8), calls_for(64)
    assert {name for name, file in many if file == "shares"} == {"are_needed"}
    grown = {name: (many[name, file] - n) / 56 for (name, file), n in few.items()}
    assert {name: n for name, n in grown.items() if n} == {"num_tokens": 2, "__init__": 1}


def test_key_when_another_holds_all_slots_then_gets_its_share_one_a_step():
    drive = Drive(new_scheduler(slots=8))
    for _ in range(20):
        drive.add("a", 20, 2000)
    for _ in range(5):
        drive.step()
    assert drive.scheduler.num_running == 8
    names = [drive.add("b", 20, 2000) for _ in range(6)]
    for _ in range(8):
        drive.step()
    owners = Counter(s.owner for s in drive.scheduler._running)
    assert owners == {"a": 4, "b": 4}
    assert drive.scheduler.stats().num_preemptions == 4
    assert [name in drive.first_token_step for name in names] == [True] * 4 + [False] * 2
    for _ in range(100):
        drive.step()
    assert drive.scheduler.stats().num_preemptions == 4, "nothing goes to and fro"


def test_key_that_comes_now_and_then_when_slots_are_full_then_few_are_taken_for_it():
    drive = Drive(new_scheduler(slots=16))
    for _ in range(40):
        drive.add("a", 20, 3000)
    for _ in range(5):
        drive.step()
    for _ in range(50):
        name, asked = drive.add("b", 20, 3), drive.step_number
        for _ in range(12):
            drive.step()
        assert drive.first_token_step[name] - asked <= 2
    assert drive.scheduler.stats().num_preemptions == 1
    assert drive.scheduler.num_running == 15
    for _ in range(1100):  # it comes no more
        drive.step()
    assert drive.scheduler.num_running == 16
    assert not drive.scheduler.shares.are_needed


def test_key_when_another_holds_all_memory_then_gets_some_and_nothing_goes_to_and_fro():
    drive = Drive(new_scheduler(num_blocks=300, slots=16))
    for _ in range(10):
        drive.add("a", 600, 1000)
    for _ in range(40):
        drive.step()
    before = drive.scheduler.stats().num_preemptions
    name, asked = drive.add("b", 600, 40), drive.step_number
    for _ in range(20):
        drive.step()
    assert drive.first_token_step[name] - asked <= 6
    assert drive.scheduler.stats().num_preemptions - before <= 3
    for _ in range(500):
        drive.step()
    ends = drive.first_token_step
    assert sum(drive.served.values()) / drive.step_number > 2
    assert name in ends


def test_queue_when_one_key_fills_it_then_another_still_has_its_part():
    scheduler = new_scheduler(slots=2, max_num_waiting=10)
    drive = Drive(scheduler)
    for _ in range(12):
        drive.add("a", 20, 100)
    with pytest.raises(QueueFullError):
        drive.add("a", 20, 100)
    for _ in range(5):
        drive.add("b", 20, 100)
    with pytest.raises(QueueFullError):
        drive.add("b", 20, 100)
    for _ in range(3):
        drive.add("c", 20, 100)
    with pytest.raises(QueueFullError):
        drive.add("c", 20, 100)


def test_keys_when_all_are_done_then_nothing_is_kept_of_them():
    drive = Drive(new_scheduler())
    for number in range(500):
        drive.add(f"key{number}", 20, 2)
    while drive.scheduler.has_work:
        drive.step()
    drive.add("a", 20, 2000)
    for _ in range(700):
        drive.step()
    assert list(drive.scheduler.shares._owners) == ["a"]


def test_schedule_ahead_when_another_key_is_owed_a_slot_then_leaves_it_to_schedule():
    drive = Drive(new_scheduler(slots=4))
    for _ in range(6):
        drive.add("a", 20, 1000)
    drive.step()
    output = drive.scheduler.schedule()
    ahead = drive.scheduler.schedule_ahead(output)
    assert ahead is not None, "its own wait for slots, which are full"
    results = [StepResult(token_id=1) for _ in output.scheduled]
    drive.scheduler.commit(output, results)
    drive.add("b", 20, 10)
    assert drive.scheduler.schedule_ahead(ahead) is None
    drive.scheduler.commit(ahead, results)
    drive.step()
    assert "b-7" in drive.first_token_step


@pytest.mark.parametrize(("mine", "of_others"), [(1, 60), (5, 59), (12, 52), (30, 34), (9, 9)])
def test_decoding_while_several_keys_are_served_then_few_take_part_and_all_in_turn(mine, of_others):
    drive = Drive(new_scheduler(slots=64, shared=64, num_blocks=8000))
    names = {
        owner: [drive.add(owner, 4, 3000) for _ in range(number)]
        for owner, number in (("a", of_others), ("b", mine))
    }
    for _ in range(200):  # all have begun
        drive.step()
    drive.steps.clear()
    for _ in range(60):
        drive.step()
    rows = [Counter(name.split("-")[0] for name, _, _ in step) for step in drive.steps]
    share_of_mine = min(mine, 8)
    assert all(step["b"] >= share_of_mine for step in rows)
    assert all(step.total() == min(mine + of_others, 16) for step in rows)
    served = Counter(name for step in drive.steps for name, _, _ in step)
    for owner in ("a", "b"):
        counts = [served[name] for name in names[owner]]
        assert max(counts) - min(counts) <= 1, counts


def test_decoding_when_the_other_key_has_left_then_all_take_part_again():
    drive = Drive(new_scheduler(slots=64, shared=64, num_blocks=8000))
    for _ in range(40):
        drive.add("a", 4, 3000)
    name = drive.add("b", 4, 3000)
    for _ in range(100):
        drive.step()
    assert len(drive.steps[-1]) == 16
    drive.scheduler.abort(name)
    drive.step()
    assert len(drive.steps[-1]) == 40
