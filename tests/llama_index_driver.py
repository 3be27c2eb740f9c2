"""What a user of LlamaIndex would write, run in an environment of its own.

LlamaIndex needs openai 2, the other clients openai 3. Prints what happened as JSON.

python tests/llama_index_driver.py BASE_URL TEMPERATURE
"""

from __future__ import annotations

import asyncio
import json
import sys

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


async def _run(base_url: str, temperature: float) -> None:
    llm = OpenAILike(
        model="ling-nano",
        api_base=base_url,
        api_key="unused",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=4096,
        max_tokens=128,
        temperature=temperature,
        max_retries=0,
        strict=True,  # ling-nano by itself writes a brace too many for this tool
    )
    asked = []

    async def get_weather(city: str) -> str:
        asked.append(city)
        return "sunny"

    tool = FunctionTool.from_defaults(
        async_fn=get_weather, name="get_weather", description="Get the weather of a city"
    )

    messages = [ChatMessage(role="user", content="What is the weather in Rome?")]
    deltas = [chunk.delta async for chunk in await llm.astream_chat(messages)]
    chat = await llm.achat(messages)
    agent = FunctionAgent(tools=[tool], llm=llm)
    try:
        final = str(await agent.run("What is the weather in Rome?", max_iterations=6))
    except Exception as error:  # a small model may call again and again
        final = f"{type(error).__name__}: {error}"
    streamed = "".join(delta or "" for delta in deltas)
    print(json.dumps({"streamed": streamed, "chat": chat.message.content, "asked": asked,
                      "final": final}))  # fmt: skip


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], float(sys.argv[2])))
