"""Formats, tool choices, thinking and repeated turns on the chat route, with a scripted engine."""

from __future__ import annotations

import json

import pytest

from api_support import engine_info
from lingflash.core.hub import bundled_folder
from lingflash.core.types import GrammarSpec
from lingflash.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(bundled_folder())
ROLE_END = 2
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
        },
    }
    for name in ("f", "g")
]
STRICT = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]
CALL = '<tool_call>\n{"name": "f", "arguments": {"x":  1}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "g"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
THINKING = "\n<think>\nHmm, let me see.\n</think>\n\n"


@pytest.fixture
def ling(make_server):
    """Servers with ling-nano's text side."""

    def make(script="fine", **config):
        if isinstance(script, str):
            script = {(): TOKENIZER.encode(script)}
        info = engine_info(vocab_size=TOKENIZER.vocab_size, stop_token_ids=[ROLE_END])
        return make_server(script, info=info, model_folder=bundled_folder(), **config)

    return make


def grammar_of(server):
    return server.engine.requests[-1].grammar


def test_chat_when_nothing_is_constrained_then_the_engine_gets_no_grammar(ling):
    server = ling()
    for fields in (
        {},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}},
        {"tools": [], "tool_choice": "none"},
    ):
        assert server.chat(**fields).status_code == 200
        assert grammar_of(server) is None


@pytest.mark.parametrize(
    ("fields", "calls", "names"),
    [
        ({"tool_choice": "required"}, "required", ["f", "g"]),
        ({"tool_choice": NAMED}, "required", ["g"]),
        ({"tool_choice": "none"}, "none", []),
        ({"parallel_tool_calls": False}, "allowed", ["f", "g"]),
        ({"tools": STRICT}, "allowed", ["f", "g"]),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [NAMED]},
                }
            },
            "allowed",
            ["g"],
        ),
    ],
)
def test_chat_when_a_tool_choice_is_made_then_a_grammar_and_an_unchanged_prompt(
    ling, fields, calls, names
):
    server = ling()
    server.chat(tools=TOOLS)
    prompt = server.engine.requests[-1].prompt_token_ids
    assert server.chat(**{"tools": TOOLS, **fields}).status_code == 200
    grammar = grammar_of(server)
    assert grammar.kind == "answer"
    body = json.loads(grammar.text)
    assert body["calls"] == calls
    assert [tool["name"] for tool in body["tools"]] == names
    assert server.engine.requests[-1].prompt_token_ids == prompt


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, GrammarSpec("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": False},
                }
            },
            GrammarSpec("json_schema", json.dumps(SCHEMA)),
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            GrammarSpec("json_schema", json.dumps(SCHEMA)),
        ),
        ({"structured_outputs": {"regex": "[ab]+"}}, GrammarSpec("regex", "[ab]+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, GrammarSpec("choice", '["a", "b"]')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, GrammarSpec("lark", 'start: "a"')),
    ],
)
@pytest.mark.parametrize("route", ["chat", "complete"])
def test_request_when_a_form_is_asked_for_then_the_engine_gets_it(ling, fields, expected, route):
    server = ling()
    response = getattr(server, route)(**fields)
    assert response.status_code == 200, response.text
    assert grammar_of(server) == expected


BAD = [
    ({"guided_json": SCHEMA}, "guided_json", 'structured_outputs: {"json"'),
    ({"guided_regex": "a"}, "guided_regex", 'structured_outputs: {"regex"'),
    ({"guided_choice": ["a"]}, "guided_choice", 'structured_outputs: {"choice"'),
    ({"ebnf": "a"}, "ebnf", 'structured_outputs: {"grammar"'),
    ({"grammar": "a"}, "grammar", 'structured_outputs: {"grammar"'),
    ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", "'not'"),
    ({"structured_outputs": {"grammar": "start: q"}}, "structured_outputs.grammar", "q"),
    ({"structured_outputs": {"a": 1}}, "structured_outputs.a", "regex"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"items": {"uniqueItems": True}}},
            }
        },
        "response_format.json_schema.schema",
        "'uniqueItems'",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "schema"),
    (
        {
            "response_format": {"type": "json_object"},
            "structured_outputs": {"regex": "a"},
        },
        "structured_outputs",
        "response_format",
    ),
    ({"tool_choice": "required"}, "tool_choice", "tools"),
    ({"tool_choice": "sometimes", "tools": TOOLS}, "tool_choice", "'sometimes'"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "h"}}, "tools": TOOLS},
        "tool_choice.function.name",
        "'h'",
    ),
    (
        {"tool_choice": {"type": "allowed_tools"}, "tools": TOOLS},
        "tool_choice.allowed_tools",
        "mode",
    ),
    (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"type": "string"}, "strict": True},
                }
            ]
        },
        "tools[0].function.parameters",
        "object",
    ),
    (
        {"tools": TOOLS, "structured_outputs": {"grammar": 'start: "a"'}},
        "structured_outputs.grammar",
        "tool_choice",
    ),
    ({"reasoning_effort": "very"}, "reasoning_effort", "'very'"),
    (
        {"reasoning_effort": "high", "chat_template_kwargs": {"thinking_option": "off"}},
        "reasoning_effort",
        "thinking_option",
    ),
]  # fmt: skip


