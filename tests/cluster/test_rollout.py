"""Which replicas start and which are drained: as many serve as are wanted, whatever is replaced."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lingflash.cluster.members import Generation, Member
from lingflash.cluster.rollout import next_rollout
from lingflash.protocol.replicas import Health

NOW, BEFORE = Generation(1, "d"), Generation(0, "d")


def member(name, state="ready", generation=NOW, sessions=0):
    health = Health(ready=state == "ready", sessions=sessions)
    return Member(name, generation, 0.0, state, "node", "http://a:1", health)


def plan(*members, wanted, surge=1):
    rollout = next_rollout(members, wanted, NOW, surge)
    return rollout.starts, rollout.drains


def test_rollout_when_some_lack_then_they_are_started():
    assert plan(wanted=2) == (2, [])
    assert plan(member("a", "starting"), wanted=2) == (1, [])
    assert plan(member("a", "draining"), wanted=1) == (1, [])
    assert plan(member("a"), member("b", "placing"), wanted=2) == (0, [])


def test_rollout_when_there_are_too_many_then_who_loses_least_goes():
    busy, idle = member("a", sessions=9), member("b", sessions=2)
    assert plan(busy, idle, wanted=1) == (0, ["b"])
    assert plan(busy, idle, member("c", "starting"), wanted=2) == (0, ["c"])
    assert plan(busy, idle, wanted=0) == (0, ["b", "a"])


def test_rollout_when_all_are_old_then_one_at_a_time_each_after_its_successor():
    old = [member("a", generation=BEFORE, sessions=3), member("b", generation=BEFORE)]
    assert plan(*old, wanted=2) == (1, [])
    assert plan(*old, member("c", "starting"), wanted=2) == (0, [])
    assert plan(*old, member("c"), wanted=2) == (0, ["b"])
    assert plan(old[0], member("b", "draining", BEFORE), member("c"), wanted=2) == (1, [])
    assert plan(old[0], member("c"), member("d"), wanted=2) == (0, ["a"])
    assert plan(member("c"), member("d"), wanted=2) == (0, [])


def test_rollout_when_there_is_no_room_for_a_surge_then_one_is_drained_first():
    old = [member("a", generation=BEFORE), member("b", generation=BEFORE)]
    assert plan(*old, wanted=2, surge=0) == (0, ["a"])
    assert plan(old[1], wanted=2, surge=0) == (1, [])
    assert plan(old[1], member("c", "starting"), wanted=2, surge=0) == (0, [])
    assert plan(old[1], member("c"), wanted=2, surge=0) == (0, ["b"])


def test_rollout_when_an_old_one_does_not_serve_then_nobody_waits_for_it():
    assert plan(member("a", "unready", BEFORE), member("b"), wanted=2) == (1, ["a"])


def test_rollout_when_one_is_to_leave_then_it_is_as_an_old_one():
    leaving = member("a")
    leaving.is_leaving = True
    assert plan(leaving, wanted=1) == (1, [])
    assert plan(leaving, member("b"), wanted=1) == (0, ["a"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.booleans(), min_size=1, max_size=6),
    wanted=st.integers(1, 6),
    surge=st.integers(0, 2),
    data=st.data(),
)
@pytest.mark.parametrize("can_die", [False, True], ids=["calm", "deaths"])
def test_rollout_when_carried_out_then_it_ends_with_as_many_new_ones(
    kinds, wanted, surge, can_die, data
):
    """Each turn one thing happens; never are fewer ready than the rules allow."""
    members = {
        f"m{i}": member(f"m{i}", generation=NOW if is_new else BEFORE)
        for i, is_new in enumerate(kinds)
    }
    for turn in range(60):
        rollout = next_rollout(members.values(), wanted, NOW, surge)
        before = sum(each.state == "ready" for each in members.values())
        for name in rollout.drains:
            members[name].state = "draining"
        after = sum(each.state == "ready" for each in members.values())
        least = wanted - (0 if surge else 1)
        assert after >= min(before, least)
        for i in range(rollout.starts):
            members[f"t{turn}-{i}"] = member(f"t{turn}-{i}", "starting")
        here = [each for each in members.values() if each.state != "draining"]
        assert len(here) <= max(wanted + surge, len(kinds))
        busy = [each for each in members.values() if each.state in ("starting", "draining")]
        if can_die and turn < 20 and data.draw(st.booleans()):
            del members[data.draw(st.sampled_from(sorted(members)))]
        elif busy:
            each = data.draw(st.sampled_from(sorted(busy, key=lambda one: one.id)))
            if each.state == "draining":
                del members[each.id]
            else:
                each.state = "ready"
        if not members:
            members["late"] = member("late")
    assert [each.generation for each in members.values()] == [NOW] * wanted
    assert all(each.state == "ready" for each in members.values())
