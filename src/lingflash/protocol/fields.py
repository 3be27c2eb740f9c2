"""The rule at the door (docs/adr/0009): what becomes of each field, at every depth of a request.

A field of an object in a request (the request itself, an option, a message, a part, an item, a
tool) is exactly one of
- supported: honoured. A request's own are declared on its model, the others' in a table's `known`;
- inert: it says nothing to the model, so it is accepted, and named in the answer's header
  x-lingflash-dropped;
- refused: known elsewhere and able to change the answer, but not supported here. The values listed
  beside it ask for nothing and are accepted, and named; null and empty ones always are;
- unknown: with a value that says nothing (null, empty, false) it is accepted and named. With any
  other it is refused by name; but in what a client sends back of a history it is accepted and
  named, since what other servers and newer clients leave there is not for the model.

INERT and REFUSED here are of the two completions endpoints; the others have their own beside their
models. `endpoint_fields.py` has all of them.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import pydantic

from lingflash.core.errors import InvalidRequestError, refuse

ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)

# Field to what it is for.
INERT: dict[str, str] = {
    "user": "an end user's name, for abuse reports",
    "safety_identifier": "the same, hashed",
    "metadata": "labels for stored answers",
    "client_metadata": "the same, and trace data",
    "store": "whether to keep the answer; nothing is kept",
    "prompt_cache_key": "routing hint for a prefix cache; ours needs none",
    "prompt_cache_retention": "how long to keep a prefix cached",
    "prompt_cache_options": "options of the prefix cache",
    "service_tier": "price and priority class",
    "session_id": "routing hint",
    "web_search_options": "a hosted search, which does not run here",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a field is refused.

    Args:
        because: ends the sentence "`field` ...".
        harmless: values that ask for nothing.
    """

    because: str
    harmless: tuple[Any, ...] = ()

    def is_harmless(self, value: Any) -> bool:
        """Whether a value asks for nothing; 1, 1.0 and true are three values."""
        return any(value == each and type(value) is type(each) for each in self.harmless)


_NOT_YET = "is not supported yet"
_NEVER = "is not supported"


def _moved(key: str, note: str = "") -> Refusal:
    return Refusal(f'{_NEVER}; use structured_outputs: {{"{key}": ...}}{note}')


REFUSED: dict[str, Refusal] = {
    "guided_json": _moved("json"),
    "guided_regex": _moved("regex"),
    "guided_choice": _moved("choice"),
    "guided_grammar": _moved("grammar"),
    "guided_decoding_backend": Refusal(
        _NEVER + "; there is one, asked for with structured_outputs"
    ),
    "guided_whitespace_pattern": Refusal(_NEVER + "; see structured_outputs"),
    "ebnf": _moved("grammar", " (in Lark's syntax)"),
    "grammar": _moved("grammar", " (in Lark's syntax)"),
    "json_schema": _moved("json"),
    "functions": Refusal("is deprecated and not supported; use tools"),
    "function_call": Refusal("is deprecated and not supported; use tool_choice"),
    "audio": Refusal(_NEVER + "; this model reads and writes text"),
    "modalities": Refusal(_NEVER + "; this model writes text", (["text"],)),
    "prediction": Refusal(_NEVER),
    "verbosity": Refusal(_NEVER + " with another value than 'medium'", ("medium",)),
    "moderation": Refusal(_NEVER),
    "best_of": Refusal(_NEVER + "; use n", (1,)),
    "use_beam_search": Refusal(_NEVER, (False,)),
    "length_penalty": Refusal(_NEVER, (1, 1.0)),
    "early_stopping": Refusal(_NEVER, (False,)),
    "suffix": Refusal(_NEVER, ("",)),
    "chat_template": Refusal(_NEVER + "; templates come from the checkpoint only"),
    "documents": Refusal(_NEVER),
    "continue_final_message": Refusal(_NOT_YET, (False,)),
    "add_generation_prompt": Refusal(_NEVER + " with the value false", (True,)),
    "include_stop_str_in_output": Refusal(_NEVER, (False,)),
    "spaces_between_special_tokens": Refusal(_NEVER, (True,)),
    "truncate_prompt_tokens": Refusal(_NEVER + "; shorten the prompt"),
    "prompt_logprobs": Refusal(_NEVER + "; use /v1/completions with echo and logprobs"),
    "return_tokens_as_token_ids": Refusal(_NEVER + "; use return_token_ids", (False,)),
    "allowed_token_ids": Refusal(_NEVER),
    "bad_words": Refusal(_NEVER, ([],)),
    "logits_processors": Refusal(_NEVER),
    "priority": Refusal(_NOT_YET, (0,)),
}


