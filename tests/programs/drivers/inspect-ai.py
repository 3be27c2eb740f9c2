from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool


@tool
def get_weather():
    async def execute(city: str, day: str = "today"):
        """Get the weather forecast for a city

        Args:
            city: name of the city
            day: today or tomorrow
        """
        return '{"forecast": "light rain", "high": 17}'

    return execute


@task
def weather():
    question = "What will the weather be like in Lisbon tomorrow?"
    return Task(
        dataset=[Sample(input=question, target="light rain")],
        solver=[use_tools(get_weather()), generate()],
        scorer=includes(),
    )
