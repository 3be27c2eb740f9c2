"""From request fields to the grammar of the answer: response_format, structured_outputs, tools.

A form of answer and a strict tool are enforced to the letter or refused. Of a tool that is not
strict, what can be enforced is, where a call is required; what is left to the model is named in the
grammar's `dropped`. With tool_choice "auto", tools that are not strict, and nothing else asked for,
the model is free (and its calls are only parsed).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lingflash.core.types import GrammarSpec
from lingflash.structured.json_schema import refuse
from lingflash.structured.tool_grammar import CallableTool, answer_spec

_NO_PARAMETERS = {"type": "object", "properties": {}}
_FORMS = ("json", "regex", "choice", "grammar")


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What tool_choice says.

    Args:
        mode: whether there may or must be calls.
        names: tools that may be called; None are all.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    names: tuple[str, ...] | None = None


def read_structured_outputs(value: Any, where: str = "structured_outputs") -> GrammarSpec:
    """Read {"json": ...}, {"regex": ...}, {"choice": ...} or {"grammar": ...}.

    Raises:
        InvalidRequestError: it is none of them.
    """
    known = ", ".join(_FORMS)
    if not isinstance(value, Mapping):
        refuse(where, f"is {type(value).__name__}; an object with one of {known} is needed")
    for key in value:
        if key not in _FORMS:
            refuse(f"{where}.{key}", f"is not known; allowed: {known}")
    given = [key for key in _FORMS if value.get(key) is not None]
    if len(given) != 1:
        refuse(where, f"holds {', '.join(given) or 'nothing'}; give exactly one of {known}")
    key, form = given[0], value[given[0]]
    if key == "json":
        if isinstance(form, str):
            return GrammarSpec("json_schema", form)
        if not isinstance(form, Mapping | bool):
            refuse(f"{where}.json", f"is {type(form).__name__}; a JSON Schema is needed")
        return GrammarSpec("json_schema", json.dumps(form))
    if key == "choice":
        if not isinstance(form, list | tuple):
            refuse(f"{where}.choice", f"is {type(form).__name__}; a list of strings is needed")
        return GrammarSpec("choice", json.dumps(list(form)))
    if not isinstance(form, str) or not form:
        refuse(f"{where}.{key}", f"is {form!r}; a non-empty string is needed")
    return GrammarSpec("regex" if key == "regex" else "lark", form)


def form_field(response_format: Any, structured_outputs: Any) -> str | None:
    """The request field that holds the form of the answer, as precisely as it can be named."""
    if isinstance(structured_outputs, Mapping):
        given = [key for key in _FORMS if structured_outputs.get(key) is not None]
        return f"structured_outputs.{given[0]}" if given else "structured_outputs"
    if isinstance(response_format, Mapping) and response_format.get("type") == "json_schema":
        return "response_format.json_schema.schema"
    return None


def read_response_format(value: Any) -> GrammarSpec | None:
    """Read OpenAI's response_format; None for text.

    Raises:
        InvalidRequestError: it is not one of text, json_object, json_schema.
    """
    where = "response_format"
    kind = value.get("type") if isinstance(value, Mapping) else None
    allowed = {"text": (), "json_object": (), "json_schema": ("json_schema",)}
    if kind not in allowed:
        known = "'text', 'json_object', 'json_schema'"
        refuse(f"{where}.type", f"is {kind!r}; allowed: {known}")
    for key in value:
        if key != "type" and key not in allowed[kind]:
            refuse(f"{where}.{key}", f"is not a known field with the type {kind!r}")
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarSpec("json_object")
    outer = value.get("json_schema")
    where += ".json_schema"
    if not isinstance(outer, Mapping):
        refuse(where, "is missing; an object with name and schema is needed")
    for key in outer:
        if key not in ("name", "schema", "strict", "description"):
            refuse(f"{where}.{key}", "is not known; allowed: name, description, schema, strict")
    if not isinstance(outer.get("name"), str) or not outer["name"]:
        refuse(f"{where}.name", f"is {outer.get('name')!r}; a non-empty string is needed")
    if not isinstance(outer.get("strict"), bool | None):
        refuse(f"{where}.strict", "must be true or false")
    if not isinstance(outer.get("schema"), Mapping):
        refuse(f"{where}.schema", "is missing; a JSON Schema object is needed")
    return GrammarSpec("json_schema", json.dumps(outer["schema"]))


def read_tool_choice(value: Any, names: Sequence[str]) -> ToolChoice:
    """Read OpenAI's tool_choice.

    Raises:
        InvalidRequestError: it has another form, or names a tool that is not there.
    """
    where = "tool_choice"
    if value is None:
        return ToolChoice()
    if value in ("auto", "none"):
        return ToolChoice(value)
    if (value == "required" or isinstance(value, Mapping)) and not names:
        refuse(where, "asks for calls, but tools is empty; give tools or leave it out")
    if value == "required":
        return ToolChoice("required")
    kinds = ("function", "custom", "allowed_tools")
    if not isinstance(value, Mapping) or value.get("type") not in kinds:
        given = value.get("type") if isinstance(value, Mapping) else value
        refuse(
            where,
            f"is {given!r}; allowed: 'auto', 'none', 'required', "
            '{"type": "function", "function": {"name": ...}}, {"type": "allowed_tools", ...}',
        )
    if value["type"] != "allowed_tools":
        return ToolChoice("required", (_named(value, names, where),))
    allowed = value.get("allowed_tools")
    where += ".allowed_tools"
    if not isinstance(allowed, Mapping):
        refuse(where, "is missing; an object with mode and tools is needed")
    mode = allowed.get("mode")
    if mode not in ("auto", "required"):
        refuse(f"{where}.mode", f"is {mode!r}; allowed: 'auto', 'required'")
    tools = allowed.get("tools")
    if not isinstance(tools, list) or not tools:
        refuse(f"{where}.tools", "is empty; a list of tools is needed")
    chosen = [_named(tool, names, f"{where}.tools[{i}]") for i, tool in enumerate(tools)]
    return ToolChoice(mode, tuple(dict.fromkeys(chosen)))


def _named(tool: Any, names: Sequence[str], where: str) -> str:
    kind = "custom" if isinstance(tool, Mapping) and tool.get("type") == "custom" else "function"
    function = tool.get(kind) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        refuse(f"{where}.{kind}.name", f"is {name!r}; the name of a tool is needed")
    if name not in names:
        refuse(
            f"{where}.{kind}.name",
            f"is {name!r}, which is not among the tools: {', '.join(names)}",
        )
    return name


def answer_grammar(
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: Any = None,
    parallel_tool_calls: bool | None = None,
    response_format: Any = None,
    structured_outputs: Any = None,
    reasoning: bool = False,
) -> GrammarSpec | None:
    """The grammar that a chat request asks for; None if the model is free.

    Its `dropped` names the keywords of tools' schemas that are left to the model.

    Args:
        tools: chat's, or the `grammar_tools` of a conversation's.
        parallel_tool_calls: False allows one call.
        structured_outputs: see read_structured_outputs.
        reasoning: the answer may begin with a `<think>` block.

    Raises:
        InvalidRequestError: a field is malformed or contradicts another.
    """
    form, form_param = None, "response_format.json_schema.schema"
    if response_format is not None:
        form = read_response_format(response_format)
    if structured_outputs is not None:
        if form is not None:
            refuse("structured_outputs", "and response_format are both given; give one of them")
        form = read_structured_outputs(structured_outputs)
        form_param = form_field(response_format, structured_outputs) or form_param
    offered = [
        (tool["function"], tool.get("where", f"tools[{i}].function.parameters"), tool.get("form"))
        for i, tool in enumerate(tools or ())
    ]
    functions = [function for function, _, _ in offered]
    choice = read_tool_choice(tool_choice, [f["name"] for f in functions])
    if not functions:
        if form is None or not reasoning:
            return form
        return answer_spec(form=form, form_param=form_param, reasoning=True)
    parallel = parallel_tool_calls is not False
    is_free = parallel and form is None and choice.names is None
    if choice.mode == "auto" and is_free and not any(f.get("strict") for f in functions):
        return None
    callable_tools = [
        CallableTool(
            name=f["name"],
            parameters=(
                f.get("parameters") or _NO_PARAMETERS
                if f.get("strict") or choice.mode == "required"
                else None
            ),
            where=where,
            strict=bool(f.get("strict")),
            form=form_of_text,
        )
        for f, where, form_of_text in offered
        if choice.names is None or f["name"] in choice.names
    ]
    calls = {"auto": "allowed", "none": "none", "required": "required"}[choice.mode]
    if choice.mode == "required":
        form = None
    return answer_spec(
        tools=callable_tools,
        calls=calls,  # pyright: ignore[reportArgumentType]
        parallel=parallel,
        form=form,
        form_param=form_param,
        reasoning=reasoning,
    )