@dataclass(frozen=True, slots=True)
class FieldTable:
    """What becomes of the fields of one kind of object.

    Args:
        inert: field to what it is for.
        known: supported fields; a request has them on its model instead.
        options: tables of the objects in supported fields, by field.
        drops_unknown: it is part of a history, where unknown fields say nothing.
    """

    inert: Mapping[str, str] = field(default_factory=dict[str, str])
    refused: Mapping[str, Refusal] = field(default_factory=dict[str, Refusal])
    known: tuple[str, ...] = ()
    options: Mapping[str, FieldTable] = field(default_factory=dict[str, "FieldTable"])
    drops_unknown: bool = False


_STREAM_OPTIONS = FieldTable(
    known=("include_usage", "include_obfuscation", "continuous_usage_stats", "include_progress")
)
CHAT_TABLE = FieldTable(
    INERT,
    REFUSED,
    options={
        "stream_options": _STREAM_OPTIONS,
        "reasoning": FieldTable(
            known=("effort", "enabled"),
            inert={
                "summary": "summaries are never made; the thinking itself is sent",
                "generate_summary": "older name of summary",
            },
            refused={
                "max_tokens": Refusal(_NEVER + "; use max_completion_tokens"),
                "exclude": Refusal(_NEVER, (False,)),
            },
        ),
    },
)
COMPLETIONS_TABLE = FieldTable(
    INERT,
    {**REFUSED, "reasoning": Refusal(_NEVER + "; use /v1/chat/completions")},
    options={"stream_options": _STREAM_OPTIONS},
)

MAX_PATHS = 64
MAX_HEADER_CHARS = 1024
_MAX_PATH_CHARS = 96
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]$-]")


class Dropped:
    """What was accepted without being used; it is named to the client and counted."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        # By the name in a table; a client's own words would make series without end.
        self.counts: Counter[str] = Counter()

    def add(self, path: str, name: str = "other") -> None:
        """Note one thing.

        Args:
            path: where it stands in the request, such as messages[2].parsed.
            name: a table's word for it.
        """
        self.counts[name] += 1
        if len(self._paths) < MAX_PATHS:
            self._paths.append(path)

    def header(self) -> str | None:
        """All of it in one line, the end as a count if it is much; None if there is nothing."""
        total = self.counts.total()
        line, count = "", 0
        for path in self._paths:
            safe = _UNSAFE.sub("_", path[:_MAX_PATH_CHARS])
            if len(line) + len(safe) > MAX_HEADER_CHARS:
                break
            line += (", " if line else "") + safe
            count += 1
        if count < total:
            line += f", and {total - count} more"
        return line or None


def says_nothing(value: Any) -> bool:
    """Whether a field with this value asks for nothing, whatever it is: null, empty, false."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def take(
    given: Mapping[str, Any], table: FieldTable, where: str, dropped: Dropped
) -> dict[str, Any]:
    """The supported fields of an object inside a request.

    Raises:
        InvalidRequestError: there is a field that is refused; it is named as `where.field`.
    """
    fields: dict[str, Any] = {}
    known, options = table.known, table.options
    for name, value in given.items():
        if name in known:
            if options and name in options:
                value = _take_option(value, table, name, f"{where}.{name}", dropped)
            fields[name] = value
        elif (problem := _drop(name, value, table, f"{where}.{name}", dropped)) is not None:
            refuse(f"{where}.{name}", problem or f"is not a known field; known: {', '.join(known)}")
    return fields


def _take_option(value: Any, table: FieldTable, name: str, path: str, dropped: Dropped) -> Any:
    option = table.options.get(name)
    if option is None or not isinstance(value, Mapping):
        return value
    return take(value, option, path, dropped)


