"""The table of every endpoint's request fields: supported, inert and refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

from lingflash.protocol.chat import ChatCompletionRequest
from lingflash.protocol.completions import CompletionRequest
from lingflash.protocol.fields import CHAT_TABLE, COMPLETIONS_TABLE, FieldTable
from lingflash.protocol.messages import MESSAGES_TABLE, CountTokensRequest, MessagesRequest
from lingflash.protocol.responses import (
    RESPONSES_TABLE,
    InputTokensRequest,
    ResponsesRequest,
)
from lingflash.protocol.tokenize import DetokenizeRequest, TokenizeRequest

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class EndpointFields(Generic[ModelT]):
    """What one endpoint does with each field that it knows.

    Args:
        too_long: what it says of a prompt that is longer than the context, in the words that its
            clients look for to shorten it.
    """

    path: str
    model: type[ModelT]
    table: FieldTable = COMPLETIONS_TABLE
    too_long: str = (
        "This model's maximum context length is {limit} tokens, but the prompt has {tokens}; "
        "shorten it."
    )


CHAT = EndpointFields("/v1/chat/completions", ChatCompletionRequest, CHAT_TABLE)
COMPLETIONS = EndpointFields("/v1/completions", CompletionRequest)
RESPONSES = EndpointFields("/v1/responses", ResponsesRequest, RESPONSES_TABLE)
INPUT_TOKENS = EndpointFields("/v1/responses/input_tokens", InputTokensRequest, RESPONSES_TABLE)
_TOO_LONG = "prompt is too long: {tokens} tokens > {limit} maximum"
MESSAGES = EndpointFields("/v1/messages", MessagesRequest, MESSAGES_TABLE, _TOO_LONG)
COUNT_TOKENS = EndpointFields(
    "/v1/messages/count_tokens", CountTokensRequest, MESSAGES_TABLE, _TOO_LONG
)
TOKENIZE = EndpointFields("/tokenize", TokenizeRequest)
DETOKENIZE = EndpointFields("/detokenize", DetokenizeRequest)

# Those that generate, or count what they would read.
ENDPOINT_FIELDS = {
    endpoint.path: endpoint
    for endpoint in (CHAT, COMPLETIONS, RESPONSES, INPUT_TOKENS, MESSAGES, COUNT_TOKENS)
}
