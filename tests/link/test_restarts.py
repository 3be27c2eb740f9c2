"""Restarts, their pauses, and what an end is called."""

from __future__ import annotations

import signal

from lingflash.link.pulse import PING_EVERY_S, Pulse
from lingflash.link.restarts import WINDOW_S, Restarts, describe_exit


def test_restarts_when_the_engine_keeps_dying_then_pauses_double_up_to_the_limit():
    restarts = Restarts(9)
    pauses = [restarts.next_pause_s(float(i), 0.0) for i in range(10)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, None]
    assert restarts.num_left == 0


def test_restarts_when_it_served_for_a_while_then_the_next_pause_is_short():
    restarts = Restarts(9)
    for _ in range(4):
        restarts.next_pause_s(0.0, 0.0)
    assert restarts.next_pause_s(0.0, 3.0) == 8.0
    assert restarts.next_pause_s(0.0, 100.0) == 0.5


def test_restarts_when_they_are_old_then_they_do_not_count():
    restarts = Restarts(2)
    assert [restarts.next_pause_s(now, 0.0) for now in (0.0, 10.0)] == [0.5, 1.0]
    assert restarts.next_pause_s(20.0, 100.0) is None
    assert restarts.next_pause_s(WINDOW_S + 5, 100.0) == 0.5
    assert restarts.next_pause_s(WINDOW_S + 6, 100.0) is None


def test_restarts_when_none_are_allowed_then_there_is_none():
    assert Restarts(0).next_pause_s(0.0, 1e9) is None


def test_exit_when_described_then_signals_have_names_and_likely_causes():
    assert describe_exit(3) == "ended with exit code 3"
    assert "SIGKILL" in describe_exit(-signal.SIGKILL)
    assert "out-of-memory" in describe_exit(-signal.SIGKILL)
    assert "SIGBUS" in describe_exit(-signal.SIGBUS)
    assert describe_exit(-99) == "was ended by signal 99"


def test_pulse_when_the_engine_answers_then_only_a_long_step_is_a_complaint():
    pulse, now = Pulse(), 0.0
    for step_s in (0.0, 5.0, 119.0, 0.2):
        pulse.answered(pulse.beat(now), step_s)
        now += PING_EVERY_S
        assert pulse.complaint(120.0) is None
    pulse.answered(pulse.beat(now), 121.0)
    assert "at one step for 121 s" in pulse.complaint(120.0)


def test_pulse_when_there_is_no_answer_then_one_ping_waits_and_the_time_counts():
    pulse = Pulse()
    assert pulse.beat(0.0) == 1
    assert [pulse.beat(float(now)) for now in range(1, 11)] == [None] * 10
    assert pulse.complaint(9.0) is not None
    pulse.answered(1, 0.0)
    assert pulse.complaint(9.0) is None
    assert pulse.beat(11.0) == 2


def test_pulse_when_the_server_itself_stood_still_then_the_engine_is_not_blamed():
    pulse = Pulse()
    pulse.beat(0.0)
    pulse.beat(3600.0)
    assert pulse.complaint(5.0) is None


def test_pulse_when_an_old_answer_comes_then_it_does_not_count():
    pulse = Pulse()
    pulse.answered(pulse.beat(0.0), 0.0)
    pulse.beat(1.0)
    pulse.answered(1, 500.0)
    assert pulse.complaint(100.0) is None
