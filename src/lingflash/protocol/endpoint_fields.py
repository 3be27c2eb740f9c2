"""The table of every endpoint's request fields: supported, inert and refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

from lingflash.protocol.chat import ChatCompletionRequest
from lingflash.protocol.completions import CompletionRequest
from lingflash.protocol.fields import COMPLETIONS_TABLE, FieldTable
from lingflash.protocol.messages import MESSAGES_TABLE, CountTokensRequest, MessagesRequest
from lingflash.protocol.responses import RESPONSES_TABLE, ResponsesRequest
from lingflash.protocol.tokenize import DetokenizeRequest, TokenizeRequest

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class EndpointFields(Generic[ModelT]):
    """What one endpoint does with each field that it knows."""

    path: str
    model: type[ModelT]
    table: FieldTable = COMPLETIONS_TABLE


CHAT = EndpointFields("/v1/chat/completions", ChatCompletionRequest)
COMPLETIONS = EndpointFields("/v1/completions", CompletionRequest)
RESPONSES = EndpointFields("/v1/responses", ResponsesRequest, RESPONSES_TABLE)
MESSAGES = EndpointFields("/v1/messages", MessagesRequest, MESSAGES_TABLE)
COUNT_TOKENS = EndpointFields("/v1/messages/count_tokens", CountTokensRequest, MESSAGES_TABLE)
TOKENIZE = EndpointFields("/tokenize", TokenizeRequest)
DETOKENIZE = EndpointFields("/detokenize", DetokenizeRequest)

# Those that generate, or count what they would read.
ENDPOINT_FIELDS = {
    endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS)
}
