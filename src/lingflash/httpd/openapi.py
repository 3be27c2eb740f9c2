"""Bodies in the OpenAPI document: of requests and answers, which the routes handle themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fastapi import Depends, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from lingflash.httpd.auth import require_key
from lingflash.httpd.body import json_response
from lingflash.httpd.page import installed_version
from lingflash.protocol.errors import ErrorDialect

_REF = "#/components/schemas/{model}"


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is a JSON object."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def query_parameters(**schemas: dict[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its query itself: optional parameters."""
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in schemas.items()
        ]
    }


def install_openapi(
    app: FastAPI,
    models: Iterable[type[BaseModel]] = (),
    *,
    answers: Mapping[str, Sequence[str]] | None = None,
    streams: Collection[str] = (),
) -> None:
    """Describe the routes that there are by now, and add the route that gives the document.

    Args:
        models: every model that json_body was given.
        answers: path to the fields that its answers always have.
        streams: paths that can also answer with an event stream.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=installed_version(), routes=app.routes)
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.clear()  # of answers to malformed requests that are never given
            for path, item in schema["paths"].items():
                dialect = app.state.context.dialect_of(path)
                schemas[dialect.name] = dialect.schema
                required = (answers or {}).get(path)
                for operation in item.values():
                    operation["responses"] = _responses(path, required, path in streams, dialect)
            for model in models:
                own = model.model_json_schema(ref_template=_REF)
                schemas.update(own.pop("$defs", {}))
                schemas[model.__name__] = own
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # pyright: ignore[reportAttributeAccessIssue]

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(require_key)])
    async def openapi_document() -> Response:
        return json_response(app.openapi())


def _responses(
    path: str, required: Sequence[str] | None, is_stream: bool, dialect: ErrorDialect
) -> dict[str, Any]:
    """The answers of a path: its own, and errors."""
    if path == "/metrics":
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    else:
        fields = {} if required is None else {"required": list(required)}
        content = {"application/json": {"schema": {"type": "object", **fields}}}
    if is_stream:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": _REF.format(model=dialect.name)}}}
    return {
        "200": {"description": "The answer", "content": content},
        "4XX": {"description": "The request cannot be served", "content": error},
        "5XX": {"description": "The server failed", "content": error},
    }
