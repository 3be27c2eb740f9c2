"""Wire schemas of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class TokenizeRequest(BaseModel):
    """Body of POST /tokenize: either a text or chat messages."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = Field(True, description="for prompt: apply the post-processor")
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = Field(True, description="for messages: open the next turn")
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = Field(False, description="also give each token's text")


class DetokenizeRequest(BaseModel):
    """Body of POST /detokenize."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    tokens: list[int]
