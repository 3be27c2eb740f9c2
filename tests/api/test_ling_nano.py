"""The bundled model behind `ling serve`, over real HTTP with the openai client."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

import httpx
import openai
import pydantic
import pytest

from api_support import serve_ling_nano

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
QUESTION = [{"role": "user", "content": "What is the weather in Rome?"}]


@pytest.fixture(scope="module")
def base_url():
    with serve_ling_nano() as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0) as opened:
        yield opened


def test_chat_when_greedy_then_streamed_and_whole_answers_are_equal(client):
    fields = {"model": "ling-nano", "messages": QUESTION, "temperature": 0, "max_tokens": 64}
    whole = client.chat.completions.create(**fields).choices[0].message.content
    chunks = client.chat.completions.create(**fields, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert whole
    assert "\ufffd" not in whole


class Weather(pydantic.BaseModel):
    """What is asked for."""

    # ling-nano does not see the schema, so that free text might go on to the limit.
    city: Annotated[str, pydantic.Field(max_length=16)]
    days: int
    unit: Literal["celsius", "fahrenheit"] | None


def test_parse_when_a_pydantic_model_is_given_then_an_instance(client):
    completion = client.chat.completions.parse(
        model="ling-nano", messages=QUESTION, response_format=Weather, seed=1, max_tokens=200
    )
    assert isinstance(completion.choices[0].message.parsed, Weather)


@pytest.mark.parametrize("stream", [False, True])
def test_chat_when_a_call_is_required_then_one_comes_even_after_a_greeting(client, stream):
    fields = {
        "model": "ling-nano",
        "messages": [{"role": "user", "content": "Hello!"}],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "parallel_tool_calls": False,
        "temperature": 1.0,
        "max_tokens": 200,
        "seed": 5,
    }
    if stream:
        with client.chat.completions.stream(**fields) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_chat_when_a_form_is_asked_for_then_every_choice_has_it(client):
    extra = {"structured_outputs": {"regex": "(yes|no), [0-9]{1,2}"}}
    completion = client.chat.completions.create(
        model="ling-nano", messages=QUESTION, n=4, max_tokens=50, extra_body=extra, logprobs=True
    )
    for choice in completion.choices:
        assert re.fullmatch("(yes|no), [0-9]{1,2}", choice.message.content)
        assert choice.finish_reason == "stop"
    scored = client.completions.create(
        model="ling-nano", prompt="Is it so?", extra_body={"structured_outputs": {"choice": ["no"]}}
    )
    assert scored.choices[0].text == "no"


def test_chat_when_a_grammar_cannot_be_compiled_then_400_and_others_go_on(client):
    with pytest.raises(openai.BadRequestError, match="nothing") as caught:
        client.chat.completions.create(
            model="ling-nano",
            messages=QUESTION,
            extra_body={"structured_outputs": {"grammar": "start: nothing"}},
        )
    assert caught.value.param == "structured_outputs.grammar"
    # A special token that the model lacks is seen by the engine only.
    with pytest.raises(openai.BadRequestError, match="nowhere"):
        client.chat.completions.create(
            model="ling-nano",
            messages=QUESTION,
            extra_body={"structured_outputs": {"grammar": "start: <nowhere>"}},
        )


def test_chat_when_a_tool_fits_then_a_well_formed_call_and_an_answer_to_its_result(client):
    fields = {"model": "ling-nano", "tools": [TOOL], "temperature": 0, "max_tokens": 128}
    first = client.chat.completions.create(messages=QUESTION, **fields).choices[0]
    assert first.finish_reason == "tool_calls"
    call = first.message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments), dict)
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "sunny"}'}
    second = client.chat.completions.create(messages=[*QUESTION, first.message, result], **fields)
    assert second.choices[0].message.content or second.choices[0].message.tool_calls


def test_completion_when_the_answer_is_scored_as_a_prompt_then_same_logprobs(client):
    prompt = "<role>HUMAN</role>Hello<|role_end|><role>ASSISTANT</role>"
    answer = client.completions.create(
        model="ling-nano", prompt=prompt, max_tokens=8, temperature=0, logprobs=0,
        extra_body={"return_token_ids": True, "ignore_eos": True, "skip_special_tokens": False},
    ).choices[0]  # fmt: skip
    assert len(answer.token_ids) == 8
    both = [*answer.prompt_token_ids, *answer.token_ids]
    scored = client.completions.create(
        model="ling-nano", prompt=both, max_tokens=0, echo=True, logprobs=1
    ).choices[0]
    tail = scored.logprobs.token_logprobs[-8:]
    assert tail == pytest.approx(answer.logprobs.token_logprobs, abs=1e-3)
    # Greedy: the token that was taken is the likeliest of its position.
    for token, top in zip(
        scored.logprobs.tokens[-8:], scored.logprobs.top_logprobs[-8:], strict=True
    ):
        assert max(top, key=top.get) == token


def test_chat_when_seeded_then_repeatable_and_choices_differ(client):
    fields = {"model": "ling-nano", "messages": QUESTION, "n": 4, "max_tokens": 24}
    hot = {**fields, "temperature": 2.0, "seed": 7}
    first = [c.message.content for c in client.chat.completions.create(**hot).choices]
    again = [c.message.content for c in client.chat.completions.create(**hot).choices]
    assert first == again
    assert len(set(first)) > 1


def test_metrics_when_all_is_done_then_nothing_is_held(base_url):
    text = httpx.get(base_url.removesuffix("/v1") + "/metrics").text
    assert "lingflash_num_requests_running 0.0" in text
    assert "lingflash_num_requests_waiting 0.0" in text
