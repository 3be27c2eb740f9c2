"""A request's parts and its session, found in any body of any dialect."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingflash.core.errors import InvalidRequestError
from lingflash.gateway.accounts.parts import parts_of, pieces_of, session_id_of

HELLO = {"role": "user", "content": "Hello"}
BODIES = {
    "chat": {"model": "m", "messages": [HELLO]},
    "completions": {"model": "m", "prompt": "Hello"},
    "responses": {"model": "m", "input": "Hello"},
    "messages": {"model": "m", "messages": [HELLO]},
}


@pytest.mark.parametrize("dialect", BODIES)
def test_parts_when_one_message_then_its_size_and_no_text(dialect):
    (only,) = parts_of(pieces_of(dialect, BODIES[dialect]), "s")
    assert (only.role, only.num_bytes, only.name) == ("user", 5, None)
    assert "Hello" not in repr(only)
    assert only.digest != parts_of(pieces_of(dialect, BODIES[dialect]), "other")[0].digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello", [{"type": "text", "text": "Hello"}]),
        (
            [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}],
            [{"type": "text", "text": "Hello"}],
        ),
        ([{"type": "text", "text": "a"}, "b"], [{"text": "a", "type": "text"}, "b"]),
    ],
    ids=["a text as a list", "a mark that moves", "another order of fields"],
)  # fmt: skip
def test_parts_when_client_writes_the_same_otherwise_then_same_digest(one, other):
    digests = [
        parts_of(pieces_of("messages", {"messages": [{"role": "user", "content": each}]}), "s")[
            0
        ].digest
        for each in (one, other)
    ]
    assert digests[0] == digests[1]


def test_parts_when_user_message_has_two_results_and_text_then_three_parts():
    uses = [{"type": "tool_use", "id": f"t{n}", "name": f"tool{n}"} for n in range(2)]
    results = [{"type": "tool_result", "tool_use_id": f"t{n}", "content": "xy"} for n in range(2)]
    body = {
        "tools": [{"name": "tool0"}],
        "messages": [
            HELLO,
            {"role": "assistant", "content": uses},
            {"role": "user", "content": [*results, {"type": "text", "text": "go on"}]},
        ],
    }
    assert [
        (each.role, each.name, each.num_bytes)
        for each in parts_of(pieces_of("messages", body), "s")
    ] == [
        ("tools", None, 5),
        ("user", None, 5),
        ("assistant", None, 10),
        ("tool", "tool0", 2),
        ("tool", "tool1", 2),
        ("user", None, 5),
    ]


def test_parts_when_the_server_has_the_history_then_none():
    assert (
        parts_of(pieces_of("responses", {"previous_response_id": "resp_1", "input": "x"}), "s")
        == ()
    )


@pytest.mark.parametrize("dialect", BODIES)
def test_session_when_client_says_nothing_then_by_content(dialect):
    body = BODIES[dialect]
    id = session_id_of(dialect, body, {})
    assert id.startswith("auto-")
    assert id == session_id_of(dialect, {**body, "model": "m:nitro", "temperature": 1}, {})
    for change in ({"model": "n"}, {"tools": [{"name": "t"}]}):
        assert id != session_id_of(dialect, {**body, **change}, {})


def test_session_when_conversation_goes_on_then_the_same():
    later = [HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]
    first = session_id_of("chat", BODIES["chat"], {})
    assert first == session_id_of("chat", {"model": "m", "messages": later}, {})


def test_session_when_client_names_it_then_body_before_header_before_cache_key():
    body, headers = {**BODIES["chat"], "prompt_cache_key": "c"}, {"x-session-id": "h"}
    assert session_id_of("chat", {**body, "session_id": "b"}, headers) == "b"
    assert session_id_of("chat", body, headers) == "h"
    assert session_id_of("chat", body, {}) == "c"
    with pytest.raises(InvalidRequestError, match=r"session_id has 257 characters; allowed: 256"):
        session_id_of("chat", {**body, "session_id": "b" * 257}, {})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_NAMED = st.sampled_from(
    ["messages", "input", "prompt", "tools", "system", "instructions", "model", "role", "content",
     "tool_calls", "type", "call_id", "session_id"]
)  # fmt: skip
_BODY = st.dictionaries(_NAMED, _JSON | st.lists(st.dictionaries(_NAMED, _JSON), max_size=3))


@given(st.sampled_from(sorted(BODIES)), _BODY, st.text(max_size=10))
def test_parts_when_body_is_anything_then_no_failure(dialect, body, session_id):
    with contextlib.suppress(InvalidRequestError):
        session_id_of(dialect, body, {})
    assert all(each.num_bytes >= 0 for each in parts_of(pieces_of(dialect, body), session_id))
