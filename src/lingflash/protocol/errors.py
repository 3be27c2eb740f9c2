"""How an error is written: OpenAI's envelope, and what another dialect must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WireError:
    """What there is to say of an error, in no dialect yet.

    Args:
        status: HTTP status.
        type: OpenAI's class of error, such as invalid_request_error.
        param: the request field at fault.
        code: a stable word for the error.
    """

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorDialect:
    """How the clients of some paths expect errors.

    Args:
        id_header: a further header for the request's id.
    """

    name: str
    schema: dict[str, Any]
    write: Callable[[WireError], dict[str, Any]]
    id_header: str | None = None


def _openai_error(error: WireError) -> dict[str, Any]:
    code = error.code
    if code == "not_found" and error.param == "model":
        code = "model_not_found"  # OpenAI's word, which clients look for
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": code}
    return {"error": fields}


def object_schema(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    """JSON Schema of an object that has these, all but the optional ones always."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


_STRING, _NULLABLE = {"type": "string"}, {"type": ["string", "null"]}
_FIELDS = {"message": _STRING, "type": _STRING, "param": _NULLABLE, "code": _NULLABLE}
OPENAI_ERRORS = ErrorDialect(
    "Error", object_schema({"error": object_schema(_FIELDS)}), _openai_error
)
