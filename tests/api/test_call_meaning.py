"""A call means one thing in all dialects, streamed and not, whatever a model writes.

Read by the openai and anthropic packages. What is no whole call is text, once; what is one can be
run, and is sent back to continue what was generated, token for token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api_support import RunningServer, engine_info
from clients_support import client_package
from lingflash.api.config import ServerConfig
from lingflash.core.hub import bundled_folder
from lingflash.text.tokenizer import Tokenizer

anthropic, openai = client_package("anthropic"), client_package("openai")
TOKENIZER = Tokenizer.from_folder(bundled_folder())
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}}
QUESTION = {"role": "user", "content": "go on"}
CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
ITEM_TOOL = {"type": "function", "name": "f", "parameters": PARAMETERS, "strict": False}
USE_TOOL = {"name": "f", "input_schema": PARAMETERS}
DIALECTS = ("chat", "responses", "messages")


@dataclass
class Said:
    """An answer, in any dialect.

    Args:
        blocks: text and calls in their order; chat only tells the text as a whole.
        turn: what a client sends back.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    reason: str = ""
    blocks: list[str | tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    turn: list = field(default_factory=list)

    def without_ids(self):
        return self.content, self.reasoning, self.calls, self.reason, self.blocks

    def add_text(self, text):
        self.content += text
        self.blocks.append(text)

    def add_call(self, call_id, name, arguments):
        assert isinstance(json.loads(arguments), dict)
        self.calls.append((name, arguments))
        self.blocks.append((name, arguments))
        self.ids.append(call_id)


class Asker:
    """Asks a server whose engine says given tokens, through the clients' packages."""

    def __init__(self):
        self.tokens: list[int] = []
        end = TOKENIZER.token_id("<|role_end|>")
        self.server = RunningServer(
            lambda request, choice: self.tokens,
            config=ServerConfig(model_folder=bundled_folder()),
            info=engine_info(vocab_size=TOKENIZER.vocab_size, stop_token_ids=[end]),
        )
        base_url = self.server.base_url
        self.openai = openai.OpenAI(base_url=base_url + "/v1", api_key="x", max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=base_url, api_key="x", max_retries=0)

    def ask(self, dialect, before=(), *, limit=None, stop=None, stream=False) -> Said:
        limit = 3000 if limit is None else limit
        return getattr(self, dialect)([QUESTION, *before], limit, stop, stream)

    def continues(self, said, dialect):
        """The prompt of the next turn continues this one and what was generated."""
        first = self.server.engine.requests[-1].prompt_token_ids
        results = getattr(self, dialect + "_results")(said)
        generated = list(self.tokens)
        self.ask(dialect, [*said.turn, *results])
        following = self.server.engine.requests[-1].prompt_token_ids
        wanted = [*first, *generated]
        return following[: len(wanted)] == wanted

    def chat(self, messages, limit, stop, stream):
        fields = {"model": "ling-nano", "messages": messages, "tools": [CHAT_TOOL], "stop": stop}
        fields |= {"max_completion_tokens": limit}
        said, calls = Said(), {}
        if not stream:
            choice = self.openai.chat.completions.create(**fields).choices[0]
            calls = dict(enumerate(choice.message.tool_calls or ()))
            said.content, said.reason = choice.message.content or "", choice.finish_reason
            said.reasoning = getattr(choice.message, "reasoning", "")
            said.turn = [choice.message]
        else:
            for chunk in self.openai.chat.completions.create(**fields, stream=True):
                (choice,) = chunk.choices
                said.content += choice.delta.content or ""
                said.reasoning += getattr(choice.delta, "reasoning", "")
                for call in choice.delta.tool_calls or ():
                    if call.index in calls:
                        calls[call.index].function.arguments += call.function.arguments
                    else:
                        calls[call.index] = call
                said.reason = choice.finish_reason or said.reason
        for call in calls.values():
            said.add_call(call.id, call.function.name, call.function.arguments)
        said.blocks = []
        return said

    @staticmethod
    def chat_results(said):
        return [{"role": "tool", "tool_call_id": i, "content": "R"} for i in said.ids]

    def responses(self, items, limit, stop, stream):
        assert stop is None
        fields = {"model": "ling-nano", "input": items, "tools": [ITEM_TOOL]}
        fields |= {"max_output_tokens": limit, "store": False}
        if not stream:
            response = self.openai.responses.create(**fields)
        else:
            done = []
            for event in self.openai.responses.create(**fields, stream=True):
                if event.type == "response.output_item.done":
                    done.append(event.item)
            response = event.response
            assert done == response.output
        said = Said(reason=response.status, turn=[i.to_dict() for i in response.output])
        for item in response.output:
            if item.type == "function_call":
                assert item.status == "completed"
                said.add_call(item.call_id, item.name, item.arguments)
            elif item.type == "reasoning":
                said.reasoning += item.content[0].text
            else:
                said.add_text(item.content[0].text)
        return said

    @staticmethod
    def responses_results(said):
        return [{"type": "function_call_output", "call_id": i, "output": "R"} for i in said.ids]

    def messages(self, messages, limit, stop, stream):
        fields = {"model": "ling-nano", "messages": messages, "tools": [USE_TOOL]}
        fields |= {"max_tokens": limit, "stop_sequences": stop or []}
        if not stream:
            message = self.anthropic.messages.create(**fields)
        else:
            with self.anthropic.messages.stream(**fields) as events:
                message = events.get_final_message()
        said = Said(reason=message.stop_reason)
        said.turn = [{"role": "assistant", "content": message.content}]
        for block in message.content:
            if block.type == "tool_use":
                assert isinstance(block.input, dict)
                said.add_call(block.id, block.name, json.dumps(block.input))
            elif block.type == "thinking":
                said.reasoning += block.thinking
            else:
                said.add_text(block.text)
        return said

    @staticmethod
    def messages_results(said):
        results = [{"type": "tool_result", "tool_use_id": i, "content": "R"} for i in said.ids]
        return [{"role": "user", "content": results}]

    def ask_everywhere(self, tokens, *, limit=None, stop=None):
        """The answer, the same in all dialects, streamed and not; it continues when sent back."""
        self.tokens = tokens
        answers = {}
        for dialect in DIALECTS:
            if stop is not None and dialect == "responses":
                continue
            said = answers[dialect] = self.ask(dialect, limit=limit, stop=stop)
            self.tokens = tokens if limit is None else tokens[:limit]
            if said.calls and stop is None:
                assert self.continues(said, dialect), dialect
            self.tokens = tokens
            streamed = self.ask(dialect, limit=limit, stop=stop, stream=True)
            assert streamed.without_ids() == said.without_ids(), dialect
        chat = answers["chat"]
        for dialect, said in answers.items():
            assert (said.content, said.reasoning) == (chat.content, chat.reasoning), dialect
            assert loaded(said.calls) == loaded(chat.calls), dialect
            json.dumps(loaded(said.calls), ensure_ascii=False).encode()  # no half surrogates
        check_reasons(answers, bool(chat.calls), stop)
        return answers


def loaded(calls):
    return [(name, json.loads(arguments)) for name, arguments in calls]


def check_reasons(answers, has_calls, stop):
    reason = answers["chat"].reason
    assert reason in (("tool_calls", "length") if has_calls else ("stop", "length"))
    allowed = {"tool_calls": ["tool_use"], "stop": ["end_turn"], "length": ["max_tokens"]}[reason]
    if stop is not None and reason != "length":
        allowed.append("stop_sequence")
    assert answers["messages"].reason in allowed
    if "responses" in answers:
        wanted = "incomplete" if reason == "length" else "completed"
        assert answers["responses"].reason == wanted


@pytest.fixture(scope="module")
def asker():
    opened = Asker()
    yield opened
    opened.openai.close()
    opened.anthropic.close()
    opened.server.stop()


def block(arguments, name='"f"'):
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


CALL = block('{"a": "x"}')
SOUND = ("f", {"a": "x"})
# What a model writes, its text, its calls.
KINDS = {
    "python literal": (block('{"a": True}'), block('{"a": True}'), []),
    "single quotes": (block("{'a': 'x'}"), block("{'a': 'x'}"), []),
    "brace too many": (block('{"a": "x"}}'), block('{"a": "x"}}'), []),
    "comma too many": (block('{"a": "x",}'), block('{"a": "x",}'), []),
    "no name": (block("{}", '""'), block("{}", '""'), []),
    "a list": (block("[1]"), block("[1]"), []),
    "broken, then sound": (block("{a}") + "\n" + CALL, block("{a}"), [SOUND]),
    "sound, then broken": (CALL + "\n" + block("{a}"), "\n" + block("{a}"), [SOUND]),
    "no closing tag": ("Look:\n" + CALL[:-13], "Look:", [SOUND]),
    "half a closing tag": (CALL[:-5], "", [SOUND]),
    "none before the next call": (CALL[:-12] + CALL, "", [SOUND, SOUND]),
    "raw newline and tab": (block('{"a": "x\n\ty"}'), "", [("f", {"a": "x\n\ty"})]),
    "string of JSON": (block(json.dumps('{"a": "x"}')), "", [SOUND]),
    "no arguments": (block("null"), "", [("f", {})]),
    "half in an argument": (
        block(r'{"a": "\ud83d", "\udc00": 1}'),
        "",
        [("f", {"a": "�", "�": 1})],
    ),
    "half in a name": (block("{}", r'"\ud800"'), "", [("�", {})]),
    "whole emoji": (block(r'{"a": "\ud83d\ude00"}'), "", [("f", {"a": "😀"})]),
    "text after a call": (f"Let me.\n{CALL}\nDone.", "Let me.\nDone.", [SOUND]),
    "text between calls": (f"{CALL}\nAnd\n{CALL}\nnow.", "\nAnd\nnow.", [SOUND, SOUND]),
    "deep": (block('{"a": ' + "[" * 300 + "]" * 300 + "}"), None, []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_answer_when_a_call_is_of_a_kind_then_it_means_the_same_everywhere(asker, kind):
    text, content, calls = KINDS[kind]
    answers = asker.ask_everywhere(TOKENIZER.encode(text))
    chat = answers["chat"]
    assert (chat.content, loaded(chat.calls)) == (text if content is None else content, calls)


def test_answer_when_a_call_is_cut_anywhere_then_text_until_its_json_is_whole(asker):
    tokens = TOKENIZER.encode("Look:\n" + CALL)
    for limit in range(1, len(tokens) + 1):
        answers = asker.ask_everywhere(tokens, limit=limit)
        written = TOKENIZER.decode(tokens[:limit])
        assert answers["chat"].reason == "length"
        if written.rstrip().endswith(("}}", "</tool_call>")):
            assert (answers["chat"].content, loaded(answers["chat"].calls)) == ("Look:", [SOUND])
        else:
            assert (answers["chat"].content, answers["chat"].calls) == (written, [])


def test_answer_when_a_stop_string_is_the_closing_tag_then_a_call(asker):
    answers = asker.ask_everywhere(TOKENIZER.encode(CALL), stop=["</tool_call>"])
    assert loaded(answers["chat"].calls) == [SOUND]
    assert answers["chat"].reason == "tool_calls"
    assert answers["messages"].reason == "tool_use"
    answers = asker.ask_everywhere(TOKENIZER.encode(CALL + "\nDone."), stop=["one"])
    assert answers["messages"].reason == "stop_sequence"


def test_answer_when_a_call_stands_inside_thinking_then_its_end_tag_is_nowhere(asker):
    text = f"<think>\nhm {CALL}\n</think>\n\nDone."
    answers = asker.ask_everywhere(TOKENIZER.encode(text))
    assert (answers["chat"].content, answers["chat"].reasoning) == ("Done.", "hm ")
    assert loaded(answers["chat"].calls) == [SOUND]


def test_blocks_when_text_follows_a_call_then_in_the_order_of_the_answer(asker):
    answers = asker.ask_everywhere(TOKENIZER.encode(f"One\n{CALL}\nTwo\n{CALL}\nThree"))
    wanted = ["One", ("f", '{"a": "x"}'), "\nTwo", ("f", '{"a": "x"}'), "\nThree"]
    assert answers["responses"].blocks == answers["messages"].blocks == wanted


def test_turn_when_its_thinking_is_left_out_later_then_text_after_a_call_keeps_its_place(asker):
    asker.tokens = TOKENIZER.encode(f"<think>\nhm\n</think>\n\nOne\n{CALL}\nTwo")
    for dialect in DIALECTS:
        said = asker.ask(dialect)
        results = getattr(asker, dialect + "_results")(said)
        asker.ask(dialect, [*said.turn, *results, QUESTION])
        prompt = TOKENIZER.decode(asker.server.engine.requests[-1].prompt_token_ids)
        assert f"<role>ASSISTANT</role>One\n{CALL}\nTwo<|role_end|>" in prompt


HALF = "a\ud83d"
A_CALL = {
    "id": "c",
    "type": "function",
    "function": {"name": HALF, "arguments": f'{{"a": "{HALF}"}}'},
}
ESCAPED_CALL = {
    **A_CALL,
    "function": {"name": "f", "arguments": json.dumps({"a": HALF})},
}
WITH_HALVES = [
    (
        "/v1/chat/completions",
        {
            "messages": [
                QUESTION,
                {"role": "assistant", "content": "", "tool_calls": [ESCAPED_CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "R"},
            ],
        },
    ),
    (
        "/v1/responses",
        {
            "input": [
                QUESTION,
                {"type": "function_call", "call_id": "c", **ESCAPED_CALL["function"]},
                {"type": "function_call_output", "call_id": "c", "output": "R"},
            ],
        },
    ),
    ("/v1/completions", {"prompt": HALF}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": HALF}]}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                QUESTION,
                {"role": "assistant", "content": None, "tool_calls": [A_CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "R"},
            ],
            "stop": [HALF],
        },
    ),
    ("/v1/responses", {"input": HALF, "instructions": HALF, "metadata": {HALF: HALF}}),
    (
        "/v1/messages",
        {
            "model": "ling-nano",
            "max_tokens": 9,
            "messages": [
                QUESTION,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": "c", "name": "f", "input": {HALF: HALF}}
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "c", "content": HALF}],
                },
            ],
        },
    ),
    ("/tokenize", {"prompt": HALF}),
]


