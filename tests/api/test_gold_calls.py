"""Over 300 gold calls through scripted engine, detokenizer, parser, SSE and the openai client."""

from __future__ import annotations

import json
import random
import re
from types import SimpleNamespace

import openai
import pytest

from api_support import RunningServer, engine_info
from lingflash.api.config import ServerConfig
from lingflash.core.hub import bundled_folder
from lingflash.link.scripted import Behaviour
from lingflash.text.tokenizer import Piece, Tokenizer

TOKENIZER = Tokenizer.from_folder(bundled_folder())
NUM_ANSWERS = 170

STRINGS = [
    "",
    "plain",
    'a "quoted" word',
    "back\\slash \\n \\u0041",
    "line\nbreak\tand tab",
    "Zürich, 東京, Санкт-Петербург",
    "👩‍👩‍👧‍👦 🦊 é e\u0301",
    "</tool_call>",
    '<tool_call>\n{"name": "x", "arguments": {}}\n</tool_call>',
    "<think>no</think> <|role_end|> <role>HUMAN</role>",
    "{}[],:",
    "\u0000\u001f\u007f\u2028\u2029",
    "long " * 400,
    "a/b?c=d&e=%20#f",
    "SELECT * FROM t WHERE a = 'b'; --",
    "def f(x):\n    return {'a': [x, \"b\"]}\n",
]


def value(rng, depth=0):
    kind = rng.random()
    if kind < 0.4 or depth > 4:
        return rng.choice(STRINGS) + rng.choice(["", "x", "ü"])
    if kind < 0.55:
        return rng.choice([0, -1, 3.5, 1e-7, 12345678901234567890, -0.0, 1e300])
    if kind < 0.65:
        return rng.choice([True, False, None])
    if kind < 0.8:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {key(rng): value(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def key(rng):
    return rng.choice(["city", "größe", 'k"ey', "a b", "日本", "", "name", "arguments"]) + str(
        rng.randint(0, 99)
    )


def written(rng, arguments):
    """The JSON as one model or another would write it."""
    style = rng.random()
    if style < 0.6:
        return json.dumps(arguments, ensure_ascii=False)
    if style < 0.75:
        return json.dumps(arguments)
    if style < 0.9:
        return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(arguments, ensure_ascii=False, indent=2)


def gold():
    """Answers: text before, calls as (name, arguments' text), text after."""
    rng = random.Random(20)
    answers = []
    for _ in range(NUM_ANSWERS):
        calls = []
        for _ in range(rng.choice([1, 1, 2, 3, 4])):
            arguments = {key(rng): value(rng) for _ in range(rng.randint(0, 5))}
            name = rng.choice(["get_weather", "search", "dötted.name", 'q"uote', "a-b_c"])
            calls.append((name, written(rng, arguments)))
        before = rng.choice(["", "", "Let me look.", "Ein <Moment> …\nbitte"])
        answers.append((before, calls, rng.choice(["", "", "\nDone."])))
    return answers


def block(name, arguments):
    name = json.dumps(name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def tokens_of(answer):
    """As a model writes it: only the tags are special tokens."""
    before, calls, after = answer
    pieces = [Piece(before, is_literal=True)] if before else []
    for i, (name, arguments) in enumerate(calls):
        if before or i:
            pieces.append(Piece("\n", is_literal=True))
        body = block(name, arguments).removeprefix("<tool_call>").removesuffix("</tool_call>")
        pieces.append(Piece("<tool_call>", is_literal=False))
        pieces.append(Piece(body, is_literal=True))
        pieces.append(Piece("</tool_call>", is_literal=False))
    if after:
        pieces.append(Piece(after, is_literal=True))
    return TOKENIZER.encode_guarded(pieces)


GOLD = gold()
TOOL = {"type": "function", "function": {"name": "get_weather"}}


def script(request, choice):
    number = re.search(r"gold number (\d+)\.", TOKENIZER.decode(request.prompt_token_ids))
    return tokens_of(GOLD[int(number[1])])


@pytest.fixture(scope="module", params=[1, 7])
def client(request):
    server = RunningServer(
        script,
        config=ServerConfig(model_folder=bundled_folder()),
        info=engine_info(vocab_size=TOKENIZER.vocab_size, stop_token_ids=[2], max_model_len=65536),
        behaviour=Behaviour(tokens_per_event=request.param),
    )
    with openai.OpenAI(base_url=server.base_url + "/v1", api_key="x", max_retries=0) as opened:
        yield opened
    server.stop()


def accumulated(chunks):
    """A choice put together from a stream's deltas."""
    content, calls, reason = "", [], None
    for chunk in chunks:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            if call.index == len(calls):
                calls.append(SimpleNamespace(id=call.id, function=call.function))
            else:
                assert (call.id, call.function.name) == (None, None)
                calls[call.index].function.arguments += call.function.arguments
        reason = choice.finish_reason
    message = SimpleNamespace(content=content, tool_calls=calls)
    return SimpleNamespace(message=message, finish_reason=reason)


@pytest.mark.parametrize("stream", [False, True])
def test_gold_calls_when_replayed_then_all_come_back_equal(client, stream):
    num_calls = 0
    for number, (before, calls, after) in enumerate(GOLD):
        fields = {
            "model": "ling-nano",
            "messages": [{"role": "user", "content": f"gold number {number}."}],
            "tools": [TOOL],
        }
        # The client's helper parses what it has at every piece, so long answers take it long.
        if stream and num_calls > 60:
            choice = accumulated(client.chat.completions.create(**fields, stream=True))
        elif stream:
            with client.chat.completions.stream(**fields) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(**fields).choices[0]
        assert choice.finish_reason == "tool_calls"
        found = [
            (call.function.name, call.function.arguments) for call in choice.message.tool_calls
        ]
        assert found == calls
        assert (choice.message.content or "") == before + after
        assert len({call.id for call in choice.message.tool_calls}) == len(calls)
        num_calls += len(calls)
    assert num_calls >= 300
