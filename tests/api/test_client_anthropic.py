"""The anthropic package against the server, as its users would."""

from __future__ import annotations

import pytest

from api_support import ANSWER, CALL, ODD_CALL, wait_until
from clients_support import client_package
from lingflash.core.errors import LingflashError
from lingflash.link.scripted import Behaviour

anthropic = client_package("anthropic")

TOOL = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city"}},
        "required": ["city"],
    },
}
QUESTION = {"role": "user", "content": "What is the weather in Rome?"}


def client_of(base_url, **options):
    base_url = base_url.removesuffix("/v1")
    options = {"api_key": "unused", "max_retries": 0, **options}
    return anthropic.Anthropic(base_url=base_url, **options)


def test_client_when_creating_then_a_typed_message(server):
    message = client_of(server.base_url).messages.create(
        model="toy", max_tokens=100, messages=[{"role": "user", "content": "hi"}], system="s"
    )
    assert message.content[0].text == "fine, thank you"
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 0
    assert message._request_id


def test_client_when_counting_then_typed(server):
    client = client_of(server.base_url)
    counted = client.messages.count_tokens(model="toy", messages=[QUESTION], tools=[TOOL])
    used = client.messages.create(
        model="toy", max_tokens=10, messages=[QUESTION], tools=[TOOL]
    ).usage.input_tokens
    assert counted.input_tokens == used


@pytest.mark.parametrize("first", [CALL, ODD_CALL, "Let me look.\n" + ODD_CALL])
@pytest.mark.parametrize("streamed", [False, True])
def test_client_when_a_tool_is_called_then_the_prompt_continues_what_was_generated(
    make_loop, first, streamed
):
    server, loop = make_loop(first)
    client = client_of(server.base_url)
    fields = {"model": "ling-nano", "max_tokens": 200, "tools": [TOOL]}

    def ask(messages):
        if not streamed:
            return client.messages.create(messages=messages, **fields)
        with client.messages.stream(messages=messages, **fields) as stream:
            return stream.get_final_message()

    message = ask([QUESTION])
    assert message.stop_reason == "tool_use"
    call = message.content[-1]
    assert (call.name, call.input) == ("get_weather", {"city": "Rome"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    history = [
        QUESTION,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    assert ask(history).content[0].text == ANSWER
    loop.check_prefix()
    loop.check_result("sunny")


def test_client_when_streaming_then_its_events_and_text(make_loop):
    server, _ = make_loop("Let me look.\n" + CALL)
    client = client_of(server.base_url)
    fields = {"model": "ling-nano", "max_tokens": 200, "messages": [QUESTION]}
    with client.messages.stream(tools=[TOOL], **fields) as stream:
        assert "".join(stream.text_stream) == "Let me look."
    raw = list(client.messages.create(stream=True, tools=[TOOL], **fields))
    assert raw[0].type == "message_start"
    assert raw[-1].type == "message_stop"
    assert raw[-2].usage.output_tokens > 0


def test_client_when_its_tool_runner_is_used_then_the_loop_ends(make_loop):
    server, loop = make_loop()
    asked = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the weather of a city.

        Args:
            city: Name of the city.
        """
        asked.append(city)
        return "sunny"

    runner = client_of(server.base_url).beta.messages.tool_runner(
        model="ling-nano", max_tokens=200, tools=[get_weather], messages=[QUESTION]
    )
    assert runner.until_done().content[0].text == ANSWER
    assert asked == ["Rome"]
    loop.check_prefix()


def test_client_when_something_is_wrong_then_its_own_exceptions(make_server):
    failure = Behaviour(fail_after_tokens=2, fail_with=LingflashError("boom"))
    server = make_server("a b c d", api_keys=("k",), behaviour=failure)
    fields = {"model": "toy", "max_tokens": 100, "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(anthropic.AuthenticationError):
        client_of(server.base_url).messages.create(**fields)
    client = client_of(server.base_url, api_key="k")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**fields, "model": "nope"})
    with pytest.raises(anthropic.BadRequestError, match="top_k"):
        client.messages.create(**fields, extra_body={"top_k": -5})
    with pytest.raises(anthropic.InternalServerError, match="boom"):
        client.messages.create(**fields)
    with pytest.raises(anthropic.APIStatusError, match="boom"):
        list(client.messages.create(**fields, stream=True))
    bearer = anthropic.Anthropic(base_url=server.base_url, auth_token="k", max_retries=0)
    with pytest.raises(anthropic.InternalServerError):
        bearer.messages.create(**fields)


async def test_client_when_it_leaves_a_stream_then_aborted(make_server):
    server = make_server("x " * 500, behaviour=Behaviour(delay_s=0.01))
    fields = {"model": "toy", "max_tokens": 1000, "messages": [{"role": "user", "content": "x"}]}
    async with (
        anthropic.AsyncAnthropic(base_url=server.base_url, api_key="x") as client,
        client.messages.stream(**fields) as stream,
    ):
        async for _ in stream:
            break
    wait_until(lambda: server.engine.aborted)
    wait_until(lambda: not server.state.in_flight)


def test_client_when_a_tool_is_forced_then_accepted(make_loop):
    server, _ = make_loop()
    message = client_of(server.base_url).messages.create(
        model="ling-nano", max_tokens=100, messages=[QUESTION], tools=[TOOL],
        tool_choice={"type": "any"},
    )  # fmt: skip
    assert message.content[-1].name == "get_weather"


def test_ling_nano_when_a_tool_fits_then_called_and_its_result_answered(ling_nano_url):
    client = client_of(ling_nano_url)
    greedy = {"temperature": 0}
    fields = {"model": "ling-nano", "tools": [TOOL], "max_tokens": 128, "extra_body": greedy}
    first = client.messages.create(messages=[QUESTION], **fields)
    call = first.content[-1]
    assert (first.stop_reason, call.name) == ("tool_use", "get_weather")
    history = [
        QUESTION,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call.id, "content": '{"sky": "sunny"}'}]},
    ]  # fmt: skip
    assert client.messages.create(messages=history, **fields).content
    with client.messages.stream(messages=[QUESTION], **fields) as stream:
        assert stream.get_final_message().content[-1].input == call.input
