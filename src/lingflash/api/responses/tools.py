"""The tools of a Responses request, and what its tool_choice asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lingflash.core.errors import refuse
from lingflash.protocol.containers import AUTO_CONTAINER, CODE_TOOL_TABLE
from lingflash.protocol.fields import Dropped, take
from lingflash.protocol.history_fields import (
    NAMESPACE,
    RESPONSES_CUSTOM_TOOL,
    RESPONSES_FUNCTION,
)
from lingflash.text.tools import CODE_TOOL, ToolSet, tool_type


def add_tools(
    tools: Sequence[Any],
    into: ToolSet,
    dropped: Dropped,
    where: str = "tools",
    *,
    namespace: str | None = None,
    introduction: str | None = None,
    runs_code: bool = False,
) -> None:
    """Read function, custom and namespace tools; the others cannot run here.

    Args:
        where: the field that they came in.
        runs_code: code_interpreter can; it is `read_code_tool`'s.
        namespace: that they are in.
        introduction: of the namespace, which the first of its tools tells the model.

    Raises:
        InvalidRequestError: one is malformed.
    """
    for i, tool in enumerate(tools):
        here = f"{where}[{i}]"
        kind = tool_type(tool, here)
        if kind == "namespace" and namespace is None:
            _add_namespace(tool, into, dropped, here)
            continue
        if kind == CODE_TOOL and runs_code:
            continue
        if kind not in ("function", "custom"):
            into.leave_out(kind, here, dropped, tool.get("server_label"))
            continue
        table = RESPONSES_FUNCTION if kind == "function" else RESPONSES_CUSTOM_TOOL
        fields = take(tool, table, here, dropped)
        fields.pop("type")
        if fields.get("description") is None:
            fields.pop("description", None)
        if not _is_callable(fields.pop("allowed_callers", None), here, dropped):
            into.leave_out("", here, dropped, fields.get("name"))
            continue
        if introduction is not None and i == 0:
            described = str(fields.get("description", ""))
            fields["description"] = f"[{namespace}: {introduction}] {described}".rstrip()
        if kind == "function":
            into.add_function(fields, here, namespace=namespace)
        else:
            into.add_custom(fields, here, namespace=namespace)


def read_code_tool(tools: Sequence[Any], into: ToolSet, dropped: Dropped) -> str | None:
    """Add code_interpreter, if it is among the tools; call it when all others are there.

    Returns:
        The container that it names, if it names one.

    Raises:
        InvalidRequestError: it is malformed, or there are two.
    """
    container_id = None
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if tool_type(tool, where) != CODE_TOOL:
            continue
        fields = take(tool, CODE_TOOL_TABLE, where, dropped)
        container = fields.get("container")
        if isinstance(container, Mapping):
            if container.get("type") != "auto":
                refuse(f"{where}.container.type", f"is {container.get('type')!r}; allowed: 'auto'")
            take(container, AUTO_CONTAINER, f"{where}.container", dropped)
        elif not isinstance(container, str) or not container:
            refuse(
                f"{where}.container",
                f'is {container!r}; a container\'s id is needed, or {{"type": "auto"}}',
            )
        else:
            container_id = container
        if _is_callable(fields.get("allowed_callers"), where, dropped):
            into.add_code(where)
        else:
            into.leave_out(CODE_TOOL, where, dropped)
    return container_id


def _add_namespace(tool: Mapping[str, Any], into: ToolSet, dropped: Dropped, where: str) -> None:
    fields = take(tool, NAMESPACE, where, dropped)
    name, tools = fields.get("name"), fields.get("tools")
    if not isinstance(name, str) or not name:
        refuse(f"{where}.name", f"is {name!r}; a non-empty string is needed")
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        refuse(f"{where}.tools", f"is {type(tools).__name__}; a list of tools is needed")
    introduction = fields.get("description")
    if not isinstance(introduction, str | None):
        refuse(f"{where}.description", "must be a string")
    add_tools(
        tools,
        into,
        dropped,
        f"{where}.tools",
        namespace=name,
        introduction=introduction or None,
    )


def _is_callable(callers: Any, where: str, dropped: Dropped) -> bool:
    """Whether the model itself may call a tool, and not only code that runs elsewhere."""
    if not callers or callers == ["direct"]:
        return True
    dropped.add(f"{where}.allowed_callers", "allowed_callers")
    return isinstance(callers, list) and "direct" in callers


def read_choice(choice: Any, tools: ToolSet) -> Any:
    """A tool_choice in chat's form, the name one level deeper, and with the prompt's names."""
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") == "allowed_tools":
        listed = choice.get("tools")
        if isinstance(listed, Sequence) and not isinstance(listed, str):
            listed = [_choice_of_one(tool, tools) for tool in listed]
        allowed = {"mode": choice.get("mode"), "tools": listed}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return _choice_of_one(choice, tools)


def _choice_of_one(choice: Any, tools: ToolSet) -> Any:
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == CODE_TOOL and tools.code is not None:
        return {"type": "function", "function": {"name": tools.code.name}}
    if kind not in ("function", "custom") or not isinstance(choice.get("name"), str):
        return choice
    name, namespace = choice["name"], choice.get("namespace")
    prompt_name = tools.prompt_name(name, namespace if isinstance(namespace, str) else None)
    tool = tools.called(prompt_name)
    return {"type": kind, kind: {"name": prompt_name if tool is None else tool.name}}
