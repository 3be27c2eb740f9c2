"""Wire schema of /v1/responses: the request, and the fields that are inert or refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lingflash.protocol.fields import Dropped, FieldTable, Refusal

MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512

# Values of `include` that are known. There is nothing to include of tools that do not run here.
CODE_OUTPUTS = "code_interpreter_call.outputs"
INCLUDABLE = ("reasoning.encrypted_content", CODE_OUTPUTS)
NOTHING_TO_INCLUDE = (
    *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
    *("message.input_image.image_url", "computer_call_output.output.image_url"),
)

_NEVER = "is not supported"

RESPONSES_TABLE = FieldTable(
    inert={
        "user": "an end user's name, for abuse reports",
        "safety_identifier": "the same, hashed",
        "prompt_cache_key": "routing hint for a prefix cache; ours needs none",
        "prompt_cache_retention": "how long to keep a prefix cached",
        "prompt_cache_options": "options of the prefix cache",
        "service_tier": "price and priority class",
        "access_programs": "programs that an account takes part in",
        "session_id": "routing hint",
        "client_metadata": "labels and trace data",
        "personality": "of another model",
    },
    refused={
        "background": Refusal(_NEVER + "; stream the response instead", (False,)),
        "background_options": Refusal(_NEVER + "; stream the response instead"),
        "conversation": Refusal(_NEVER + "; use previous_response_id"),
        "context_management": Refusal(_NEVER + "; send a shorter input"),
        "image": Refusal(_NEVER + "; this model reads and writes text"),
        "moderation": Refusal(_NEVER),
        "prompt": Refusal(_NEVER + "; write the prompt into input and instructions"),
        "top_logprobs": Refusal(_NEVER + "; use /v1/chat/completions", (0,)),
        "verbosity": Refusal(_NEVER + "; use text.verbosity", ("medium",)),
        "response_format": Refusal(_NEVER + "; use text.format"),
        "reasoning_effort": Refusal(_NEVER + "; use reasoning.effort"),
        "messages": Refusal(_NEVER + "; use input"),
        "max_tokens": Refusal(_NEVER + "; use max_output_tokens"),
        "max_completion_tokens": Refusal(_NEVER + "; use max_output_tokens"),
        "stop": Refusal(_NEVER + "; use /v1/chat/completions"),
        "seed": Refusal(_NEVER + "; use /v1/chat/completions"),
        "n": Refusal(_NEVER + "; use /v1/chat/completions", (1,)),
        "presence_penalty": Refusal(_NEVER + "; use /v1/chat/completions", (0, 0.0)),
        "frequency_penalty": Refusal(_NEVER + "; use /v1/chat/completions", (0, 0.0)),
    },
    options={
        "stream_options": FieldTable(
            known=("include_obfuscation", "include_progress"),
            inert={
                "include_usage": "the usage is always in the last event",
                "continuous_usage_stats": "the same",
            },
        ),
        "reasoning": FieldTable(
            known=("effort",),
            inert={
                "summary": "summaries are never made; the thinking itself is sent",
                "generate_summary": "older name of summary",
            },
            refused={
                "context": Refusal(_NEVER + " with another value than 'auto'", ("auto",)),
                "mode": Refusal(_NEVER + " with another value than 'standard'", ("standard",)),
            },
        ),
        "text": FieldTable(
            known=("format",),
            refused={
                "verbosity": Refusal(
                    _NEVER + " with another value than 'medium', the usual", ("medium",)
                )
            },
        ),
    },
)


class ResponseStreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_obfuscation: bool | None = Field(
        None, description="padding against traffic analysis; accepted, not added"
    )
    include_progress: bool | None = Field(
        None, description="comments tell how far the prompt is computed"
    )


class ReasoningOptions(BaseModel):
    """How much the model thinks before it answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    effort: str | None = Field(None, description="'none' or null is off, any other on")


class TextOptions(BaseModel):
    """The form of the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: dict[str, Any] | None = Field(None, description="type text, json_schema or json_object")


class _ResponsesConversation(BaseModel):
    """What a response and a count of its tokens have in common."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="a name from /v1/models; the only one if left out")
    instructions: str | None = Field(
        None, description="system message before the input; not carried over to later responses"
    )
    tools: list[dict[str, Any]] | None = Field(
        None,
        description="function, custom and namespace tools, and code_interpreter where there is a "
        "sandbox; others are not offered",
    )
    tool_choice: Any = Field(None, description="as in chat completions, with Responses' spelling")
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    previous_response_id: str | None = Field(None, description="continue a stored response")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="nothing is ever cut: an input that is too long is an error"
    )


class InputTokensRequest(_ResponsesConversation):
    """Body of POST /v1/responses/input_tokens."""

    input: str | list[dict[str, Any]] | None = None


class ResponsesRequest(_ResponsesConversation):
    """Body of POST /v1/responses."""

    input: str | list[dict[str, Any]] = Field(
        description="a text, or items: messages, calls and their outputs, reasoning, references"
    )
    max_output_tokens: int | None = Field(
        None, description="default, and limit: what the context leaves"
    )
    max_tool_calls: int | None = Field(
        None, ge=0, description="how often code may run; says nothing where none can"
    )
    ignore_eos: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    metadata: dict[str, str] | None = Field(None, description="up to 16 labels")
    store: bool | None = Field(None, description="keep the response for later requests (true)")
    include: list[str] | None = Field(
        None,
        description="'reasoning.encrypted_content', 'code_interpreter_call.outputs'; others of "
        "which there is nothing here",
    )
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    return_cache_report: bool | None = Field(
        None, description="add to the usage why no more of the prompt was found in the cache"
    )
    timeout: float | None = Field(
        None, gt=0, description="seconds after which the request ends with an error"
    )

    @field_validator("metadata")
    @classmethod
    def _small_metadata(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is None:
            return value
        if len(value) > MAX_METADATA:
            raise ValueError(f"at most {MAX_METADATA} labels are allowed")
        for key, label in value.items():
            if len(key) > MAX_METADATA_KEY or len(label) > MAX_METADATA_VALUE:
                raise ValueError(
                    f"keys may have {MAX_METADATA_KEY} and values {MAX_METADATA_VALUE} characters"
                )
        return value

    @field_validator("include")
    @classmethod
    def _known_include(cls, value: list[str] | None) -> list[str] | None:
        check_include(value or [])
        return value


def check_include(values: list[str]) -> None:
    """Refuse further output that cannot be given.

    Raises:
        ValueError: one of the values is not known here.
    """
    for value in values:
        if value not in INCLUDABLE and value not in NOTHING_TO_INCLUDE:
            raise ValueError(f"{value!r} is not supported; allowed: {', '.join(INCLUDABLE)}")


def dropped_includes(values: list[str] | None, dropped: Dropped, *, runs_code: bool) -> None:
    """Note further output of which there is nothing here.

    Args:
        runs_code: there may be outputs of code.
    """
    for i, value in enumerate(values or ()):
        if value in NOTHING_TO_INCLUDE or (value == CODE_OUTPUTS and not runs_code):
            dropped.add(f"include[{i}]", "include")
