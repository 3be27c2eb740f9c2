"""Which sequences' tokens a GPU may draw by itself: every sampling parameter is on one side."""

from __future__ import annotations

from dataclasses import fields

import pytest

from lingflash.core.types import SamplingParams
from lingflash.engine.run.sampler import DRAWN_FIELDS, is_plain
from lingflash.engine.schedule.sequence import Sequence

# A value of each parameter that the device cannot heed.
NEEDS_THE_HOST = {
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.5,
    "logit_bias": {3: 1.0},
    "logprobs": 0,
}
# And one of each that it heeds, or that is no business of the draw.
DRAWN = {
    "temperature": 0.5,
    "seed": 7,
    "n": 2,
    "max_tokens": 9,
    "min_tokens": 1,
    "stop": ("x",),
    "stop_token_ids": (3,),
    "ignore_eos": True,
    "prompt_logprobs": 1,
}


def sequence(**sampling):
    return Sequence(
        request_id="r",
        choice=0,
        prompt_token_ids=[1],
        sampling=SamplingParams(**sampling),
        stop_token_ids=frozenset(),
        max_total_tokens=99,
        deadline_s=None,
        output_token_ids=[5],
    )


def test_parameters_when_listed_then_each_is_on_one_side():
    """A new field of SamplingParams fails here until someone says where its tokens are drawn."""
    assert {f.name for f in fields(SamplingParams)} == NEEDS_THE_HOST.keys() | DRAWN.keys()
    assert DRAWN.keys() == DRAWN_FIELDS


@pytest.mark.parametrize("name", NEEDS_THE_HOST)
def test_draw_when_the_device_would_ignore_a_parameter_then_is_left_to_the_host(name):
    assert not is_plain(sequence(**{name: NEEDS_THE_HOST[name]}))


def test_draw_when_nothing_needs_the_host_then_is_the_devices():
    assert is_plain(sequence())
    assert is_plain(sequence(**DRAWN))
    # Of one token truncation leaves the same.
    assert is_plain(sequence(temperature=0.0, top_p=0.5, top_k=3, min_p=0.1))
    assert not is_plain(sequence(temperature=0.0, logprobs=0))


def test_draw_when_the_minimum_is_not_reached_then_is_left_to_the_host():
    early = sequence(min_tokens=2)
    assert not is_plain(early)
    early.output_token_ids.append(6)
    assert is_plain(early)
