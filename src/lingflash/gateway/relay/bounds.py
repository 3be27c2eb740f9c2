"""Whether a prompt can have more tokens than its request has bytes, and how many prompts there are.

A token of text has at least one byte. What is not text has not: a picture's address, a file's id, a
stored conversation or a search stand for any number of tokens, so that only the endpoint's context
bounds them. Whatever is not known to be text is taken for more than it shows. Where the upstream
runs code, each call of it is followed by another prompt, with all that came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lingflash.gateway.accounting import Dialect

# Parts, blocks and items whose tokens are those of what stands in them.
_TEXTS = frozenset(
    ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text", "thinking",
     "redacted_thinking", "reasoning", "message", "tool_use", "tool_result", "search_result",
     "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output",
     "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
     "apply_patch_call", "apply_patch_call_output")
)  # fmt: skip
# Of the Responses API: what stands for a conversation or a template that the upstream has.
_LIES_UPSTREAM = ("previous_response_id", "conversation", "prompt")
# Fields of some vendor by which it adds to the prompt.
_ADDING = ("web_search_options", "search_parameters", "mcp_servers", "documents", "container",
           "plugins", "file_ids")  # fmt: skip
# Tools that the client runs: a name and a schema, which are text.
_CLIENTS_TOOLS = (None, "function", "custom")
_IN_PARTS = ("content", "output")
# How often code is run for a request that sets no limit, and for one that sets a huge one.
_CODE_CALLS, _MOST_CALLS = 20, 1000


def may_exceed_bytes(dialect: Dialect, body: Mapping[str, Any]) -> bool:
    """Whether the tokens of a prompt are not bounded by the bytes of its request."""
    if dialect == "completions":
        return _adds(body)
    if dialect == "responses" and any(body.get(name) for name in _LIES_UPSTREAM):
        return True
    return _adds(body) or any(
        not _is_text(part)
        for name in ("messages", "input", "system")
        for part in _parts(body.get(name))
    )


def num_prompts(dialect: Dialect, body: Mapping[str, Any]) -> int:
    """How many prompts a request can have: text completions several, and one more for each call of
    code that the upstream runs."""
    tools = [_type_of(tool) for tool in _list(body.get("tools"))]
    if dialect == "messages" and any(_runs_code(kind) for kind in tools):
        return 1 + _CODE_CALLS
    if dialect == "responses" and "code_interpreter" in tools:
        calls = body.get("max_tool_calls")
        if isinstance(calls, bool) or not isinstance(calls, int) or calls < 0:
            return 1 + _CODE_CALLS
        return 1 + min(calls, _MOST_CALLS)
    prompt = body.get("prompt") if dialect == "completions" else None
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _adds(body: Mapping[str, Any]) -> bool:
    return any(body.get(name) for name in _ADDING) or any(
        not isinstance(tool, Mapping) or tool.get("type") not in _CLIENTS_TOOLS
        for tool in _list(body.get("tools"))
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _type_of(tool: Any) -> Any:
    return tool.get("type") if isinstance(tool, Mapping) else None


def _runs_code(kind: Any) -> bool:
    """Whether a tool of Anthropic's is code_execution; its types end in their dates."""
    return isinstance(kind, str) and kind.startswith("code_execution")


def _parts(value: Any) -> Iterator[Any]:
    """Every message, item, part and block, those inside of others, too."""
    for each in _list(value):
        yield each
        if isinstance(each, Mapping):
            for name in _IN_PARTS:
                yield from _parts(each.get(name))


def _is_text(part: Any) -> bool:
    if isinstance(part, str):
        return True
    if not isinstance(part, Mapping) or part.get("audio"):
        return False
    kind = part.get("type")
    return kind in _TEXTS if isinstance(kind, str) else kind is None and "role" in part
