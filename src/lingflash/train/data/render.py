"""The chat template as a fast Python function; a test holds it equal to chat_template.jinja."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(slots=True)
class Dialogue:
    """Messages and tools, both in OpenAI form.

    Args:
        thinking: whether the system message asks for thinking.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False


TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with "
    "function signatures within <tools></tools> XML tags:\n<tools>\n"
)
TOOLS_TAIL = (
    "</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
    "<args-json-object>}\n</tool_call>\n"
)
_ROLES = {"system": "SYSTEM", "user": "HUMAN", "assistant": "ASSISTANT", "tool": "OBSERVATION"}


def dump(value: Any) -> str:
    """Write JSON as the template's `tojson` does."""
    return json.dumps(value, ensure_ascii=False)


def assistant_text(message: Message) -> str:
    """Return what the model has to write for an assistant message, without the end token."""
    text = message.get("content") or ""
    parts = [text] if text else []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append(
            f'<tool_call>\n{{"name": {dump(function["name"])}, "arguments": '
            f"{dump(function['arguments'])}}}\n</tool_call>"
        )
    return "\n".join(parts)


def render_segments(
    messages: list[Message], tools: list[dict[str, Any]] | None, thinking: bool = False
) -> list[tuple[str, bool]]:
    """Render a dialogue as pieces of text, each with whether the model is trained on it.

    The pieces end and begin at special tokens, so that they can be tokenized one by one.

    Args:
        messages: OpenAI form, contents are strings, arguments are objects. `reasoning_content` is
            shown after the last user message only.
        tools: OpenAI form.
        thinking: ask for thinking; only what follows the last user message is trained, because
            what came before is shown without it.
    """
    head = "<role>SYSTEM</role>"
    start = 0
    system = ""
    if messages and messages[0]["role"] == "system":
        system = messages[0]["content"]
        start = 1
    if not tools and ("detailed thinking off" in system or "detailed thinking on" in system):
        head += system
    else:
        if system:
            head += system + "\n"
        if tools:
            head += TOOLS_HEAD + "".join(dump(t) + "\n" for t in tools) + TOOLS_TAIL
        head += "detailed thinking " + ("on" if thinking else "off")
    pending = head + "<|role_end|>"
    segments: list[tuple[str, bool]] = []
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for i in range(start, len(messages)):
        message = messages[i]
        role = message["role"]
        if role == "assistant":
            segments.append((pending + "<role>ASSISTANT</role>", False))
            text = assistant_text(message) + "<|role_end|>"
            reasoning = message.get("reasoning_content")
            if reasoning and i > last_user:
                text = f"\n<think>\n{reasoning}\n</think>\n\n{text}"
            segments.append((text, i > last_user or not thinking))
            pending = ""
        elif role == "tool":
            if i == 0 or messages[i - 1]["role"] != "tool":
                pending += "<role>OBSERVATION</role>"
            pending += f"\n<tool_response>\n{message['content']}\n</tool_response>"
            if i + 1 == len(messages) or messages[i + 1]["role"] != "tool":
                pending += "<|role_end|>"
        else:
            pending += f"<role>{_ROLES[role]}</role>{message['content']}<|role_end|>"
    if pending:
        segments.append((pending, False))
    return segments
