"""schemathesis against our own OpenAPI document, over real HTTP with a scripted engine.

It makes requests that the document allows and ones that it does not. No answer may be a 5xx, and
every answer must be as the document says, errors too, in the envelope of their endpoint.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from api_support import engine_info
from clients_support import client_package
from lingflash.api.app import create_app
from lingflash.link.scripted import ScriptedEngine

schemathesis = client_package("schemathesis")
checks = client_package("schemathesis.specs.openapi.checks")
not_a_server_error = client_package("schemathesis.checks").not_a_server_error

NUM_EXAMPLES = 40
DOCUMENT = create_app(ScriptedEngine({(): []}, engine_info())).openapi()
OPERATIONS = {
    found.ok().label: found.ok()
    for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()
}
CASES = [
    pytest.param(operation, mode, id=f"{label} {mode.value}")
    for label, operation in OPERATIONS.items()
    for mode in schemathesis.GenerationMode
    # Of these no wrong request can be made.
    if mode.value == "positive" or operation.body or operation.query
]
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_requests_when_made_from_the_document_then_answers_are_as_it_says(
    shared_server, operation, mode
):
    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def work(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("timeout"), int | float):
            case.body.pop("timeout")  # a short one ends in a 504, as it should
        response = case.call(base_url=shared_server.base_url, timeout=20)
        if response.status_code == 200 and response.headers["content-type"][0].startswith(
            "text/event-stream"
        ):
            assert response.content.endswith(b"\n\n")
        elif response.status_code == 503 and case.path == "/ready":
            pass
        else:
            case.validate_response(response, checks=CHECKS)

    work()


def test_document_then_it_names_every_endpoint_with_its_body():
    bodies = {path for path, item in DOCUMENT["paths"].items() if "requestBody" in item.get(
        "post", {})}  # fmt: skip
    assert bodies == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/messages",
        "/v1/containers",
        "/v1/containers/{container_id}/files",
        "/v1/containers/{container_id}/run",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
    }
