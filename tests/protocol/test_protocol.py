"""Request fields, chunks, logs and environment, without a server."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingflash.cli.options import check_environment
from lingflash.core.errors import ConfigError, InvalidRequestError
from lingflash.core.log import KeyValueFormatter, log_event
from lingflash.protocol.chat import ChatCompletionRequest
from lingflash.protocol.completions import CompletionRequest, split_prompts
from lingflash.protocol.fields import INERT, REFUSED, parse_request
from lingflash.protocol.sse import ChunkEncoder, sse_event


def encoder(kind="chat.completion.chunk", include_usage=False):
    return ChunkEncoder(
        kind,
        answer_id="id",
        created=1,
        model='m"\\',
        num_choices=2,
        include_usage=include_usage,
    )


@given(st.text(), st.integers(0, 1), st.booleans())
def test_text_chunk_when_any_text_then_equals_the_whole_encoding(text, index, include_usage):
    chat = encoder(include_usage=include_usage)
    choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    assert chat.text(index, text) == chat.choice(choice)
    plain = encoder("text_completion", include_usage)
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
    assert plain.text(index, text) == plain.choice(choice)
    payload = chat.text(index, text).removeprefix(b"data: ").removesuffix(b"\n\n")
    assert b"\n" not in payload  # a line break would end the event
    assert json.loads(payload)["choices"][0]["delta"]["content"] == text


def refusal_of(work):
    """The InvalidRequestError that something raises, or None; any other error fails the test."""
    try:
        work()
    except InvalidRequestError as error:
        return error
    return None


def test_sse_event_then_one_line():
    assert sse_event({"a": "b\nc"}) == b'data: {"a":"b\\nc"}\n\n'


def test_field_table_then_no_field_is_in_two_places():
    for model in (ChatCompletionRequest, CompletionRequest):
        supported = set(model.model_fields)
        assert not supported & set(INERT)
        # `prompt_logprobs` and the like are refused where they are not declared.
        assert not supported & set(REFUSED)
    assert not set(INERT) & set(REFUSED)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_field_when_null_or_harmless_then_accepted_else_named(name):
    body = {"messages": [{"role": "user", "content": "x"}]}
    for value in (None, *REFUSED[name].harmless):
        parse_request(ChatCompletionRequest, {**body, name: value})
    with pytest.raises(InvalidRequestError, match=name) as caught:
        parse_request(ChatCompletionRequest, {**body, name: {"surely": "not harmless"}})
    assert caught.value.param == name


def test_refused_field_when_a_number_looks_like_a_flag_then_refused():
    body = {"messages": [], "parallel_tool_calls": 1}
    with pytest.raises(InvalidRequestError):
        parse_request(ChatCompletionRequest, body)


@pytest.mark.parametrize("name", sorted(INERT))
def test_inert_field_then_accepted_with_any_value(name):
    body = {"messages": [{"role": "user", "content": "x"}], name: {"any": 1}}
    parse_request(ChatCompletionRequest, body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
field_names = st.sampled_from(
    [*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields, *REFUSED, *INERT]
)


@given(st.dictionaries(field_names | st.text(max_size=5), json_values, max_size=6))
def test_parse_request_when_body_is_arbitrary_then_parsed_or_refused_with_a_param(body):
    for model in (ChatCompletionRequest, CompletionRequest):
        error = refusal_of(lambda model=model: parse_request(model, body))
        assert error is None or (error.param is not None and error.message)


@given(json_values)
def test_split_prompts_when_value_is_arbitrary_then_prompts_or_refused(value):
    error = refusal_of(lambda: split_prompts(value))
    if error is not None:
        assert error.param == "prompt"
        return
    prompts = split_prompts(value)
    assert prompts
    for prompt in prompts:
        assert isinstance(prompt, str) or (prompt and all(type(i) is int for i in prompt))


def test_check_environment_when_all_are_known_then_passes():
    check_environment({"LINGFLASH_PORT": "1", "HOME": "/", "OTHER": ""})
    with pytest.raises(ConfigError, match="LINGFLASH_X is not known"):
        check_environment({"LINGFLASH_X": "1"})


def test_log_event_when_a_value_holds_a_newline_then_the_line_is_not_forged():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(KeyValueFormatter())
    logger = logging.getLogger("test_log_event")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel("INFO")
    log_event(logger, "e", {"a": "x\nlevel=error", "b": 1.5, "c": None, "d": True, "e": ""})
    log_event(logger, "hidden", {}, level=logging.DEBUG)
    logger.warning("from %s", "elsewhere")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith('level=info event=e a="x\\nlevel=error" b=1.5 d=true e=""')
    assert lines[1].endswith('event=log logger=test_log_event message="from elsewhere"')
