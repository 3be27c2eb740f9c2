"""A sequence's events become text, with stop strings, minimum length and a finish reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingflash.core.types import SamplingParams, TokenEvent, TokenLogprob
from lingflash.text.output import SequenceOutput
from toy_text import toy_tokenizer

TOKENIZER = toy_tokenizer()
END = TOKENIZER.token_id("<|role_end|>")


def event(token_ids, finish_reason=None, stop_token_id=None, logprobs=None):
    return TokenEvent(
        request_id="r",
        token_ids=token_ids,
        finish_reason=finish_reason,
        stop_token_id=stop_token_id,
        logprobs=logprobs,
    )


def collect(output, events):
    deltas = [output.push(e) for e in events]
    return "".join(d.text for d in deltas), deltas


@given(st.text(max_size=30), st.data())
def test_push_when_events_carry_any_number_of_tokens_then_same_text_and_count(text, data):
    token_ids = TOKENIZER.encode(text)
    stop = data.draw(st.lists(st.text(min_size=1, max_size=3), max_size=2))
    sampling = SamplingParams(stop=tuple(stop))
    one = SequenceOutput(TOKENIZER, sampling)
    by_one, _ = collect(one, [*(event([i]) for i in token_ids), event([], "length")])
    many = SequenceOutput(TOKENIZER, sampling)
    at_once, _ = collect(many, [event(token_ids, "length")])
    assert by_one == at_once
    assert one.num_generated_tokens == many.num_generated_tokens
    assert one.finish_reason == many.finish_reason
    assert not any(s in by_one for s in stop)


def test_push_when_stop_string_is_completed_then_ends_and_later_events_add_nothing():
    token_ids = TOKENIZER.encode("fine END more")
    output = SequenceOutput(TOKENIZER, SamplingParams(stop=("END",)))
    logprobs = [TokenLogprob(i, -1.0, 1, []) for i in token_ids]
    delta = output.push(event(token_ids, logprobs=logprobs))
    assert delta.text == "fine "
    assert delta.finish_reason == "stop"
    assert delta.stop_reason == "END"
    assert delta.stopped_by_string
    assert len(delta.token_ids) == len(delta.logprobs) == output.num_generated_tokens
    assert len(delta.token_ids) < len(token_ids)
    late = output.push(event([65], "length"))
    assert late.text == ""
    assert late.finish_reason is None
    assert output.finish_reason == "stop"


def test_push_when_min_tokens_is_not_reached_then_stop_strings_do_not_count():
    token_ids = TOKENIZER.encode("a!b!")
    output = SequenceOutput(TOKENIZER, SamplingParams(stop=("!",), min_tokens=len(token_ids)))
    text, deltas = collect(output, [event([i]) for i in token_ids])
    assert text == "a!b"
    assert deltas[-1].finish_reason == "stop"


def test_push_when_a_stop_token_ends_it_then_counted_named_and_not_shown():
    output = SequenceOutput(TOKENIZER, SamplingParams(stop=("zz",)))
    text, deltas = collect(output, [event(TOKENIZER.encode("az")), event([], "stop", END)])
    assert text == "az"
    assert deltas[-1].stop_reason == END
    assert not deltas[-1].stopped_by_string
    assert output.num_generated_tokens == len(TOKENIZER.encode("az")) + 1


@pytest.mark.parametrize(("skip", "expected"), [(True, "ab"), (False, "a<|role_end|>b")])
def test_push_when_special_tokens_are_generated_then_hidden_unless_asked(skip, expected):
    output = SequenceOutput(TOKENIZER, SamplingParams(), skip_special_tokens=skip)
    text, _ = collect(output, [event(TOKENIZER.encode("a<|role_end|>b"), "length")])
    assert text == expected


def test_push_when_there_is_no_tokenizer_then_only_token_ids():
    output = SequenceOutput(None, SamplingParams())
    delta = output.push(event([1, 2], "length"))
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("", [1, 2], "length")
    assert output.num_generated_tokens == 2


def test_push_when_it_ends_inside_a_character_then_replacement_character_at_the_end():
    output = SequenceOutput(TOKENIZER, SamplingParams(stop=("x",)))
    text, _ = collect(output, [event(TOKENIZER.encode("🦊")[:1], "length")])
    assert text == "\ufffd"
