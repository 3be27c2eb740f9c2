"""Bodies that would take much more than their bytes are told from those that only look so."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingflash.httpd.json_shape import Shape, exceeded

LIMITS = Shape(depth=128, containers=250_000, values=4_000_000, strings=1_000_000)


def depth_of(value):
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = isinstance(value, dict | list)
    return own + max(map(depth_of, inside), default=0)


def containers_of(value):
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, dict | list) + sum(map(containers_of, inside))


values = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a"\\[]{},\n')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('a"\\[{')), inner),
    max_leaves=60,
)


@given(values, st.integers(0, 6), st.integers(0, 12))
def test_exceeded_when_any_value_then_exactly_depth_and_number_decide(value, depth, containers):
    limits = Shape(depth=depth, containers=containers, values=10**6, strings=10**6)
    is_over = depth_of(value) > depth or containers_of(value) > containers
    found = exceeded(json.dumps(value).encode(), limits) is not None
    assert found == is_over


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"[" * 129 + b"]" * 129, "128 levels"),
        (b'{"a":' * 1_000_000, "objects and arrays"),
        (b'{"prompt":[' + b"[]," * 11_000_000 + b"[]]}", "values"),
        (b'{"prompt":[' + b"[]," * 1_000_000 + b"[]]}", "objects and arrays"),
        (b'{"prompt":[' + (b"[" * 100 + b"]" * 100 + b",") * 160_000 + b"[]]}", "objects"),
        (b'{"messages":[' + b"{}," * 11_000_000 + b"{}]}", "values"),
        (b"[" + b"1," * 16_000_000 + b"1]", "values"),
        (b"[" + b'"",' * 11_000_000 + b'""]', "strings"),
        (b"[" + b'"a":{},' * 4_000_000 + b'""]', "strings"),
        (b"[" + b'"a":{},' * 400_000 + b'""]', "objects"),
    ],
)
def test_exceeded_when_a_body_is_hostile_then_told_from_its_bytes(body, what):
    assert what in exceeded(body, LIMITS)


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "if (a[0]) { b[1] = '\"'; }\n" * 400_000},
        {"prompt": [[7] * 2000 for _ in range(1024)]},
        {"messages": [{"role": "user", "content": "hello"}] * 20_000},
        {"a": "[" * 1000, "b": "{" * 1000 + '"'},
    ],
)
def test_exceeded_when_a_body_is_large_but_honest_then_none(value):
    assert exceeded(json.dumps(value).encode(), LIMITS) is None
