# ruff: noqa: F821 (the settings that take the next line's place define names)
# $settings
from smolagents import ToolCallingAgent, tool


@tool
def get_weather(city: str, day: str = "today") -> str:
    """Get the weather forecast for a city

    Args:
        city: name of the city
        day: today or tomorrow
    """
    return '{"forecast": "light rain", "high": 17}'


for streamed in (False, True):
    agent = ToolCallingAgent(tools=[get_weather], model=model, stream_outputs=streamed, max_steps=4)
    answer = agent.run(f"What will the weather be like in Lisbon tomorrow? (streamed: {streamed})")
    print(f"\nstreamed {streamed}: {answer}")
