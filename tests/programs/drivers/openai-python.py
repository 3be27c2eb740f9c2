# ruff: noqa: F821 (the settings that take the next line's place define names)
# $settings
import base64
import json
import sys
from pathlib import Path

from pydantic import BaseModel

FIELDS = {
    "city": {"type": "string", "description": "name of the city"},
    "day": {"type": "string", "enum": ["today", "tomorrow"]},
}
ABOUT = {
    "name": "get_weather",
    "description": "Get the weather forecast for a city",
    "parameters": {"type": "object", "properties": FIELDS, "required": ["city"]},
}
WEATHER = '{"forecast": "light rain", "high": 17}'
EXTRA = sys.argv[1] if len(sys.argv) > 1 else None


class Animal(BaseModel):
    kind: str
    legs: int


def question(how):
    extra = f" ({how})" if EXTRA is None else EXTRA
    return {"role": "user", "content": f"What will the weather be like in Lisbon tomorrow?{extra}"}


def answer_chat(how, streamed):
    messages = [question(how)]
    # The helpers take strict tools alone, whose fields are all required.
    strict = {**ABOUT["parameters"], "required": [*FIELDS], "additionalProperties": False}
    tool = {"type": "function", "function": {**ABOUT, "parameters": strict, "strict": True}}
    body = {"model": model, "tools": [tool], "temperature": 0}
    for _ in range(5):
        if streamed:
            with client.chat.completions.stream(messages=messages, **body) as stream:
                message = stream.get_final_completion().choices[0].message
        else:
            message = client.chat.completions.parse(messages=messages, **body).choices[0].message
        messages.append(message)
        if not message.tool_calls:
            print(f"{how}: {message.content}")
            return
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": WEATHER})


def answer_responses(how, streamed, output=WEATHER, dumped=False):
    items = [question(how)]
    body = {"model": model, "tools": [{"type": "function", "strict": False, **ABOUT}]}
    for _ in range(5):
        if streamed:
            with client.responses.stream(input=items, temperature=0, **body) as stream:
                response = stream.get_final_response()
        else:
            response = client.responses.create(input=items, temperature=0, **body)
        items += [item.model_dump() for item in response.output] if dumped else response.output
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            print(f"{how}: {response.output_text}")
            return
        for call in calls:
            item = {"type": "function_call_output", "call_id": call.call_id, "output": output}
            items.append(item)


answer_chat("parse", streamed=False)
answer_chat("stream", streamed=True)
answer_responses("responses", streamed=False)
answer_responses("responses streamed", streamed=True)
if EXTRA is None:
    answer_responses("responses dumped", streamed=False, dumped=True)
    data = base64.b64encode(Path("dot.png").read_bytes()).decode()
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{data}", "detail": "auto"}
    parts = [{"type": "input_text", "text": WEATHER}, image]
    answer_responses("picture", streamed=False, output=parts)

    messages = [{"role": "user", "content": "Name an animal."}]
    for _ in range(2):
        form = {"model": model, "messages": messages, "response_format": Animal}
        message = client.chat.completions.parse(**form).choices[0].message
        print(f"object: {message.parsed.model_dump_json()}")
        messages += [message, {"role": "user", "content": "Name an animal, another one."}]
    messages += [message.model_dump(), {"role": "user", "content": "Hello"}]
    client.chat.completions.create(model=model, messages=messages)

    parsed = client.responses.parse(model=model, input="Name an animal.", text_format=Animal)
    print(f"responses object: {json.dumps(parsed.output_parsed.model_dump())}")
    again = [*parsed.output, {"role": "user", "content": "Hello"}]
    client.responses.create(model=model, input=again)
