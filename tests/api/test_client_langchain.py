"""langchain-openai against the server: chat, bound tools, an agent, structured output."""

from __future__ import annotations

import pydantic
import pytest

from api_support import ANSWER, CALL, ODD_CALL
from clients_support import client_package

langchain_openai = client_package("langchain_openai")
langchain_agents = client_package("langchain.agents")
messages = client_package("langchain_core.messages")

QUESTION = "What is the weather in Rome?"


def model_of(base_url, **options):
    return langchain_openai.ChatOpenAI(
        base_url=base_url, api_key="unused", model="ling-nano", max_retries=0, **options
    )


def weather_tool(asked):
    def get_weather(city: str) -> str:
        """Get the weather of a city."""
        asked.append(city)
        return "sunny"

    return get_weather


@pytest.mark.parametrize("responses", [False, True])
def test_model_when_invoked_and_streamed_then_text_and_usage(make_loop, responses):
    server, _ = make_loop("Hello there, friend.")
    model = model_of(server.base_url + "/v1", use_responses_api=responses, stream_usage=True)
    answer = model.invoke("hi")
    assert answer.text == "Hello there, friend."
    chunks = list(model.stream("hi"))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.text == answer.text
    assert total.usage_metadata == answer.usage_metadata
    assert answer.usage_metadata["output_tokens"] > 0


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("first", [CALL, ODD_CALL, "Let me look.\n" + ODD_CALL])
def test_tools_when_bound_then_the_prompt_continues_what_was_generated(make_loop, responses, first):
    server, loop = make_loop(first)
    model = model_of(server.base_url + "/v1", use_responses_api=responses)
    bound = model.bind_tools([weather_tool([])])
    history = [messages.HumanMessage(QUESTION)]
    answer = bound.invoke(history)
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [
        ("get_weather", {"city": "Rome"})
    ]
    result = messages.ToolMessage("sunny", tool_call_id=answer.tool_calls[0]["id"])
    assert bound.invoke([*history, answer, result]).text == ANSWER
    loop.check_prefix()
    loop.check_result("sunny")


@pytest.mark.parametrize("responses", [False, True])
async def test_agent_when_run_then_the_loop_ends(make_loop, responses):
    server, loop = make_loop()
    asked = []
    model = model_of(server.base_url + "/v1", use_responses_api=responses)
    agent = langchain_agents.create_agent(model, [weather_tool(asked)], system_prompt="Help.")
    state = await agent.ainvoke({"messages": [("user", QUESTION)]})
    assert state["messages"][-1].text == ANSWER
    assert asked == ["Rome"]
    loop.check_prefix()


class City(pydantic.BaseModel):
    """A city."""

    city: str


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_when_asked_for_then_a_model(make_loop, method):
    call = '<tool_call>\n{"name": "City", "arguments": {"city": "Rome"}}\n</tool_call>'
    server, _ = make_loop(call if method == "function_calling" else '{"city": "Rome"}')
    model = model_of(server.base_url + "/v1").with_structured_output(City, method=method)
    assert model.invoke("where?") == City(city="Rome")


@pytest.mark.parametrize("responses", [False, True])
def test_ling_nano_when_a_tool_fits_then_called_and_its_result_answered(ling_nano_url, responses):
    model = model_of(ling_nano_url, temperature=0, max_tokens=128, use_responses_api=responses)
    bound = model.bind_tools([weather_tool([])])
    history = [messages.HumanMessage(QUESTION)]
    answer = bound.invoke(history)
    assert answer.tool_calls[0]["name"] == "get_weather"
    result = messages.ToolMessage("sunny", tool_call_id=answer.tool_calls[0]["id"])
    final = bound.invoke([*history, answer, result])
    assert final.text or final.tool_calls
