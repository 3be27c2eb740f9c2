# ruff: noqa: F821 (the settings that take the next line's place define names)
# $settings
import asyncio
import sys

from autogen_agentchat.agents import AssistantAgent
from pydantic import BaseModel


class Animal(BaseModel):
    kind: str
    legs: int


async def get_weather(city: str, day: str = "today") -> str:
    """Get the weather forecast for a city"""
    return '{"forecast": "light rain", "high": 17}'


async def main():
    for how in ("at once", "streamed"):
        extra = f" ({how})" if len(sys.argv) < 2 else sys.argv[1]
        agent = AssistantAgent(
            "weather",
            model_client=client,
            tools=[get_weather],
            system_message=None,
            max_tool_iterations=4,
            reflect_on_tool_use=True,
            model_client_stream=how == "streamed",
        )
        done = await agent.run(task=f"What will the weather be like in Lisbon tomorrow?{extra}")
        print(f"{how}: {done.messages[-1].content}")
    if len(sys.argv) < 2:
        namer = AssistantAgent("namer", model_client=client, output_content_type=Animal)
        done = await namer.run(task="Name an animal.")
        print(f"object: {done.messages[-1].content.model_dump_json()}")
    await client.close()


asyncio.run(main())
