"""Bodies in the OpenAPI document: of requests and answers, which the routes handle themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from lingflash.httpd.error_map import is_messages_path
from lingflash.protocol.responses import INCLUDABLE

_REF = "#/components/schemas/{model}"


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is a JSON object.

    Args:
        model: of the body.
    """
    schema = {"$ref": _REF.format(model=model.__name__)}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def query_parameters(*names: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its query itself.

    Args:
        names: of its optional parameters, from QUERY_SCHEMAS.
    """
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": QUERY_SCHEMAS[name]}
            for name in names
        ]
    }


def _object(*required: str) -> dict[str, Any]:
    return {"type": "object", "required": list(required)}


# Fields that the answers of an endpoint always have.
ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _object("id", "object", "created", "model", "choices", "usage"),
    "/v1/completions": _object("id", "object", "created", "model", "choices", "usage"),
    "/v1/responses": _object("id", "object", "created_at", "model", "output", "status", "usage"),
    "/v1/responses/{response_id}": _object("id", "object"),
    "/v1/responses/{response_id}/cancel": _object("id", "object", "status"),
    "/v1/responses/{response_id}/input_items": _object("object", "data", "has_more"),
    "/v1/messages": _object("id", "type", "role", "model", "content", "stop_reason", "usage"),
    "/v1/messages/count_tokens": _object("input_tokens"),
    "/v1/models": _object("object", "data"),
    "/v1/models/{name}": _object("id", "object", "created", "owned_by"),
    "/reset_prefix_cache": _object("status", "blocks", "checkpoints"),
    "/tokenize": _object("tokens", "count"),
    "/detokenize": _object("prompt"),
}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
_NULLABLE = {"type": ["string", "null"]}
_ERRORS: dict[str, dict[str, Any]] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": _NULLABLE,
                    "code": _NULLABLE,
                },
            }
        },
    },
    "MessagesError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {
                    "type": {"type": "string"},
                    "message": {"type": "string"},
                    "param": {"type": "string"},
                },
            },
        },
    },
}


def _responses(path: str) -> dict[str, Any]:
    """The answers of a path: its own, and errors."""
    if path == "/metrics":
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": ANSWERS.get(path, {"type": "object"})}}
    if path in _STREAMS:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    name = "MessagesError" if is_messages_path(path) else "Error"
    error = {"schema": {"$ref": _REF.format(model=name)}}
    return {
        "200": {"description": "The answer", "content": content},
        "4XX": {
            "description": "The request cannot be served",
            "content": {"application/json": error},
        },
        "5XX": {"description": "The server failed", "content": {"application/json": error}},
    }


QUERY_SCHEMAS: dict[str, dict[str, Any]] = {
    "after": {"type": "string"},
    "include": {"type": "array", "items": {"enum": list(INCLUDABLE)}},
    "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
    "order": {"enum": ["asc", "desc"], "default": "desc"},
    "stream": {"enum": ["false"]},
}


def install_openapi(app: FastAPI, models: tuple[type[BaseModel], ...], *, version: str) -> None:
    """Make `app.openapi()` include the schemas that `json_body` refers to.

    Args:
        app: the application.
        models: every model that json_body was given.
        version: of the server.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title="lingflash", version=version, routes=app.routes)
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.clear()  # of answers to malformed requests that are never given
            schemas.update(_ERRORS)
            for path, item in schema["paths"].items():
                for operation in item.values():
                    operation["responses"] = _responses(path)
            for model in models:
                own = model.model_json_schema(ref_template=_REF)
                schemas.update(own.pop("$defs", {}))
                schemas[model.__name__] = own
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # pyright: ignore[reportAttributeAccessIssue]
