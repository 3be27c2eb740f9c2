"""The openai package's Responses API against the server, as its users would."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest

from api_support import ANSWER, CALL, ODD_CALL
from lingflash.core.errors import LingflashError
from lingflash.link.scripted import Behaviour

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city"}},
        "required": ["city"],
    },
    "strict": False,
}
QUESTION = "What is the weather in Rome?"


def client_of(base_url, **options):
    return openai.OpenAI(base_url=base_url, **{"api_key": "unused", "max_retries": 0, **options})


@pytest.fixture
def client(server):
    with client_of(server.base_url + "/v1") as opened:
        yield opened


def test_client_when_creating_then_a_typed_response(client):
    response = client.responses.create(model="toy", input="hi", metadata={"a": "b"})
    assert response.output_text == "fine, thank you"
    assert response.status == "completed"
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    again = client.responses.retrieve(response.id)
    assert again.output_text == response.output_text
    assert again.metadata == {"a": "b"}
    items = client.responses.input_items.list(response.id, limit=1)
    assert [item.content[0].text for item in items] == ["hi"]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


@pytest.mark.parametrize("first", [CALL, ODD_CALL, "Let me look.\n" + ODD_CALL])
@pytest.mark.parametrize("stored", [False, True])
def test_client_when_a_tool_is_called_then_the_prompt_continues_what_was_generated(
    make_loop, first, stored
):
    server, loop = make_loop(first)
    client = client_of(server.base_url + "/v1")
    fields = {"model": "ling-nano", "tools": [TOOL]}
    given = [{"role": "user", "content": QUESTION}]
    response = client.responses.create(input=given, **fields)
    call = response.output[-1]
    assert (call.type, json.loads(call.arguments)) == ("function_call", {"city": "Rome"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    if stored:
        final = client.responses.create(input=[result], previous_response_id=response.id, **fields)
    else:
        final = client.responses.create(
            input=[*given, *response.output, result], store=False, **fields
        )
    assert final.output_text == ANSWER
    loop.check_prefix()
    loop.check_result("sunny")


def test_client_when_streaming_with_its_helper_then_accumulated(make_loop):
    server, _ = make_loop("Let me look.\n" + CALL)
    client = client_of(server.base_url + "/v1")
    with client.responses.stream(model="ling-nano", input=QUESTION, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert final.output_text == "Let me look."
    assert final.output[-1].name == "get_weather"
    with client.responses.stream(model="ling-nano", input="hi", max_output_tokens=1) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


def test_client_when_the_engine_fails_then_its_exceptions_and_events(make_server):
    failure = Behaviour(fail_after_tokens=2, fail_with=LingflashError("boom"))
    server = make_server("a b c d", behaviour=failure)
    client = client_of(server.base_url + "/v1")
    with pytest.raises(openai.InternalServerError, match="boom"):
        client.responses.create(model="toy", input="hi")
    events = list(client.responses.create(model="toy", input="hi", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "boom"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="toy", input="hi", background=True)
    assert caught.value.param == "background"


async def test_client_when_it_cancels_then_ended(make_server):
    server = make_server("x " * 2000, behaviour=Behaviour(delay_s=0.005))
    async with openai.AsyncOpenAI(base_url=server.base_url + "/v1", api_key="x") as client:
        stream = await client.responses.create(model="toy", input="hi", stream=True)
        response_id = None
        async for event in stream:
            if response_id is None:
                response_id = event.response.id
                assert (await client.responses.cancel(response_id)).status == "cancelled"
        assert event.response.status == "cancelled"


class City(pydantic.BaseModel):
    city: str


def test_client_when_parsing_then_a_model(make_server):
    server = make_server('{"city": "Rome"}')
    client = client_of(server.base_url + "/v1")
    parsed = client.responses.parse(model="toy", input="where?", text_format=City)
    assert parsed.output_parsed == City(city="Rome")
    chat = client.chat.completions.parse(
        model="toy", messages=[{"role": "user", "content": "where?"}], response_format=City
    )
    assert chat.choices[0].message.parsed == City(city="Rome")


def test_ling_nano_when_a_tool_fits_then_called_and_its_result_answered(ling_nano_url):
    client = client_of(ling_nano_url)
    fields = {"model": "ling-nano", "tools": [TOOL], "temperature": 0, "max_output_tokens": 128}
    first = client.responses.create(input=QUESTION, **fields)
    call = first.output[-1]
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert isinstance(json.loads(call.arguments), dict)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "sunny"}'}
    second = client.responses.create(input=[result], previous_response_id=first.id, **fields)
    assert second.output
    with client.responses.stream(input=QUESTION, **fields) as stream:
        streamed = stream.get_final_response()
    assert streamed.output[-1].arguments == call.arguments
