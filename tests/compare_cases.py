"""The requests that compare_checkouts.py sends: gold answers, options, errors, other endpoints."""

from __future__ import annotations

from typing import Any

CALL = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "n": 1e3}}\n</tool_call>'
)
BROKEN = '<tool_call>\n{"name": "get_weather", "arguments": {"city": Rome}}\n</tool_call>'
THOUGHT = '<think>\nIs it "fine"? Perhaps.\n</think>\n\n'
# What the engine is made to say, by name.
GOLD = {
    "plain": "It is fine in Zürich, 東京 👩‍👩‍👧‍👦.",
    "call": CALL,
    "text and calls": f"Let me look.\n{CALL}\n{CALL}",
    "call and text": f"{CALL}\nDone.",
    "broken call": f"Hm.\n{BROKEN}",
    "open call": CALL[:50],
    "thought": THOUGHT + "Yes.",
    "thought and call": THOUGHT + CALL,
    "only thought": "<think>\nThis never ends",
    "empty": "",
    "json": '{"city": "Rome"}',
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Tells it.", "parameters": SCHEMA}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
Case = tuple[str, str, str, Any, dict[str, Any]]  # name, method, path, body, options


def say(text: str) -> str:
    """A user's text that makes the engine say this."""
    return f"SAY[[{text}]]"


def user(text: str) -> list[dict[str, Any]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def chat_tools() -> list[dict[str, Any]]:
    """One tool in chat's form."""
    return [{"type": "function", "function": FUNCTION}]


def message_tools() -> list[dict[str, Any]]:
    """The same in Anthropic's form."""
    return [{"name": "get_weather", "description": "Tells it.", "input_schema": SCHEMA}]


def gold_cases() -> list[Case]:
    """Every gold answer in every dialect, whole and streamed, to its end and cut off."""
    cases: list[Case] = []
    for name, text in GOLD.items():
        for cut in (None, 9):
            bodies: list[tuple[str, dict[str, Any]]] = [
                (CHAT, {"messages": user(say(text)), "tools": chat_tools(), "max_tokens": cut}),
                (TEXT, {"prompt": say(text), "max_tokens": cut or 200}),
                (
                    RESPONSES,
                    {
                        "input": say(text),
                        "tools": [{"type": "function", **FUNCTION}],
                        "max_output_tokens": cut,
                    },
                ),
                (
                    MESSAGES,
                    {
                        "model": "ling-nano",
                        "messages": user(say(text)),
                        "tools": message_tools(),
                        "max_tokens": cut or 200,
                    },
                ),
            ]
            for path, body in bodies:
                for stream in (False, True):
                    case = f"{name}, {cut or 'whole'}, {'streamed' if stream else 'body'}"
                    cases.append((case, "POST", path, {**body, "stream": stream}, {}))
    return cases


def history() -> list[dict[str, Any]]:
    """A conversation with a call, its result and thinking, in chat's form."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
    }
    return [
        {"role": "system", "content": "Be short."},
        *user("Rome?"),
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        *user(say("sunny")),
    ]


def message_history() -> list[dict[str, Any]]:
    """The same in Anthropic's form."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny", "is_error": True}
    return [
        *user("Rome?"),
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": say("sunny")}]},
    ]


def option_cases() -> list[Case]:
    """What changes the form of an answer, one field at a time."""
    fine = {"messages": user(say(GOLD["plain"]))}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    chat: dict[str, dict[str, Any]] = {
        "usage in the stream": usage,
        "logprobs": {"logprobs": True, "top_logprobs": 2},
        "logprobs, streamed": {"logprobs": True, "stream": True},
        "token ids": {"return_token_ids": True},
        "token ids, streamed": {"return_token_ids": True, "stream": True},
        "choices": {"n": 3},
        "choices, streamed": {"n": 3, **usage},
        "cache report": {"return_cache_report": True, "cache_salt": "salt"},
        "stop string": {"stop": ["Zür"]},
        "stop string, streamed": {"stop": "fine", "stream": True},
        "stop token": {"stop_token_ids": [500], "ignore_eos": True, "max_tokens": 5},
        "json schema": {
            "messages": user(say(GOLD["json"])),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
            },
        },
        "required call": {
            "messages": user(say(CALL)),
            "tools": chat_tools(),
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
        "thinking": {"messages": user(say(GOLD["thought"])), "reasoning_effort": "high"},
        "history": {"messages": history(), "tools": chat_tools()},
        "special tokens kept": {"skip_special_tokens": False},
    }
    text: dict[str, dict[str, Any]] = {
        "several prompts": {"prompt": [say("one"), say("two")], "n": 2, "max_tokens": 20},
        "several, streamed": {"prompt": [say("one"), say("two")], "max_tokens": 20, **usage},
        "token ids in": {"prompt": [5, 6, 7]},
        "echo, scored": {"prompt": "a b", "echo": True, "logprobs": 1, "max_tokens": 0},
        "echo, streamed": {"prompt": "a b", "echo": True, "logprobs": 2, "stream": True},
        "logprobs": {"logprobs": 3, "return_token_ids": True},
        "logprobs, streamed": {"logprobs": 0, "return_token_ids": True, "stream": True},
        "regex": {"prompt": say("42"), "structured_outputs": {"regex": "[0-9]+"}},
        "cache report": {"return_cache_report": True},
        "stop string": {"stop": ["fine"], "stream": True, "max_tokens": 100},
    }
    messages: dict[str, dict[str, Any]] = {
        "stop string": {"stop_sequences": ["fine"]},
        "stop string, streamed": {"stop_sequences": ["fine"], "stream": True},
        "system": {
            "system": [{"type": "text", "text": "x-anthropic-billing-header: 1\nBe short."}]
        },
        "history": {"messages": message_history(), "tools": message_tools()},
        "more than the context": {"max_tokens": 10**6},
        "more than the context, cut": {"max_tokens": 10**6, "messages": user("LONG")},
        "thinking": {
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "messages": user(say(GOLD["thought"])),
        },
        "json schema": {
            "messages": user(say(GOLD["json"])),
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
        "cache report": {"return_cache_report": True},
        "one tool": {
            "messages": user(say(CALL)),
            "tools": message_tools(),
            "tool_choice": {"type": "tool", "name": "get_weather"},
        },
    }
    responses: dict[str, dict[str, Any]] = {
        "not stored": {"store": False, "metadata": {"a": "b"}, "instructions": "Be short."},
        "json schema": {
            "input": say(GOLD["json"]),
            "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
        },
        "thinking": {"input": say(GOLD["thought"]), "reasoning": {"effort": "low"}},
        "cache report": {"return_cache_report": True},
        "items": {
            "input": [
                {"type": "message", "role": "user", "content": "Rome?"},
                {"type": "reasoning", "summary": [], "content": []},
                {
                    "type": "function_call",
                    "call_id": "call_1",
                    "name": "get_weather",
                    "arguments": "{}",
                },
                {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
                {"role": "user", "content": [{"type": "input_text", "text": say("sunny")}]},
            ],
            "stream": True,
        },
    }
    message = {"model": "ling-nano", "max_tokens": 100, **fine}
    cases: list[Case] = [(name, "POST", CHAT, {**fine, **more}, {}) for name, more in chat.items()]
    prompt = {"prompt": say(GOLD["plain"])}
    cases += [(name, "POST", TEXT, {**prompt, **more}, {}) for name, more in text.items()]
    cases += [(name, "POST", MESSAGES, {**message, **more}, {}) for name, more in messages.items()]
    given = {"input": say(GOLD["plain"])}
    cases += [(name, "POST", RESPONSES, {**given, **more}, {}) for name, more in responses.items()]
    return cases


def error_cases() -> list[Case]:
    """What is refused, and what fails on the way."""
    cases: list[Case] = []
    good: dict[str, dict[str, Any]] = {
        CHAT: {"messages": user(say("fine"))},
        TEXT: {"prompt": say("fine")},
        RESPONSES: {"input": say("fine")},
        MESSAGES: {"model": "ling-nano", "max_tokens": 50, "messages": user(say("fine"))},
        MESSAGES + "/count_tokens": {"model": "ling-nano", "messages": user(say("fine"))},
        "/tokenize": {"prompt": "fine"},
        "/detokenize": {"tokens": [5, 6]},
    }
    wrong: dict[str, dict[str, Any]] = {
        "good": {},
        "unknown field": {"nonsense": 1},
        "inert field": {"service_tier": "auto"},
        "refused field": {"suffix": "x", "conversation": "y", "speed": "fast"},
        "wrong type": {"model": 3},
        "unknown model": {"model": "other"},
        "temperature": {"temperature": 1000.0},
        "options without stream": {"stream_options": {}},
        "tools": {"tools": [{"type": "web_search"}]},
        "no messages": {"messages": [], "input": [], "prompt": [], "tokens": []},
        "too many tokens": {"max_tokens": 10**6, "max_output_tokens": 10**6},
        "prompt too long": {"messages": user("LONG"), "input": "LONG", "prompt": "LONG"},
        "bad ids": {"prompt": [10**6], "tokens": [-1], "stop_token_ids": [10**6]},
        "no tokens asked": {"max_tokens": 0, "max_output_tokens": 0},
        "grammar": {"structured_outputs": {"regex": "("}},
        "stop strings": {"stop": ["x"] * 50, "stop_sequences": ["x"] * 50},
        "thread": {"thread": "t"},
        "prior": {"previous_response_id": "resp_none"},
        "bias": {"logit_bias": {"x": 1}},
        "logprobs": {"top_logprobs": 3, "logprobs": 50},
        "both limits": {"max_tokens": 3, "max_completion_tokens": 4},
    }
    for path, body in good.items():
        for name, fields in wrong.items():
            cases.append((f"given {name}", "POST", path, {**body, **fields}, {}))
        for raw in (b"", b"{", b"[]", b"\xff", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}"):
            cases.append((f"malformed {raw[:8]!r}", "POST", path, raw, {}))
        cases.append(("too large", "POST", path, b" " * 300_000, {}))
        cases.append(("no key", "POST", path, body, {"key": None}))
        for stream in (False, True):
            for fault in ("fail", "reject", "crash", "dead", "abort", "late"):
                streamed = {**body, "stream": True} if stream else body
                case = f"{fault}{', streamed' if stream else ''}"
                if not stream or path in (CHAT, TEXT, RESPONSES, MESSAGES):
                    cases.append((case, "POST", path, streamed, {"fault": fault}))
    return cases


def other_cases() -> list[Case]:
    """The other endpoints, and paths that are none."""
    stored = {"input": say("one"), "tools": [{"type": "function", **FUNCTION}]}
    tokenize = {"messages": user("hi"), "tools": chat_tools(), "return_token_strs": True}
    return [
        ("models", "GET", "/v1/models", None, {}),
        ("model", "GET", "/v1/models/ling-nano", None, {}),
        ("unknown model", "GET", "/v1/models/a/b", None, {}),
        ("health", "GET", "/health", None, {"key": None}),
        ("ready", "GET", "/ready", None, {"key": None}),
        ("not ready", "GET", "/ready", None, {"fault": "dead"}),
        ("metrics without key", "GET", "/metrics", None, {"key": "wrong"}),
        ("document without key", "GET", "/openapi.json", None, {"key": None}),
        ("unknown path", "GET", "/nope", None, {}),
        ("unknown path of messages", "POST", MESSAGES + "/batches", {}, {}),
        ("wrong method", "GET", CHAT, None, {}),
        ("wrong method of messages", "DELETE", MESSAGES, None, {}),
        ("tokenize messages", "POST", "/tokenize", tokenize, {}),
        ("reset without key", "POST", "/reset_prefix_cache", None, {"key": None}),
        ("reset with a user's key", "POST", "/reset_prefix_cache", None, {}),
        ("reset", "POST", "/reset_prefix_cache", None, {"key": "admin"}),
        ("stored", "POST", RESPONSES, stored, {"keep": True}),
        ("continued", "POST", RESPONSES, {**stored, "previous_response_id": "KEPT"}, {}),
        ("read", "GET", RESPONSES + "/KEPT", None, {}),
        ("read as another", "GET", RESPONSES + "/KEPT", None, {"key": "second"}),
        ("read as a stream", "GET", RESPONSES + "/KEPT?stream=true", None, {}),
        ("unknown parameter", "GET", RESPONSES + "/KEPT?x=1", None, {}),
        ("unknown include", "GET", RESPONSES + "/KEPT?include=x", None, {}),
        ("items", "GET", RESPONSES + "/KEPT/input_items?limit=1&order=asc", None, {}),
        ("items, bad limit", "GET", RESPONSES + "/KEPT/input_items?limit=0", None, {}),
        ("items, bad order", "GET", RESPONSES + "/KEPT/input_items?order=up", None, {}),
        ("cancel when done", "POST", RESPONSES + "/KEPT/cancel", None, {}),
        ("delete", "DELETE", RESPONSES + "/KEPT", None, {}),
        ("delete again", "DELETE", RESPONSES + "/KEPT", None, {}),
    ]
