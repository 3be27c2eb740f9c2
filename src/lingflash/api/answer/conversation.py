"""A conversation as it is read, once, for all that works with it.

Template, grammar, parser and writer of an answer use this one value; every dialect's reader makes
it from its own messages and tools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from lingflash.api.state import ServerState
from lingflash.core.errors import InvalidRequestError, refuse
from lingflash.core.types import GrammarSpec
from lingflash.protocol.chat import ChatCompletionRequest, ChatOptions, SamplingFields
from lingflash.protocol.fields import Dropped
from lingflash.structured.answer_form import answer_grammar, form_field
from lingflash.text.chat_prompt import Thinking
from lingflash.text.conversation import MessageList
from lingflash.text.messages import normalize_messages
from lingflash.text.tools import ToolSet, read_chat_tools

T = TypeVar("T")

# Longer bodies are read beside the event loop, or they would hold up the other streams.
INLINE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What is to be answered, and how.

    Args:
        messages: in the form that templates see.
        tools: those that the model is offered, with the way back to their clients' names.
        may_call: an answer may hold calls.
        thinking: whether an answer begins with it, and the template's variables.
        grammar: what an answer must look like; None leaves the model free.
        grammar_param: the request field that it came in, for messages.
        dropped: what was accepted without being used.
    """

    messages: list[dict[str, Any]]
    tools: ToolSet
    may_call: bool
    thinking: Thinking
    grammar: GrammarSpec | None
    grammar_param: str | None
    dropped: Dropped

    @property
    def is_answered(self) -> bool:
        """Whether the assistant has the last word, so that there is nothing to answer."""
        return self.messages[-1]["role"] == "assistant"


def make_conversation(
    state: ServerState,
    options: ChatOptions,
    messages: list[dict[str, Any]],
    tools: ToolSet,
    dropped: Dropped,
) -> Conversation:
    """Put a conversation together.

    Args:
        options: its tool_choice has the prompt's names of tools.

    Raises:
        InvalidRequestError: options contradict each other or the tools; `param` is chat's.
    """
    effort = _effort(options)
    thinking = Thinking(effort not in (None, "none"), {})
    if state.text is not None:
        thinking = state.text.thinking(effort, options.chat_template_kwargs, dropped)
    choice = _offered_choice(options.tool_choice, tools, dropped)
    grammar, param = read_form(
        options,
        tools=tools.grammar_tools,
        tool_choice=choice,
        parallel_tool_calls=options.parallel_tool_calls,
        reasoning=thinking.is_on,
    )
    return Conversation(
        messages=messages,
        tools=tools,
        may_call=len(tools) > 0 and choice != "none",
        thinking=thinking,
        grammar=grammar,
        grammar_param=param,
        dropped=dropped,
    )


async def read_chat(
    state: ServerState, request: Request, body: ChatCompletionRequest, dropped: Dropped
) -> Conversation:
    """Read a chat request.

    Raises:
        InvalidRequestError: something in it cannot be served; `param` names it.
    """

    def work() -> Conversation:
        tools = read_chat_tools(body.tools, dropped)
        messages = normalize_messages(body.messages, new_messages(state, dropped))
        return make_conversation(state, body, messages, tools, dropped)

    return await read_beside(request, work)


def new_messages(
    state: ServerState, dropped: Dropped, call_id: str = "tool_call_id"
) -> MessageList:
    """Where a dialect's reader puts messages."""
    notes_only = state.config.unreadable_parts == "note"
    return MessageList(dropped, notes_only=notes_only, call_id=call_id)


async def read_beside(request: Request, work: Callable[[], T]) -> T:
    """Read a request, beside the event loop if it is long.

    Raises:
        InvalidRequestError: it is nested too deeply, or what `work` says.
    """
    try:
        if request.state.num_body_bytes <= INLINE_BYTES:
            return work()
        return await asyncio.to_thread(work)
    except RecursionError:
        raise InvalidRequestError(
            "messages holds something that is nested too deeply.", param="messages"
        ) from None


def read_form(body: SamplingFields, **tools: Any) -> tuple[GrammarSpec | None, str | None]:
    """What an answer must look like, and the field that says so.

    Args:
        tools: further arguments of `answer_grammar`.

    Raises:
        InvalidRequestError: a field is malformed or contradicts another.
    """
    form, outputs = body.response_format, body.structured_outputs
    param = form_field(form, outputs)
    if body.regex is not None:
        if outputs is not None:
            refuse("regex", "and structured_outputs are both given; give one of them")
        outputs, param = {"regex": body.regex}, "regex"
    return answer_grammar(response_format=form, structured_outputs=outputs, **tools), param


def _effort(options: ChatOptions) -> str | None:
    """The two ways to write reasoning_effort as one."""
    other = options.reasoning
    if other is None:
        return options.reasoning_effort
    effort = other.effort
    if effort is None and other.enabled is not None:
        effort = "medium" if other.enabled else "none"
    if effort is None:
        return options.reasoning_effort
    if other.enabled is False and effort != "none":
        refuse("reasoning.enabled", f"is false, but reasoning.effort is {effort!r}; give one")
    if options.reasoning_effort not in (None, effort):
        refuse(
            "reasoning.effort",
            f"is {effort!r}, but reasoning_effort is {options.reasoning_effort!r}; give one of "
            "them",
        )
    return effort


def _offered_choice(choice: Any, tools: ToolSet, dropped: Dropped) -> Any:
    """A tool_choice without the tools that cannot run here.

    Raises:
        InvalidRequestError: it asks for one of those.
    """
    if not isinstance(choice, Mapping):
        return choice
    asked = choice_name(choice)
    if tools.is_left_out(asked):
        refuse("tool_choice", f"asks for {asked!r}, which cannot run here; choose another tool")
    allowed = choice.get("allowed_tools")
    listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
    if choice.get("type") != "allowed_tools" or not isinstance(listed, list):
        return choice
    assert isinstance(allowed, Mapping)
    kept = []
    for i, tool in enumerate(listed):
        if isinstance(tool, Mapping) and tools.is_left_out(choice_name(tool)):
            dropped.add(f"tool_choice.tools[{i}]", "tools")
        else:
            kept.append(tool)
    if listed and not kept:
        if allowed.get("mode") == "required":
            refuse("tool_choice", "asks only for tools that cannot run here; choose another")
        return "none"
    return {**choice, "allowed_tools": {**allowed, "tools": kept}}


def choice_name(choice: Mapping[str, Any]) -> Any:
    """The tool that a tool_choice asks for: a name, or the type of one that has none."""
    kind = choice.get("type")
    inner = choice.get(kind) if kind in ("function", "custom") else None
    if isinstance(inner, Mapping):
        return inner.get("name")
    return choice.get("name") or kind
