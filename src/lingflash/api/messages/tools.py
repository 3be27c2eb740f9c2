"""The tools of a messages request, and what its tool_choice asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lingflash.api.messages.code_blocks import CODE_EXECUTION, CODE_NAME
from lingflash.core.errors import refuse
from lingflash.protocol.fields import Dropped, take
from lingflash.protocol.history_fields import MESSAGES_CODE_TOOL, MESSAGES_TOOL
from lingflash.protocol.messages import TOOL_CHOICE_TABLE
from lingflash.text.tools import ToolSet


def read_tools(
    tools: Sequence[Any] | None,
    found: set[str],
    choice: Mapping[str, Any] | None,
    dropped: Dropped,
    *,
    runs_code: bool = False,
) -> ToolSet:
    """Read tools with an input_schema, and code execution; the others cannot run here.

    A tool with `defer_loading` is offered once the conversation has found it, or where it could
    not be found, since the search is one of those that do not run here.

    Args:
        found: names that the conversation has found or called.
        runs_code: there is a sandbox for it.

    Raises:
        InvalidRequestError: one is malformed.
    """
    result = ToolSet()
    later: list[tuple[dict[str, Any], str]] = []
    wanted = {*found, (choice or {}).get("name")}
    searches_here = True
    code: list[str] = []
    for i, tool in enumerate(tools or ()):
        where = f"tools[{i}]"
        if not isinstance(tool, Mapping):
            refuse(where, "must be an object with name and input_schema")
        kind = tool.get("type")
        if kind not in (None, "custom"):
            if not isinstance(kind, str):
                refuse(f"{where}.type", f"is {kind!r}; a string is needed")
            if kind == CODE_EXECUTION and runs_code:
                take(tool, MESSAGES_CODE_TOOL, where, dropped)
                code.append(where)
                continue
            result.leave_out(kind, where, dropped, tool.get("name"))
            searches_here = searches_here and not kind.startswith("tool_search_tool")
            continue
        function = _function(tool, where, dropped, result)
        if function is None:
            continue
        if tool.get("defer_loading"):
            later.append((function, where))
        else:
            result.add_function(function, where, parameters="input_schema")
    for function, where in later:
        if not searches_here or function.get("name") in wanted:
            result.add_function(function, where, parameters="input_schema")
    for where in code:
        result.add_code(where, CODE_NAME)
    return result


def _function(
    tool: Mapping[str, Any], where: str, dropped: Dropped, into: ToolSet
) -> dict[str, Any] | None:
    """A tool as chat's function; None if only code that runs elsewhere may call it."""
    fields = take(tool, MESSAGES_TOOL, where, dropped)
    if not isinstance(fields.get("input_schema"), Mapping):
        refuse(f"{where}.input_schema", "is missing; a JSON Schema object is needed")
    callers = fields.get("allowed_callers")
    if callers and callers != ["direct"]:
        dropped.add(f"{where}.allowed_callers", "allowed_callers")
        if not isinstance(callers, list) or "direct" not in callers:
            into.leave_out("", where, dropped, fields.get("name"))
            return None
    function: dict[str, Any] = {"name": fields.get("name")}
    if fields.get("description") is not None:
        function["description"] = fields["description"]
    function["parameters"] = fields["input_schema"]
    if fields.get("strict") is not None:
        function["strict"] = fields["strict"]
    return function


def read_choice(
    choice: Mapping[str, Any] | None, tools: ToolSet, dropped: Dropped
) -> dict[str, Any]:
    """A tool_choice as chat's tool_choice and parallel_tool_calls."""
    if choice is None:
        return {}
    fields = take(choice, TOOL_CHOICE_TABLE, "tool_choice", dropped)
    kind = fields.get("type")
    result: dict[str, Any] = {}
    if kind in ("auto", "none"):
        result["tool_choice"] = kind
    elif kind == "any":
        result["tool_choice"] = "required"
    elif kind == "tool":
        name = fields.get("name")
        if not isinstance(name, str):
            refuse("tool_choice.name", f"is {name!r}; a string is needed")
        name = tools.prompt_name(name)
        result["tool_choice"] = {"type": "function", "function": {"name": name}}
    else:
        refuse("tool_choice.type", f"is {kind!r}; allowed: auto, none, any, tool")
    if fields.get("disable_parallel_tool_use"):
        result["parallel_tool_calls"] = False
    return result
