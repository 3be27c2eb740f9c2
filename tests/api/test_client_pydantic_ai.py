"""pydantic-ai against the server: its tool loop, over chat, Responses and Anthropic's messages."""

from __future__ import annotations

import contextlib

import pydantic
import pytest

from api_support import ANSWER, CALL, ODD_CALL
from clients_support import client_package

pydantic_ai = client_package("pydantic_ai")
openai_models = client_package("pydantic_ai.models.openai")
openai_providers = client_package("pydantic_ai.providers.openai")
anthropic_models = client_package("pydantic_ai.models.anthropic")
anthropic_providers = client_package("pydantic_ai.providers.anthropic")

QUESTION = "What is the weather in Rome?"
KINDS = ["chat", "responses", "messages"]


def model_of(base_url, kind):
    if kind == "messages":
        provider = anthropic_providers.AnthropicProvider(
            base_url=base_url.removesuffix("/v1"), api_key="unused"
        )
        return anthropic_models.AnthropicModel("ling-nano", provider=provider)
    provider = openai_providers.OpenAIProvider(base_url=base_url, api_key="unused")
    name = "OpenAIChatModel" if kind == "chat" else "OpenAIResponsesModel"
    return getattr(openai_models, name)("ling-nano", provider=provider)


def agent_of(base_url, kind, asked, *, strict=False, **options):
    agent = pydantic_ai.Agent(model_of(base_url, kind), **options)

    @agent.tool_plain(strict=strict)
    def get_weather(city: str) -> str:
        """Get the weather of a city."""
        asked.append(city)
        return "sunny"

    return agent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [CALL, ODD_CALL, "Let me look.\n" + ODD_CALL])
async def test_agent_when_run_then_the_loop_ends_and_the_prompt_continues(make_loop, kind, first):
    server, loop = make_loop(first)
    asked = []
    result = await agent_of(server.base_url + "/v1", kind, asked).run(QUESTION)
    assert result.output == ANSWER
    assert asked == ["Rome"]
    loop.check_prefix()
    loop.check_result("sunny")


@pytest.mark.parametrize("kind", KINDS)
async def test_agent_when_streamed_then_the_same(make_loop, kind):
    server, loop = make_loop()
    asked = []
    agent = agent_of(server.base_url + "/v1", kind, asked)
    async with agent.run_stream(QUESTION) as result:
        assert await result.get_output() == ANSWER
    assert asked == ["Rome"]
    loop.check_prefix()


@pytest.mark.parametrize("kind", ["chat", "responses"])
async def test_agent_when_its_tools_are_strict_as_by_default_then_the_same(make_loop, kind):
    server, _ = make_loop()
    agent = agent_of(server.base_url + "/v1", kind, [], strict=None)
    assert (await agent.run(QUESTION)).output == ANSWER


class City(pydantic.BaseModel):
    """A city."""

    city: str


async def test_output_when_it_has_a_type_then_a_model(make_loop):
    call = '<tool_call>\n{"name": "final_result", "arguments": {"city": "Rome"}}\n</tool_call>'
    server, _ = make_loop(call)
    agent = pydantic_ai.Agent(model_of(server.base_url + "/v1", "chat"), output_type=City)
    assert (await agent.run("where?")).output == City(city="Rome")


@pytest.mark.parametrize("kind", KINDS)
async def test_ling_nano_when_run_then_the_tool_is_called(ling_nano_url, kind):
    asked = []
    settings = {"temperature": 0, "max_tokens": 128}
    agent = agent_of(ling_nano_url, kind, asked, model_settings=settings)
    limits = pydantic_ai.UsageLimits(request_limit=4)
    # A small model may call again and again.
    with contextlib.suppress(pydantic_ai.UsageLimitExceeded, pydantic_ai.UnexpectedModelBehavior):
        await agent.run(QUESTION, usage_limits=limits)
    assert asked
    assert all(isinstance(city, str) for city in asked)
