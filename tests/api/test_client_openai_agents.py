"""The OpenAI Agents SDK against the server: its tool loop, over chat and over Responses."""

from __future__ import annotations

import openai
import pytest

from api_support import ANSWER, CALL, ODD_CALL
from clients_support import client_package

agents = client_package("agents")
QUESTION = "What is the weather in Rome?"


@pytest.fixture(autouse=True)
def _no_tracing():
    agents.set_tracing_disabled(True)  # it would send traces to OpenAI


def agent_of(base_url, kind, asked, *, strict=False, **settings):
    @agents.function_tool(strict_mode=strict)
    def get_weather(city: str) -> str:
        """Get the weather of a city.

        Args:
            city: Name of the city.
        """
        asked.append(city)
        return "sunny"

    client = openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0)
    model = getattr(agents, kind)(model="ling-nano", openai_client=client)
    return agents.Agent(
        name="weather",
        model=model,
        tools=[get_weather],
        model_settings=agents.ModelSettings(**settings),
    )


KINDS = ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [CALL, ODD_CALL, "Let me look.\n" + ODD_CALL])
async def test_agent_when_run_then_the_loop_ends_and_the_prompt_continues(make_loop, kind, first):
    server, loop = make_loop(first)
    asked = []
    agent = agent_of(server.base_url + "/v1", kind, asked)
    result = await agents.Runner.run(agent, QUESTION)
    assert result.final_output == ANSWER
    assert asked == ["Rome"]
    loop.check_prefix()
    loop.check_result("sunny")


@pytest.mark.parametrize("kind", KINDS)
async def test_agent_when_streamed_then_the_same(make_loop, kind):
    server, loop = make_loop("Let me look.\n" + CALL)
    asked = []
    result = agents.Runner.run_streamed(agent_of(server.base_url + "/v1", kind, asked), QUESTION)
    kinds = [event.type async for event in result.stream_events()]
    assert "raw_response_event" in kinds
    assert result.final_output == ANSWER
    assert asked == ["Rome"]
    loop.check_prefix()


@pytest.mark.parametrize("kind", KINDS)
async def test_agent_when_its_tools_are_strict_as_by_default_then_the_same(make_loop, kind):
    server, _ = make_loop()
    asked = []
    agent = agent_of(server.base_url + "/v1", kind, asked, strict=True)
    assert (await agents.Runner.run(agent, QUESTION)).final_output == ANSWER


@pytest.mark.parametrize("kind", KINDS)
async def test_ling_nano_when_run_then_the_tool_is_called(ling_nano_url, kind):
    asked = []
    agent = agent_of(ling_nano_url, kind, asked, temperature=0, max_tokens=128)
    # A small model may call again; the loop must end in order either way.
    try:
        result = await agents.Runner.run(agent, QUESTION, max_turns=4)
    except agents.MaxTurnsExceeded:
        pass
    else:
        assert isinstance(result.final_output, str)
    assert asked
    assert all(isinstance(city, str) for city in asked)