def test_chat_when_a_constraint_cannot_be_kept_then_400_names_field_and_way_out(ling):
    server = ling()
    for fields, param, word in BAD:
        response = server.chat(**fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), (fields, error)
        assert word in error["message"], error
    assert server.engine.requests == []


@pytest.mark.parametrize(
    ("effort", "line"),
    [(None, "off"), ("none", "off"), ("low", "on"), ("high", "on"), ("minimal", "on")],
)
def test_chat_when_reasoning_effort_is_given_then_the_templates_own_switch(ling, effort, line):
    server = ling()
    assert server.chat(reasoning_effort=effort).status_code == 200
    prompt = TOKENIZER.decode(server.engine.requests[-1].prompt_token_ids)
    assert prompt.count("detailed thinking") == 1
    assert f"detailed thinking {line}" in prompt


@pytest.mark.parametrize("answer", ["It is 4.", CALL])
def test_chat_when_the_model_thinks_then_reasoning_apart_and_calls_kept(ling, answer):
    server = ling(THINKING + answer)
    fields = {"tools": TOOLS, "reasoning_effort": "high"}
    message = server.chat(**fields).json()["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "Hmm, let me see."
    assert bool(message.get("tool_calls")) == (answer == CALL)
    assert message["content"] == (None if answer == CALL else answer)
    deltas = [e["choices"][0]["delta"] for e in server.stream_chat(**fields)[:-1]]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == "Hmm, let me see."
    assert "".join(delta.get("content", "") for delta in deltas) == (message["content"] or "")
    assert any("tool_calls" in delta for delta in deltas) == (answer == CALL)
    assert "think>" not in json.dumps(deltas)


@pytest.mark.parametrize("thought", ["<think>\nHmm, let me see.\n</think>", "<think>\nHmm\n"])
@pytest.mark.parametrize("tokens_per_event", [1, 4])
def test_usage_when_the_model_thinks_then_its_tokens_are_counted(ling, thought, tokens_per_event):
    server = ling("\n" + thought + CALL)
    server.engine.behaviour.tokens_per_event = tokens_per_event
    expected = len(TOKENIZER.encode(thought)) + (tokens_per_event > 1)  # the newline before it
    chat = server.chat(tools=TOOLS, reasoning_effort="high").json()
    assert chat["usage"]["completion_tokens_details"]["reasoning_tokens"] == expected
    body = {"input": "do it", "reasoning": {"effort": "high"}, "stream": False}
    tools = [{"type": "function", **TOOLS[0]["function"]}]
    response = server.post("/v1/responses", {**body, "tools": tools}).json()
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == expected
    plain = ling("fine").chat().json()
    assert plain["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_chat_when_thinking_is_left_open_then_the_call_is_still_found(ling):
    server = ling("\n<think>\nHmm\n" + CALL)
    choice = server.chat(tools=TOOLS, reasoning_effort="low").json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning"] == "Hmm"


def test_chat_when_thinking_and_a_schema_are_asked_for_then_the_grammar_lets_it_think(ling):
    server = ling()
    server.chat(reasoning_effort="high", structured_outputs={"json": SCHEMA})
    assert json.loads(grammar_of(server).text)["reasoning"]


def loop_messages(server, *, stream=False, key=None):
    """One step of a tool loop: the answer, and the messages of the next request."""
    first = [{"role": "user", "content": "do it"}]
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"messages": first, "tools": TOOLS}
    response = server.post("/v1/chat/completions", body, headers=headers).json()
    message = response["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "ok"}
        for call in message["tool_calls"]
    ]
    return message, [*first, message, *results]


def prompts(server, messages, key=None):
    """The two prompts of a tool loop."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"messages": messages, "tools": TOOLS}
    response = server.post("/v1/chat/completions", body, headers=headers)
    assert response.status_code == 200, response.text
    return (request.prompt_token_ids for request in server.engine.requests[-2:])


SPACED = '<tool_call>{"arguments":{"x":1},"name":"f"}</tool_call>'
ANSWERS = [
    CALL,
    "Look:\n" + CALL + "\n" + CALL,
    SPACED,
    "a\n\n" + SPACED + " \n",
    CALL + "\nmore",
    # Not the tokens that the tokenizer would choose for this text.
    [
        token
        for part in (
            '<tool_call>\n{"na',
            'me": "',
            "g",
            '"',
            ', "arguments": {',
            "}",
            "}\n",
            "</tool_call>",
        )
        for token in TOKENIZER.encode(part)
    ],
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_tool_loop_when_our_own_turn_comes_back_then_exactly_the_tokens_generated(ling, answer):
    generated = TOKENIZER.encode(answer) if isinstance(answer, str) else answer
    server = ling({(): generated})
    _, messages = loop_messages(server)
    one, two = prompts(server, messages)
    assert two[: len(one) + len(generated) + 1] == [*one, *generated, ROLE_END]


@pytest.mark.parametrize("change", ["formatted", "value", "id", "name", "content", "another key"])
def test_tool_loop_when_the_turn_was_changed_then_only_what_is_equal_stays(ling, change):
    server = ling("Look:\n" + SPACED, api_keys=("k1", "k2"))
    message, messages = loop_messages(server, key="k1")
    function = message["tool_calls"][0]["function"]
    match change:
        case "formatted":
            function["arguments"] = '{ "x" :1 }'
        case "value":
            function["arguments"] = '{"x": 1.0}'
        case "id":
            message["tool_calls"][0]["id"] = messages[-1]["tool_call_id"] = "call_other"
        case "name":
            function["name"] = "g"
        case "content":
            message["content"] = "Look, a change: <tool_call>"
    _, two = prompts(server, messages, key="k2" if change == "another key" else "k1")
    text = TOKENIZER.decode(two)
    kept = change in ("formatted", "content")
    assert (SPACED in text) == kept
    assert ('{"name": "' in text.split("</tools>")[-1].split("ASSISTANT")[1]) != kept
    if change == "content":
        assert "Look, a change: <tool_call>\n" + SPACED in text
        assert two.count(TOKENIZER.token_id("<tool_call>")) == 1


@pytest.mark.parametrize("sends_it_back", [True, False])
def test_tool_loop_when_the_turn_has_thinking_then_exactly_the_tokens_generated(
    ling, sends_it_back
):
    generated = TOKENIZER.encode(THINKING + SPACED)
    server = ling({(): generated})
    message, messages = loop_messages(server)
    if not sends_it_back:
        del message["reasoning"], message["reasoning_content"]
    one, two = prompts(server, messages)
    assert two[: len(one) + len(generated) + 1] == [*one, *generated, ROLE_END]
    # After the next user message thinking is left out, as the template does.
    messages.append({"role": "user", "content": "and now?"})
    _, three = prompts(server, messages)
    text = TOKENIZER.decode(three)
    assert "Hmm" not in text
    assert SPACED in text


def test_tool_loop_when_streamed_then_remembered_too(ling):
    server = ling(SPACED)
    events = server.stream_chat("do it", tools=TOOLS)
    pieces = [c for e in events[:-1] for c in e["choices"][0]["delta"].get("tool_calls", [])]
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    call = {
        "id": pieces[0]["id"],
        "type": "function",
        "function": {"name": "f", "arguments": arguments},
    }
    assistant = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "ok"}
    one, two = prompts(server, [{"role": "user", "content": "do it"}, assistant, result])
    generated = TOKENIZER.encode(SPACED)
    assert two[: len(one) + len(generated)] == one + generated
