"""How many replicas: by the predicted time to first token, with minimum, maximum and cooldown."""

from __future__ import annotations

import pytest

from lingflash.cluster.autoscaler import Autoscaler, PromptRate, predicted_first_token_s
from lingflash.cluster.config import ScaleTable
from lingflash.protocol.replicas import Health


def health(queued=0, taken=0, sequences=0):
    return Health(
        ready=True,
        capacity=10,
        queued_prompt_tokens=queued,
        taken_prompt_tokens=taken,
        sequences=sequences,
    )


def fleet(*sequences):
    return {f"r{i}": health(sequences=n) for i, n in enumerate(sequences)}


def scaler(wanted=1, **changes):
    scale = {"min": 1, "max": 4, "first_token_s": 2.0, "cooldown_s": 60.0} | changes
    return Autoscaler(ScaleTable(**scale), wanted)


def test_rate_when_prompts_wait_then_what_is_taken_in_a_second():
    rate = PromptRate()
    rate.note(0.0, health(queued=5000))
    assert rate.per_s is None
    rate.note(2.0, health(queued=3000, taken=2000))
    assert rate.per_s == 1000
    rate.note(3.0, health(queued=1000, taken=4000))
    assert 1000 < rate.per_s < 2000


def test_rate_when_nothing_waited_then_an_idle_second_is_none():
    rate = PromptRate()
    rate.note(0.0, health())
    rate.note(10.0, health(taken=50, queued=100))
    assert rate.per_s is None
    rate.note(11.0, health(taken=150))
    assert rate.per_s == 100
    rate.note(99.0, health(taken=160))
    assert rate.per_s == 100


def test_rate_when_the_server_was_started_again_then_its_counter_is_no_rate():
    rate = PromptRate()
    rate.note(0.0, health(queued=10, taken=9000))
    rate.note(1.0, health(queued=10, taken=5))
    assert rate.per_s is None


@pytest.mark.parametrize(
    ("queued", "rates", "seconds"),
    [
        ([0, 0], [None, None], 0.0),
        ([100, 100], [None, None], None),
        ([3000, 1000], [500.0, 1500.0], 2.0),
        ([3000, 1000], [500.0, None], 4.0),
    ],
)
def test_prediction_then_what_waits_over_what_is_taken(queued, rates, seconds):
    assert predicted_first_token_s([health(each) for each in queued], rates) == seconds


def test_scaler_when_the_wait_is_long_then_as_many_more_as_make_it_short():
    one = scaler()
    assert one.decide(0.0, fleet(5), 3.0) == 2
    assert one.decide(1.0, fleet(5), 30.0) == 2  # the second is still being started
    assert one.decide(9.0, fleet(5, 5), 30.0) == 4  # twice as many at once, no more
    assert one.decide(20.0, fleet(5, 5, 5, 5), 30.0) == 4  # the maximum


def test_scaler_when_it_was_calm_for_the_cooldown_then_one_fewer():
    one = scaler(wanted=3)
    assert one.decide(0.0, fleet(0, 1, 0), 0.0) == 3
    assert one.decide(59.0, fleet(0, 1, 0), 0.0) == 3
    assert one.decide(60.0, fleet(0, 1, 0), 0.0) == 2
    assert one.decide(61.0, fleet(0, 1), 0.0) == 2
    assert one.decide(121.0, fleet(0, 1), 0.0) == 1
    assert one.decide(999.0, fleet(0), 0.0) == 1  # the minimum


def test_scaler_when_calm_is_broken_then_the_cooldown_begins_anew():
    one = scaler(wanted=2)
    assert one.decide(0.0, fleet(0, 0), 0.0) == 2
    assert one.decide(50.0, fleet(9, 9), 0.0) == 2  # one alone would be full
    assert one.decide(61.0, fleet(0, 0), 0.0) == 2
    assert one.decide(100.0, fleet(0, 0), 1.5) == 2  # one alone would be too slow
    assert one.decide(119.0, fleet(0, 0), 0.0) == 2
    assert one.decide(178.0, fleet(0, 0), 0.0) == 2
    assert one.decide(179.0, fleet(0, 0), 0.0) == 1


def test_scaler_when_no_rate_is_known_or_a_replica_died_then_nothing_changes():
    one = scaler(wanted=2)
    assert one.decide(0.0, fleet(5, 5), None) == 2
    assert one.decide(1.0, fleet(5), 99.0) == 2
    assert one.decide(2.0, {}, 0.0) == 2


def test_scaler_when_the_file_has_other_bounds_then_they_hold_at_once():
    assert scaler(wanted=9).decide(0.0, {}, 0.0) == 4
    assert scaler(wanted=0, min=2).decide(0.0, {}, 0.0) == 2