@pytest.mark.parametrize(("path", "body"), WITH_HALVES)
def test_request_when_it_holds_half_a_surrogate_then_a_replacement_character(asker, path, body):
    asker.tokens = TOKENIZER.encode("fine")
    response = asker.server.client.post(path, content=json.dumps(body))
    assert response.status_code == 200, response.text
    if path == "/tokenize":
        prompt = TOKENIZER.decode(response.json()["tokens"])
    else:
        prompt = TOKENIZER.decode(asker.server.engine.requests[-1].prompt_token_ids)
    assert "a\ufffd" in prompt


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=6) | st.just("</think>"),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
objects = st.dictionaries(st.text(max_size=3), values, max_size=3)
written_calls = st.builds(
    lambda arguments, ascii_only, indent, as_string: block(
        (lambda written: json.dumps(written) if as_string else written)(
            json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)
        )
    ),
    objects,
    st.booleans(),
    st.sampled_from([None, None, 1]),
    st.sampled_from([False, False, True]),
)
texts = st.sampled_from(["Look:", "\n", " ", "a</b", "ü😀", "<tool", "</tool_call>", '"{', "}}"])
answers_written = st.builds(
    lambda thought, parts: thought + "".join(parts),
    st.sampled_from(["", "", "<think>\nhm\n</think>\n\n", "<think>\nhm "]),
    st.lists(
        written_calls | texts | st.sampled_from(["</think>", CALL, "\n" + CALL, CALL[:-12]]),
        max_size=5,
    ),
)
damages = st.lists(
    st.tuples(
        st.sampled_from(["cut", "delete", "double", "escape", "half", "control", "quote"]),
        st.floats(0, 1, exclude_max=True),
    ),
    max_size=2,
)


