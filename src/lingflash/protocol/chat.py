"""Wire schema of /v1/chat/completions, and the fields it shares with /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256

REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="end with a chunk that holds the usage")
    include_obfuscation: bool | None = Field(
        None, description="padding against traffic analysis; accepted, not added"
    )
    continuous_usage_stats: bool | None = Field(
        None, description="every chunk holds the usage so far"
    )
    include_progress: bool | None = Field(
        None, description="comments tell how far the prompt is computed"
    )


class ReasoningFields(BaseModel):
    """Another way to write reasoning_effort."""

    model_config = ConfigDict(extra="forbid", strict=True)

    effort: str | None = Field(None, description="as reasoning_effort")
    enabled: bool | None = Field(None, description="false is the effort 'none'")


class SamplingFields(BaseModel):
    """How tokens are chosen; what a checkpoint's generation_config.json says is the default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="a name from /v1/models; the only one if left out")
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="0 or -1 keep all tokens")
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="token id to bias")
    seed: int | None = None
    n: int | None = Field(None, description="number of answers")
    min_tokens: int | None = None
    stop: Annotated[str, Field(max_length=MAX_STOP_CHARS)] | list[StopString] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timeout: float | None = Field(
        None, gt=0, description="seconds after which the request ends with an error"
    )
    skip_special_tokens: bool | None = Field(
        None, description="leave special tokens out of the text (default true)"
    )
    return_token_ids: bool | None = Field(
        None, description="add the prompt's and the answer's token ids"
    )
    return_cache_report: bool | None = Field(
        None, description="add to the usage why no more of the prompt was found in the cache"
    )
    cache_salt: str | None = Field(
        None, max_length=256, description="share computed prefixes only with requests of this salt"
    )
    response_format: dict[str, Any] | None = Field(
        None, description="type text, json_object, or json_schema with a schema; always enforced"
    )
    structured_outputs: dict[str, Any] | None = Field(
        None, description="exactly one of json (a schema), regex, choice, grammar (Lark)"
    )
    regex: str | None = Field(None, description="the same as structured_outputs.regex")

    @field_validator("stop")
    @classmethod
    def _few_stop_strings(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings are allowed")
        return value


class ChatOptions(SamplingFields):
    """What a request may say besides its conversation and tools."""

    tool_choice: str | dict[str, Any] | None = Field(
        None, description="'auto', 'none', 'required', a named tool, or allowed_tools"
    )
    parallel_tool_calls: bool | None = Field(None, description="false allows one call at most")
    reasoning_effort: str | None = Field(
        None, description="'none' switches thinking off, any other word on"
    )
    reasoning: ReasoningFields | None = Field(None, description="the same, as an object")
    max_tokens: int | None = Field(None, description="default, and limit: what the context leaves")
    max_completion_tokens: int | None = Field(None, description="newer name of max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="variables of the model's template, such as thinking_option"
    )

    @field_validator("reasoning_effort")
    @classmethod
    def _known_effort(cls, value: str | None) -> str | None:
        check_effort(value)
        return value


class ChatCompletionRequest(ChatOptions):
    """Body of POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(
        description="roles system, developer, user, assistant, tool; content a string or text parts"
    )
    tools: list[dict[str, Any]] | None = Field(None, description="function and custom tools")


def check_effort(value: str | None) -> None:
    """Refuse words that are no effort.

    Raises:
        ValueError: it is none.
    """
    if value is not None and value not in REASONING_EFFORTS:
        raise ValueError(f"{value!r} is not known; allowed: {', '.join(REASONING_EFFORTS)}")
