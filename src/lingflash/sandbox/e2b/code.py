"""/execute and /contexts: code in kernels that keep their variables."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from lingflash.core.errors import InvalidRequestError, LingflashError
from lingflash.httpd.body import encode_json, json_response, read_request
from lingflash.sandbox.contexts import Context
from lingflash.sandbox.e2b.access import sandbox_of
from lingflash.sandbox.e2b.schemas import Execute, NewContext

router = APIRouter()


@router.post("/execute")
async def execute(request: Request) -> Response:
    """Run code; a line of JSON for each thing that it does. Interrupted if nobody listens."""
    body = await read_request(request, Execute)
    sandbox = sandbox_of(request)
    if body.context_id is not None and body.language is not None:
        raise InvalidRequestError("Give context_id or language, not both.", param="language")
    contexts = sandbox.contexts
    if body.context_id is not None:
        context = contexts.get(body.context_id)
    else:
        context = await contexts.default(body.language)
    events = contexts.execute(context, body.code, body.env_vars)
    hearer = sandbox.journal.of_code(context.language, body.code)

    async def lines() -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(events):
            try:
                async for event in events:
                    hearer.hear(event)
                    yield encode_json(event) + b"\n"
            except LingflashError as error:
                failed = {"type": "error", "name": "SandboxError", "value": error.message}
                yield encode_json({**failed, "traceback": error.message}) + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.get("/contexts")
async def list_contexts(request: Request) -> Response:
    """The contexts that there are."""
    sandbox = sandbox_of(request, id_is_enough=True)
    return json_response([_described(context) for context in sandbox.contexts.all()])


@router.post("/contexts")
async def create_context(request: Request) -> Response:
    """Make a context."""
    body = await read_request(request, NewContext)
    sandbox = sandbox_of(request, id_is_enough=True)
    return json_response(_described(await sandbox.contexts.create(body.language, body.cwd)))


@router.delete("/contexts/{context_id}")
async def delete_context(request: Request, context_id: str) -> Response:
    """End a context and what runs in it."""
    await sandbox_of(request, id_is_enough=True).contexts.delete(context_id)
    return Response(status_code=204)


@router.post("/contexts/{context_id}/restart")
async def restart_context(request: Request, context_id: str) -> Response:
    """Begin a context anew, without its variables."""
    await sandbox_of(request, id_is_enough=True).contexts.restart(context_id)
    return Response(status_code=204)


def _described(context: Context) -> dict[str, str]:
    return {"id": context.id, "language": context.language, "cwd": context.cwd}