def _drop(name: str, value: Any, table: FieldTable, path: str, dropped: Dropped) -> str | None:
    """Drop a field that is not supported; if it may not be, why, and "" for an unknown one."""
    if name in table.inert:
        dropped.add(path, name)
        return None
    refusal = table.refused.get(name)
    if refusal is not None:
        is_empty = value is not False and says_nothing(value)
        if not is_empty and not refusal.is_harmless(value):
            return refusal.because
        dropped.add(path, name)
        return None
    if not table.drops_unknown and not says_nothing(value):
        return ""
    dropped.add(path)
    return None


def parse_request(
    model: type[ModelT],
    body: Any,
    table: FieldTable = COMPLETIONS_TABLE,
    dropped: Dropped | None = None,
) -> ModelT:
    """Check a decoded JSON body against the table and a request model.

    Args:
        model: the request's pydantic model, strict and without extra fields.
        dropped: takes what says nothing.

    Raises:
        InvalidRequestError: something is wrong; `param` names the field.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequestError("The request body must be a JSON object.")
    dropped = Dropped() if dropped is None else dropped
    fields: dict[str, Any] = {}
    for name, value in body.items():
        info = model.model_fields.get(name)
        if info is not None:
            # An empty text, list or object is what a client writes for nothing.
            if (
                type(value) in (str, list, dict)
                and not value
                and name in _may_be_empty(model).get(type(value), ())
            ):
                dropped.add(name, name)
            else:
                fields[name] = _take_option(value, table, name, name, dropped)
        elif (problem := _drop(name, value, table, name, dropped)) is not None:
            _refuse_field(name, problem)
    try:
        return model.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _to_request_error(error, _class_names(model)) from None


@functools.cache
def _class_names(model: type[pydantic.BaseModel]) -> frozenset[str]:
    """Names of the models that a request is made of, which are for no client."""
    names: set[str] = set()
    waiting: list[Any] = [model]
    while waiting:
        each = waiting.pop()
        waiting += get_args(each)
        is_model = isinstance(each, type) and issubclass(each, pydantic.BaseModel)
        if is_model and each.__name__ not in names:
            names.add(each.__name__)
            waiting += [info.annotation for info in each.model_fields.values()]
    return frozenset(names)


@functools.cache
def _may_be_empty(model: type[pydantic.BaseModel]) -> dict[type, frozenset[str]]:
    """Optional fields that a text, a list, an object may be given for, and so an empty one."""
    found: dict[type, set[str]] = {str: set(), list: set(), dict: set()}
    for name, info in model.model_fields.items():
        if not info.is_required() and name not in _MEANT_EMPTY:
            for kind in _containers(info.annotation):
                found[kind].add(name)
    return {kind: frozenset(names) for kind, names in found.items()}


# An empty text that has tokens to be counted: none.
_MEANT_EMPTY = ("prompt",)


def _containers(annotation: Any) -> set[type]:
    origin = get_origin(annotation) or annotation
    if annotation is Any:
        return {str, list, dict}
    if origin in (str, list, dict):
        return {origin}
    if isinstance(origin, type) and issubclass(origin, pydantic.BaseModel):
        return {dict}
    if origin is Literal:
        return set()
    return {kind for part in get_args(annotation) for kind in _containers(part)}


def _refuse_field(name: str, problem: str) -> NoReturn:
    if problem:
        raise InvalidRequestError(f"{name} {problem}.", param=name)
    raise InvalidRequestError(
        f"The field {name!r} is not known; remove it. What is not known would be ignored, "
        "and that could change the answer unnoticed.",
        param=name,
    )


_UNION_TAGS = frozenset(("str", "int", "float", "bool", "dict", "constrained-str"))


def _to_request_error(
    error: pydantic.ValidationError, class_names: frozenset[str]
) -> InvalidRequestError:
    problems = error.errors(include_url=False, include_input=False)
    # A field with several forms has an error for each; the deepest is of the form that was meant.
    field = problems[0]["loc"][:1]
    first = max((p for p in problems if p["loc"][:1] == field), key=lambda p: len(p["loc"]))
    param = ""
    for part in first["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif not param:
            param = part
        elif part not in _UNION_TAGS and part not in class_names and "[" not in part:
            param += f".{part}"
    is_no_object = first["type"] in ("model_type", "model_attributes_type", "dataclass_type")
    problem = "Input should be an object" if is_no_object else first["msg"]
    problem = problem.removeprefix("Value error, ")
    return InvalidRequestError(f"{param}: {problem}.".replace("..", "."), param=param or None)