def damaged(text, damage):
    for kind, place in damage:
        at = int(place * len(text))
        before, char, after = text[:at], text[at : at + 1], text[at + 1 :]
        text = {
            "cut": before,
            "delete": before + after,
            "double": before + char * 2 + after,
            "escape": before + "\\" + char + after,
            "half": before + "\\udc00" + char + after,
            "control": before + "\x01" + char + after,
            "quote": before + '"' + char + after,
        }[kind]
    return text


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(answers_written, damages, st.floats(0, 1), st.none() | st.integers(1, 60))
@example(f"<think>\na {CALL}</think>\n{CALL}", [], 0.0, None)
@example(f"One\n{CALL}Two\n{CALL[:-5]}", [], 1.0, None)
def test_answer_when_it_is_damaged_anywhere_then_it_means_the_same_everywhere(
    asker, text, damage, place, limit
):
    text = damaged(text, damage)
    # As a model may write it: a tag cut by another token's end is spelled in letters.
    at = int(place * len(text))
    tokens = TOKENIZER.encode(text[:at]) + TOKENIZER.encode(text[at:])
    chat = asker.ask_everywhere(tokens, limit=limit)["chat"]
    if not chat.calls and "<think>" not in text:
        shown = TOKENIZER.decode(tokens if limit is None else tokens[:limit])
        assert chat.content == shown
