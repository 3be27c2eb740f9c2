"""The table of every endpoint's request fields: supported, inert and refused."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from lingflash.protocol.chat import ChatCompletionRequest
from lingflash.protocol.completions import CompletionRequest
from lingflash.protocol.fields import COMPLETIONS_TABLE, FieldTable
from lingflash.protocol.messages import MESSAGES_TABLE, CountTokensRequest, MessagesRequest
from lingflash.protocol.responses import RESPONSES_TABLE, ResponsesRequest


@dataclass(frozen=True, slots=True)
class EndpointFields:
    """What one endpoint does with each field that it knows.

    Args:
        model: its fields are supported.
        table: inert and refused ones.
    """

    model: type[BaseModel]
    table: FieldTable

    def verdict(self, field: str) -> str | None:
        """'supported', 'inert' or 'refused'; None if the field is not known."""
        if field in self.model.model_fields:
            return "supported"
        if field in self.table.inert:
            return "inert"
        return "refused" if field in self.table.refused else None


ENDPOINT_FIELDS: dict[str, EndpointFields] = {
    "/v1/chat/completions": EndpointFields(ChatCompletionRequest, COMPLETIONS_TABLE),
    "/v1/completions": EndpointFields(CompletionRequest, COMPLETIONS_TABLE),
    "/v1/responses": EndpointFields(ResponsesRequest, RESPONSES_TABLE),
    "/v1/messages": EndpointFields(MessagesRequest, MESSAGES_TABLE),
    "/v1/messages/count_tokens": EndpointFields(CountTokensRequest, MESSAGES_TABLE),
}
