"""The tools of a conversation: what the model is shown of each, and the way back to its name.

A model calls a tool by the one name that the prompt has for it. A tool of a namespace has a name of
its own in it, and two namespaces may share one; in the prompt it is `namespace.name`. A custom tool
takes free text: in the prompt it is a function with one string, and answers are translated back. So
it is with code that the server runs itself, which in the prompt is `python`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lingflash.core.errors import refuse
from lingflash.core.types import GrammarSpec
from lingflash.protocol.fields import Dropped, FieldTable, take
from lingflash.protocol.history_fields import (
    CHAT_TOOL,
    CUSTOM_TOOL,
    FUNCTION,
    TOOL_NOT_OFFERED,
)
from lingflash.text.messages import CUSTOM_ARGUMENT

ToolKind = Literal["function", "custom", "code"]

CODE_TOOL = "code_interpreter"
"""The type of the tool whose code the server runs, in requests."""
# What models are trained on: in the prompt it has this name, this description, this argument.
_CODE_NAME = "python"
_CODE_ARGUMENT = "code"
_CODE_DESCRIPTION = "Run Python code and return what it prints."


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One tool that the model is offered.

    Args:
        name: in the prompt.
        own_name: what its client calls it.
        function: what the template writes of it.
        strict: calls follow its schema, or its form, to the letter.
        form: of a custom tool's text; None takes any.
        where: the request field of its schema or form, for messages.
    """

    name: str
    own_name: str
    function: dict[str, Any]
    where: str
    namespace: str | None = None
    kind: ToolKind = "function"
    strict: bool = False
    form: GrammarSpec | None = None

    @property
    def text_argument(self) -> str | None:
        """The one argument in which a call's text is written; None of a function."""
        return {"function": None, "custom": CUSTOM_ARGUMENT, "code": _CODE_ARGUMENT}[self.kind]


class ToolSet:
    """Tools in the order of the prompt."""

    def __init__(self) -> None:
        self._by_name: dict[str, Tool] = {}
        self._by_own: dict[tuple[str | None, str], Tool] = {}
        self._not_offered: set[str] = set()

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def has_texts(self) -> bool:
        """Whether a call may be of free text."""
        return any(tool.text_argument is not None for tool in self)

    @property
    def code(self) -> Tool | None:
        """The one whose code the server runs."""
        return next((tool for tool in self if tool.kind == "code"), None)

    @property
    def definitions(self) -> list[dict[str, Any]] | None:
        """What the template writes; None without tools."""
        found = [{"type": "function", "function": tool.function} for tool in self]
        return found or None

    @property
    def grammar_tools(self) -> list[dict[str, Any]]:
        """What a grammar needs to know of them; see structured/answer_form.py."""
        return [
            {
                "function": {**tool.function, "strict": tool.strict},
                "where": tool.where,
                "form": tool.form,
            }
            for tool in self
        ]

    def add_function(
        self,
        fields: Mapping[str, Any],
        where: str,
        *,
        parameters: str = "parameters",
        namespace: str | None = None,
    ) -> None:
        """Add a function tool.

        Args:
            fields: name, description, parameters, strict; the template writes them in this order.
            where: the place of these fields.
            parameters: the dialect's name of that field.

        Raises:
            InvalidRequestError: a field is malformed, or the name is taken.
        """
        name = _checked_name(fields, where)
        for key, value in fields.items():
            if key == "strict" and not isinstance(value, bool | None):
                refuse(f"{where}.strict", f"is {value!r}; true or false is needed")
            elif key == "description" and not isinstance(value, str | None):
                refuse(f"{where}.description", "must be a string")
            elif key == "parameters" and not isinstance(value, Mapping | None):
                refuse(f"{where}.{parameters}", "must be a JSON Schema object")
        self._add(
            Tool(
                name=self._prompt_name(namespace, name),
                own_name=name,
                namespace=namespace,
                function={key: value for key, value in fields.items() if key != "strict"},
                strict=bool(fields.get("strict")),
                where=f"{where}.{parameters}",
            ),
            where,
        )

    def add_custom(
        self, fields: Mapping[str, Any], where: str, *, namespace: str | None = None
    ) -> None:
        """Add a custom tool.

        Args:
            fields: name, description, format.

        Raises:
            InvalidRequestError: a field is malformed, or the name is taken.
        """
        name = _checked_name(fields, where)
        form, told = _read_format(fields.get("format"), f"{where}.format")
        description = fields.get("description")
        if not isinstance(description, str | None):
            refuse(f"{where}.description", "must be a string")
        function: dict[str, Any] = {"name": name}
        if description is not None:
            function["description"] = description
        function["parameters"] = {
            "type": "object",
            "properties": {CUSTOM_ARGUMENT: {"type": "string", "description": told}},
            "required": [CUSTOM_ARGUMENT],
        }
        self._add(
            Tool(
                name=self._prompt_name(namespace, name),
                own_name=name,
                namespace=namespace,
                kind="custom",
                function=function,
                strict=form is not None,
                form=form,
                where=f"{where}.format",
            ),
            where,
        )

    def add_code(self, where: str, own_name: str = CODE_TOOL) -> None:
        """Add the tool whose code the server runs, after all others.

        Args:
            own_name: its dialect's.

        Raises:
            InvalidRequestError: there is one already.
        """
        parameters = {
            "type": "object",
            "properties": {_CODE_ARGUMENT: {"type": "string"}},
            "required": [_CODE_ARGUMENT],
        }
        name = _CODE_NAME if _CODE_NAME not in self._by_name else CODE_TOOL
        function = {"name": name, "description": _CODE_DESCRIPTION, "parameters": parameters}
        tool = Tool(name=name, own_name=own_name, kind="code", function=function, where=where)
        self._add(tool, where)

    def leave_out(self, kind: str, where: str, dropped: Dropped, name: Any = None) -> None:
        """Note a tool that cannot run here, so it is not offered."""
        dropped.add(where, TOOL_NOT_OFFERED)
        self._not_offered.add(kind)
        if isinstance(name, str):
            self._not_offered.add(name)

    def is_left_out(self, name: object) -> bool:
        """Whether this is the type or the name of a tool that cannot run here."""
        return isinstance(name, str) and name in self._not_offered

    def prompt_name(self, name: str, namespace: str | None = None) -> str:
        """The prompt's name of a tool, which may be none of these any more."""
        tool = self._by_own.get((namespace, name))
        if tool is not None:
            return tool.name
        return name if namespace is None else f"{namespace}.{name}"

    def code_call(self, code: str) -> tuple[str, dict[str, str]]:
        """The prompt's name and arguments of a call that ran code, be it offered or not."""
        return _CODE_NAME if self.code is None else self.code.name, {_CODE_ARGUMENT: code}

    def called(self, name: str) -> Tool | None:
        """The tool that the model means by a name.

        Models cut or join the two halves of a name in other ways than it was shown; that is meant
        if only one tool fits.
        """
        tool = self._by_name.get(name)
        if tool is not None:
            return tool
        fitting = [
            tool
            for tool in self
            if tool.namespace is not None
            and name in (tool.own_name, f"{tool.namespace}__{tool.own_name}")
        ]
        return fitting[0] if len(fitting) == 1 else None

    def is_custom(self, name: str) -> bool:
        """Whether the tool that the model means by a name takes free text."""
        tool = self.called(name)
        return tool is not None and tool.kind == "custom"

    def _prompt_name(self, namespace: str | None, name: str) -> str:
        if namespace is None:
            return name
        joined = f"{namespace}.{name}"
        while joined in self._by_name:
            joined += "_"
        return joined

    def _add(self, tool: Tool, where: str) -> None:
        key = tool.namespace, tool.own_name
        if key in self._by_own or tool.name in self._by_name:
            refuse(f"{where}.name", f"{tool.own_name!r} is defined twice; names must differ")
        if tool.function["name"] != tool.name:
            tool.function["name"] = tool.name
        self._by_own[key] = self._by_name[tool.name] = tool


