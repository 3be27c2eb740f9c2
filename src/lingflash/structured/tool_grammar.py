"""The grammar of an answer that may call tools.

    [reasoning] then text, or a fixed form of answer, or calls

Tags are special tokens: in Lark they are names in angle brackets, never quoted, and text in a
grammar cannot produce them. Text that spells a tag in letters would be read as a call that nobody
checked, so it is excluded too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lingflash.core.types import GrammarSpec
from lingflash.structured.json_schema import prepare_schema, refuse, refuse_long, to_json
from lingflash.structured.json_text import text_call_rules
from lingflash.structured.relax import relax_schema

Calls = Literal["none", "allowed", "required"]

_ANYTHING = {"type": "object"}


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool that may be called.

    Args:
        parameters: JSON Schema of the arguments; None takes any object.
        where: the field that the schema came in, for messages.
        strict: the schema is kept to the letter or refused; else what cannot be enforced is left
            to the model.
        form: of a custom tool's text, which is the one argument.
    """

    name: str
    parameters: Mapping[str, Any] | None
    where: str
    strict: bool = True
    form: GrammarSpec | None = None


def answer_spec(
    *,
    tools: Sequence[CallableTool] = (),
    calls: Calls = "none",
    parallel: bool = True,
    form: GrammarSpec | None = None,
    form_param: str = "response_format",
    reasoning: bool = False,
) -> GrammarSpec:
    """Describe a whole answer.

    Args:
        calls: whether there must be calls.
        form: of an answer without calls; None takes any text.
        form_param: the field that it came in, for messages.
        reasoning: it may begin with a `<think>` block.

    Raises:
        InvalidRequestError: a schema cannot be enforced, or the form cannot stand beside calls.
    """
    if form is not None and form.kind == "lark" and (calls != "none" or reasoning):
        refuse(
            "structured_outputs.grammar",
            "cannot be combined with tool calls or reasoning; set tool_choice to 'none', leave "
            "reasoning_effort out, or use json, regex or choice",
        )
    dropped: list[str] = []
    described: list[dict[str, Any]] = []
    for tool in tools if calls != "none" else ():
        parameters = tool.parameters
        if parameters is not None and not tool.strict:
            parameters, left_out = _relaxed(parameters, tool.where)
            dropped += left_out
        described.append(
            {
                "name": tool.name,
                "parameters": parameters,
                "where": tool.where,
                "strict": tool.strict,
                **({} if tool.form is None else {"form": [tool.form.kind, tool.form.text]}),
            }
        )
    body = {
        "tools": described,
        "calls": calls,
        "parallel": parallel,
        "form": None if form is None else [form.kind, form.text, form_param],
        "reasoning": reasoning,
    }
    return GrammarSpec("answer", json.dumps(body), tuple(dropped))


def _relaxed(parameters: Any, where: str) -> tuple[dict[str, Any] | None, list[str]]:
    """A tool's schema without what cannot be enforced, and what that was."""
    if not isinstance(parameters, Mapping):
        refuse(where, f"is {type(parameters).__name__}; a JSON Schema object is needed")
    refuse_long(json.dumps(parameters), where)
    types = parameters.get("type", "object")
    if isinstance(types, list) and "object" in types:  # and arguments are always an object
        parameters = {**parameters, "type": "object"}
    return relax_schema(parameters, where)


def answer_rules(text: str, form_rule: str | None) -> str:
    """Write the Lark rules of an answer.

    Args:
        text: of a spec of the kind "answer".
        form_rule: the right side of the rule for its form, if it has one.

    Raises:
        InvalidRequestError: a tool's schema cannot be enforced.
    """
    body = json.loads(text)
    calls, rules = body["calls"], []
    more = '("\\n" call)*' if body["parallel"] else ""
    if calls == "required":
        answer = f"call {more}"
    elif form_rule is not None:
        rules.append(f"form: {form_rule}")
        answer = f"form | call {more}" if calls == "allowed" else "form"
    elif calls == "allowed":
        answer = "TEXT? (call TEXT?)*" if body["parallel"] else "TEXT? call?"
    else:
        answer = "TEXT?"
    if "TEXT" in answer:
        rules.append("TEXT: /(.|\\n)+/ & ~/(.|\\n)*<\\/?tool_call>(.|\\n)*/")
    if body["reasoning"]:
        rules.append('reasoning: "\\n"? <think> THOUGHT </think> /\\n*/')
        rules.append("THOUGHT: /(.|\\n)+/ & ~/(.|\\n)*<\\/think>(.|\\n)*/")
        rules.insert(0, "start: reasoning? answer")
    else:
        rules.insert(0, "start: answer")
    rules.insert(1, f"answer: {answer}")
    if "call" in answer:
        names = [f"call_{i}" for i in range(len(body["tools"]))]
        rules.append('call: <tool_call> "\\n" (' + " | ".join(names) + ') "\\n" </tool_call>')
        for name, tool in zip(names, body["tools"], strict=True):
            rules.append(call_rules(tool, name))
    return "\n".join(rules) + "\n"


def call_rules(tool: Mapping[str, Any], name: str = "start") -> str:
    """The Lark rule of one call, and those that it needs.

    Args:
        name: of the rule.

    Raises:
        InvalidRequestError: the parameters, or the form of the text, cannot be enforced.
    """
    if "form" in tool:
        return text_call_rules(name, tool["name"], GrammarSpec(*tool["form"]), tool["where"])
    return f"{name}: %json {to_json(call_schema(tool))}"


def call_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of one call's JSON.

    Raises:
        InvalidRequestError: the parameters cannot be enforced.
    """
    where = tool["where"]
    parameters = prepare_schema(tool["parameters"] or _ANYTHING, where)
    options = parameters.pop("x-guidance")
    if parameters.setdefault("type", "object") != "object":
        refuse(where, f"has the type {parameters['type']!r}; arguments are of the type 'object'")
    # References count from the whole schema's root, so the definitions move there.
    shared = {key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters}
    if '"$ref": "#' in to_json([parameters, shared]):
        _move_references(parameters)
        _move_references(shared)
    return {
        "type": "object",
        "properties": {"name": {"const": tool["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **shared,
        "x-guidance": options,
    }


def _move_references(value: Any) -> None:
    """Point what refers to the arguments' root, or below it, to where that is now."""
    if isinstance(value, list):
        for part in value:
            _move_references(part)
    elif isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str) and not reference.startswith(("#/$defs/", "#/definitions/")):
            value["$ref"] = "#/properties/arguments" + reference.removeprefix("#")
        for part in value.values():
            _move_references(part)
