"""Every parameter of the official clients is in the table of its endpoint."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import openai.resources
import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from clients_support import client_package
from lingflash.protocol.endpoint_fields import ENDPOINT_FIELDS

# Parameters of the methods that are no fields of the body.
NOT_IN_BODY = {"self", "extra_headers", "extra_query", "extra_body", "timeout", "betas"}


def check_known(endpoint, names):
    fields = ENDPOINT_FIELDS[endpoint]
    known = {*fields.model.model_fields, *fields.table.inert, *fields.table.refused}
    unknown = sorted(set(names) - known)
    assert unknown == [], f"{endpoint}: add them to a table in lingflash/protocol"


def fields_of_types(module, name):
    fields = set()
    for end in ("NonStreaming", "Streaming"):
        fields |= set(getattr(module, name + end).__annotations__)
        fields |= set(getattr(module, name + "Base").__annotations__)
    return fields


def parameters_of(method):
    return set(inspect.signature(method).parameters) - NOT_IN_BODY


@pytest.mark.parametrize(
    ("endpoint", "module", "name"),
    [
        ("/v1/chat/completions", chat_params, "CompletionCreateParams"),
        ("/v1/completions", completion_params, "CompletionCreateParams"),
        ("/v1/responses", response_create_params, "ResponseCreateParams"),
    ],
)
def test_fields_when_openais_types_have_them_then_the_table_does(endpoint, module, name):
    fields = fields_of_types(module, name)
    assert "model" in fields
    check_known(endpoint, fields)


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("/v1/chat/completions", "chat.completions"),
        ("/v1/completions", "completions"),
        ("/v1/responses", "responses"),
    ],
)
def test_fields_when_openais_methods_take_them_then_the_table_does(endpoint, path):
    resource = openai.OpenAI(api_key="unused", base_url="http://127.0.0.1:1")
    for part in path.split("."):
        resource = getattr(resource, part)
    check_known(endpoint, parameters_of(resource.create))


def test_fields_when_anthropics_types_and_methods_have_them_then_the_table_does():
    anthropic = client_package("anthropic")
    from anthropic.types import message_count_tokens_params, message_create_params

    create = fields_of_types(message_create_params, "MessageCreateParams")
    count = set(get_type_hints(message_count_tokens_params.MessageCountTokensParams))
    client = anthropic.Anthropic(api_key="unused", base_url="http://127.0.0.1:1")
    create |= parameters_of(client.messages.create) | parameters_of(client.messages.stream)
    create |= parameters_of(client.beta.messages.create)
    count |= parameters_of(client.messages.count_tokens)
    count |= parameters_of(client.beta.messages.count_tokens)
    assert "max_tokens" in create
    assert "messages" in count
    check_known("/v1/messages", create)
    check_known("/v1/messages/count_tokens", count)


@pytest.mark.parametrize("endpoint", ENDPOINT_FIELDS)
def test_fields_then_each_is_in_one_column_only(endpoint):
    known = ENDPOINT_FIELDS[endpoint]
    supported = set(known.model.model_fields)
    assert not supported & (set(known.table.inert) | set(known.table.refused))
    assert not set(known.table.inert) & set(known.table.refused)