def read_chat_tools(tools: Any, dropped: Dropped) -> ToolSet:
    """Read chat's `tools`.

    Raises:
        InvalidRequestError: something is wrong; `param` says where, such as
        `tools[0].function.name`.
    """
    found = ToolSet()
    if tools is None:
        return found
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        refuse("tools", f"is {type(tools).__name__}; a list of tools is needed")
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        kind = tool_type(tool, where)
        if kind not in ("function", "custom"):
            found.leave_out(kind, where, dropped)
            continue
        given = take(tool, CHAT_TOOL, where, dropped)
        table = FUNCTION if kind == "function" else CUSTOM_TOOL
        fields = _inner(given.get(kind), table, f"{where}.{kind}", dropped)
        if kind == "function":
            found.add_function(fields, f"{where}.function")
        else:
            found.add_custom(fields, f"{where}.custom")
    return found


def normalize_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Check chat's tool definitions; return them as the template writes them, or None.

    Raises:
        InvalidRequestError: see read_chat_tools.
    """
    return read_chat_tools(tools, Dropped()).definitions


def tool_type(tool: Any, where: str) -> str:
    """A tool's type.

    Raises:
        InvalidRequestError: it is no object, or has none.
    """
    if not isinstance(tool, Mapping):
        refuse(where, "must be an object with a type")
    kind = tool.get("type")
    if not isinstance(kind, str) or not kind:
        refuse(f"{where}.type", f"is {kind!r}; a string such as 'function' is needed")
    return kind


def _inner(fields: Any, table: FieldTable, where: str, dropped: Dropped) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        refuse(where, f"must be an object with {', '.join(table.known)}")
    return take(fields, table, where, dropped)


def _checked_name(fields: Mapping[str, Any], where: str) -> str:
    name = fields.get("name")
    if not isinstance(name, str) or not name:
        refuse(f"{where}.name", f"is {name!r}; a non-empty string is needed")
    return name


def _read_format(form: Any, where: str) -> tuple[GrammarSpec | None, str]:
    """A custom tool's format, and what the model is told of it."""
    any_text = "The tool's input, which is free text."
    if form is None:
        return None, any_text
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return None, any_text
    if kind != "grammar":
        refuse(f"{where}.type", f"is {kind!r}; allowed: 'text', 'grammar'")
    # Chat has one object more than Responses.
    inner = form.get("grammar", form)
    if inner is not form:
        where += ".grammar"
    if not isinstance(inner, Mapping):
        refuse(where, "must be an object with syntax and definition")
    syntax, definition = inner.get("syntax"), inner.get("definition")
    if syntax not in ("lark", "regex"):
        refuse(f"{where}.syntax", f"is {syntax!r}; allowed: 'lark', 'regex'")
    if not isinstance(definition, str) or not definition:
        refuse(f"{where}.definition", f"is {definition!r}; a non-empty string is needed")
    told = f"The tool's input: text that follows this grammar ({syntax}):\n{definition}"
    return GrammarSpec("lark" if syntax == "lark" else "regex", definition), told
