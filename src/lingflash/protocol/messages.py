"""Wire schemas of /v1/messages (Anthropic's API), its field table and its errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lingflash.protocol.chat import MAX_STOP_STRINGS, StopString
from lingflash.protocol.errors import ErrorDialect, WireError, object_schema
from lingflash.protocol.fields import FieldTable, Refusal

_NEVER = "is not supported"

_INERT = {
    "cache_control": "where to cache the prompt; the prefix cache needs no marks",
    "metadata": "an opaque user id, for abuse reports",
    "service_tier": "price and priority class",
    "inference_geo": "where to compute",
    "user_profile_id": "whose profile to bill",
    "workspace_id": "whose workspace to bill",
    "diagnostics": "asks why a prompt cache missed",
    "billing_policy": "how to bill",
    "betas": "which drafts of the API the client knows",
    "mcp_servers": "tools of servers that are not asked here",
    "client_metadata": "labels and trace data",
}
_REFUSED = {
    "container": Refusal(_NEVER + "; code that an answer runs has a container of its own"),
    "speed": Refusal(_NEVER + " with another value than 'standard'", ("standard",)),
    "compaction": Refusal(_NEVER + "; send a shorter conversation"),
    "fallbacks": Refusal(_NEVER, ([],)),
    "fallback_credit_token": Refusal(_NEVER),
    "thread": Refusal(_NEVER + "; send the whole conversation"),
    "output_format": Refusal(_NEVER + "; use output_config.format"),
    "max_completion_tokens": Refusal(_NEVER + "; use max_tokens"),
    "stop": Refusal(_NEVER + "; use stop_sequences"),
}
MESSAGES_TABLE = FieldTable(
    inert=_INERT,
    refused=_REFUSED,
    options={
        "thinking": FieldTable(
            known=("type",),
            inert={
                "budget_tokens": "how much to think; the model decides",
                "display": "how to show the thinking; it is sent whole",
                "block_binding": "checks of signatures, of which there are none",
            },
        ),
        "output_config": FieldTable(
            known=("format", "effort"),
            refused={"task_budget": Refusal(_NEVER + "; use max_tokens")},
        ),
        "context_management": FieldTable(known=("edits",)),
    },
)
TOOL_CHOICE_TABLE = FieldTable(known=("type", "name", "disable_parallel_tool_use"))
FORMAT_TABLE = FieldTable(known=("type", "schema"))
EDIT_TABLE = FieldTable(known=("type", "keep"))


class _Conversation(BaseModel):
    """What a message and a count of its tokens have in common."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(description="a name from /v1/models")
    messages: list[dict[str, Any]] = Field(
        description="roles user, assistant and system; content a string or blocks: text, "
        "tool_use, tool_result, thinking"
    )
    system: str | list[dict[str, Any]] | None = Field(None, description="a text or text blocks")
    tools: list[dict[str, Any]] | None = Field(
        None, description="tools with an input_schema; others are not offered"
    )
    tool_choice: dict[str, Any] | None = Field(None, description="type auto, none, any or tool")
    thinking: dict[str, Any] | None = Field(
        None, description="type disabled is off; enabled and adaptive are on"
    )
    output_config: dict[str, Any] | None = Field(
        None, description="format: a JSON schema; effort is accepted and has no effect"
    )
    context_management: dict[str, Any] | None = Field(
        None, description="only clear_thinking, since earlier thinking is never in the prompt"
    )


class MessagesRequest(_Conversation):
    """Body of POST /v1/messages."""

    max_tokens: int = Field(description="most tokens of the answer")
    stop_sequences: list[StopString] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    return_cache_report: bool | None = Field(
        None, description="add to the usage why no more of the prompt was found in the cache"
    )
    timeout: float | None = Field(
        None, gt=0, description="seconds after which the request ends with an error"
    )

    @field_validator("stop_sequences")
    @classmethod
    def _few_stop_strings(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(value) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings are allowed")
        return value


class CountTokensRequest(_Conversation):
    """Body of POST /v1/messages/count_tokens."""


# HTTP status to Anthropic's word for the class.
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _messages_error(error: WireError) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(error.status, "api_error")
    fields: dict[str, Any] = {"type": kind, "message": error.message}
    if error.param is not None:
        fields["param"] = error.param  # ours; Anthropic's clients pass over it
    if error.param == "thread":
        # What Anthropic's clients wait for to go on with whole conversations.
        fields["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return {"type": "error", "error": fields}


_STRING = {"type": "string"}
_FIELDS = object_schema({"type": _STRING, "message": _STRING, "param": _STRING}, "param")
ANTHROPIC_ERRORS = ErrorDialect(
    "MessagesError",
    object_schema({"type": {"const": "error"}, "error": _FIELDS}),
    _messages_error,
    id_header="request-id",
)
