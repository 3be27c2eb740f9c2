"""Which request fields are supported, inert or refused: one table, so that nothing is ignored.

A request field is exactly one of
- supported: declared on the request's model in `chat.py`, `completions.py`, `responses.py` or
  `messages.py`;
- inert (INERT): it cannot change the answer, so it is accepted and dropped;
- refused (REFUSED): known elsewhere and able to change the answer, but not supported here. The
  values listed beside it ask for nothing and are accepted; null always is;
- unknown: refused by name.

INERT and REFUSED here are of the two completions endpoints; the others have their own beside their
models. `endpoint_fields.py` has all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic

from lingflash.core.errors import InvalidRequestError, refuse

ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)

# Field to what it is for.
INERT: dict[str, str] = {
    "user": "an end user's name, for abuse reports",
    "safety_identifier": "the same, hashed",
    "metadata": "labels for stored answers",
    "store": "whether to keep the answer; nothing is kept",
    "prompt_cache_key": "routing hint for a prefix cache; ours needs none",
    "prompt_cache_retention": "how long to keep a prefix cached",
    "prompt_cache_options": "options of the prefix cache",
    "service_tier": "price and priority class",
    "session_id": "routing hint",
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
    "regex": _moved("regex"),
    "ebnf": _moved("grammar", " (in Lark's syntax)"),
    "grammar": _moved("grammar", " (in Lark's syntax)"),
    "json_schema": _moved("json"),
    "reasoning": Refusal(_NEVER + "; use reasoning_effort"),
    "functions": Refusal("is deprecated and not supported; use tools"),
    "function_call": Refusal("is deprecated and not supported; use tool_choice"),
    "audio": Refusal(_NEVER + "; this model reads and writes text"),
    "modalities": Refusal(_NEVER + "; this model writes text", (["text"],)),
    "prediction": Refusal(_NEVER),
    "web_search_options": Refusal(_NEVER),
    "verbosity": Refusal(_NEVER),
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
    """What an endpoint knows besides its model's fields."""

    inert: Mapping[str, str]
    refused: Mapping[str, Refusal]


COMPLETIONS_TABLE = FieldTable(INERT, REFUSED)


def parse_request(model: type[ModelT], body: Any, table: FieldTable = COMPLETIONS_TABLE) -> ModelT:
    """Check a decoded JSON body against the table and a request model.

    Args:
        model: the request's pydantic model, strict and without extra fields.

    Raises:
        InvalidRequestError: something is wrong; `param` names the field.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequestError("The request body must be a JSON object.")
    fields: dict[str, Any] = {}
    for name, value in body.items():
        if name in model.model_fields:
            fields[name] = value
            continue
        if name in table.inert:
            continue
        refusal = table.refused.get(name)
        if refusal is None:
            raise InvalidRequestError(
                f"The field {name!r} is not known; remove it. What is not known would be ignored, "
                "and that could change the answer unnoticed.",
                param=name,
            )
        if value is not None and not any(
            value == harmless and type(value) is type(harmless) for harmless in refusal.harmless
        ):
            raise InvalidRequestError(f"{name} {refusal.because}.", param=name)
    try:
        return model.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _to_request_error(error) from None


def check_keys(block: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Refuse keys of an object inside a request that are not known.

    Raises:
        InvalidRequestError: there is one; it is named as `where.key`.
    """
    for key in block:
        if key not in known:
            refuse(f"{where}.{key}", f"is not a known field; known: {', '.join(known)}")


_UNION_TAGS = frozenset(("str", "int", "float", "bool", "dict", "constrained-str"))


def _to_request_error(error: pydantic.ValidationError) -> InvalidRequestError:
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
        elif part not in _UNION_TAGS and "[" not in part:
            param += f".{part}"
    problem = first["msg"].removeprefix("Value error, ")
    return InvalidRequestError(f"{param}: {problem}.".replace("..", "."), param=param or None)
