# ruff: noqa: F821 (the settings that take the next line's place define names)
# $settings
import sys

from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool

weather = Tool(
    name="get_weather",
    description="Get the weather forecast for a city",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "name of the city"},
            "day": {"type": "string", "enum": ["today", "tomorrow"]},
        },
        "required": ["city"],
    },
    function=lambda city, day="today": '{"forecast": "light rain", "high": 17}',
)
generator.generation_kwargs["temperature"] = 0
for how in ("at once", "streamed"):
    extra = f" ({how})" if len(sys.argv) < 2 else sys.argv[1]
    agent = Agent(
        chat_generator=generator,
        tools=[weather],
        streaming_callback=(lambda chunk: None) if how == "streamed" else None,
    )
    question = f"What will the weather be like in Lisbon tomorrow?{extra}"
    done = agent.run(messages=[ChatMessage.from_user(question)])
    print(f"{how}: {done['messages'][-1].text}")
