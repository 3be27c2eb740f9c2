"""What a request brings is refused where it enters, or can be carried to the engine and served."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest

from lingflash.core.errors import InvalidRequestError
from lingflash.core.types import MAX_COUNT, EngineRequest, SamplingParams

_POWERS = [2**k for k in (7, 8, 15, 16, 24, 31, 32, 53, 63, 64, 100)]
INTEGERS = [0, 1, -1, *(sign * p + d for p in _POWERS for d in (-1, 0, 1) for sign in (1, -1))]
FLOATS = [0.0, -0.0, 1.0, 1e-320, 5e-324, 1e308, -1e308, math.inf, -math.inf, math.nan, 0.5, 1e-9]
OTHERS = [None, True, False, "", "1", "x" * 10_000, [], {}, [1], (), (1,), ("",), ("a",), (None,)]
NESTED = [
    10**5000,
    (2**63,),
    (-1,),
    (10**5000,),
    (True,),
    (0.5,),
    {0: math.nan},
    {0: math.inf},
    {2**63: 1.0},
    {-1: 1.0},
    {"1": 1.0},
    {0: "1"},
    {0: 10**400},
    {0: True},
]
FIELDS = [field.name for field in dataclasses.fields(SamplingParams)]


@pytest.mark.parametrize("name", FIELDS)
def test_sampling_when_a_field_has_any_value_then_refused_by_name_or_carried(name):
    taken, refused = [], []
    for value in [*INTEGERS, *FLOATS, *OTHERS, *NESTED]:
        try:
            taken.append(SamplingParams(**{name: value}))
        except InvalidRequestError as error:
            refused.append(error)
    assert taken
    for error in refused:
        assert error.param == name or (name, error.param) == ("max_tokens", "min_tokens")
        assert error.param in error.message
        assert len(error.message) < 500
    for sampling in taken:
        request = EngineRequest(request_id="r", prompt_token_ids=[1], sampling=sampling)
        decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=EngineRequest)
        assert decoded == request


def test_top_k_when_larger_than_any_vocabulary_then_the_bound_is_named():
    with pytest.raises(InvalidRequestError, match=str(MAX_COUNT)):
        SamplingParams(top_k=2**63 - 1)
