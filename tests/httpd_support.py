"""A tiny server made of `httpd` alone.

python tests/httpd_support.py DRAIN_TIMEOUT_S
"""

from __future__ import annotations

import asyncio
import sys
import threading

import httpx
from fastapi import Depends, Request, Response
from pydantic import BaseModel, ConfigDict

from lingflash.core.errors import EngineDeadError, QueueFullError
from lingflash.core.metrics import HttpMetrics
from lingflash.httpd.app import make_app
from lingflash.httpd.auth import caller_of, require_admin_key, require_key
from lingflash.httpd.body import json_response, read_request
from lingflash.httpd.context import HttpContext
from lingflash.httpd.openapi import install_openapi, json_body
from lingflash.httpd.server import bind_socket, run_server
from lingflash.protocol.errors import OPENAI_ERRORS, ErrorDialect

SHORT = ErrorDialect(
    "ShortError",
    {"type": "object", "required": ["oh"], "properties": {"oh": {"type": "string"}}},
    lambda error: {"oh": error.message, "status": error.status},
    id_header="x-trace",
)


class Echo(BaseModel):
    """Body of the endpoints."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str


class Shop:
    """A service that can be told to fail."""

    name = "shop"

    def __init__(self, start_error=None, stop_error=None):
        self._start_error, self._stop_error = start_error, stop_error
        self.dead = asyncio.Event()
        self.log = []

    async def start(self):
        if self._start_error is not None:
            raise self._start_error
        self.log.append("start")

    async def wait_dead(self):
        await self.dead.wait()
        return EngineDeadError("The shop burnt down.")

    def drain(self):
        """Nothing here would be mended."""

    async def stop(self):
        self.log.append("stop")
        if self._stop_error is not None:
            raise self._stop_error


def tiny_app(context: HttpContext):
    """Endpoints that echo, wait, refuse and crash."""
    app = make_app(context)
    keyed = [Depends(require_key)]

    @app.post("/echo", dependencies=keyed, openapi_extra=json_body(Echo))
    @app.post("/short/echo", dependencies=keyed, openapi_extra=json_body(Echo))
    async def echo(request: Request) -> Response:
        body = await read_request(request, Echo)
        context.require_ready()
        if body.text == "full":
            raise QueueFullError("Too many echoes.")
        if body.text == "crash":
            raise ValueError("secret")
        return json_response({"text": body.text, "caller": caller_of(request)})

    @app.post("/wait")
    async def wait(request: Request) -> Response:
        done = asyncio.Event()
        texts = ["done"]
        asyncio.get_running_loop().call_later(float(request.query_params["s"]), done.set)
        context.in_flight["w"] = lambda: (texts.append("aborted"), done.set())
        try:
            await done.wait()
            return json_response({"text": texts[-1]})
        finally:
            del context.in_flight["w"]

    @app.get("/running")
    async def running() -> Response:
        return json_response({"running": len(context.in_flight), "reason": context.not_ready})

    @app.post("/open", dependencies=[Depends(require_admin_key)])
    async def open_shop() -> Response:
        return json_response({})

    install_openapi(app, (Echo,), answers={"/echo": ("text",)})
    return app


def tiny_context(**options) -> HttpContext:
    """With a dialect of its own under one path."""

    def dialect_of(path):
        return SHORT if path.startswith("/short") else OPENAI_ERRORS

    return HttpContext(HttpMetrics(), dialect_of=dialect_of, **options)


class TinyServer:
    """The server in a thread."""

    def __init__(self, service=None, **options):
        self.service = service or Shop()
        self.context = tiny_context(**options)
        self.sock = bind_socket("127.0.0.1", 0)
        url = f"http://127.0.0.1:{self.sock.getsockname()[1]}"
        self.client = httpx.Client(base_url=url, timeout=10)
        self.error = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self):
        async def main():
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            app = tiny_app(self.context)
            await run_server(app, self.context, self.service, self.sock, on_ready=self._ready.set)

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def wait_stopped(self):
        self._thread.join(10)
        assert not self._thread.is_alive()

    def call(self, function):
        self._loop.call_soon_threadsafe(function)

    def stop(self):
        self.client.close()
        if self._thread.is_alive():
            self.call(self._task.cancel)
        self.wait_stopped()

    def echo(self, text="hi", path="/echo", **options):
        return self.client.post(path, json={"text": text}, **options)


async def _main(drain_timeout_s: float) -> None:
    context = tiny_context(drain_timeout_s=drain_timeout_s)
    with bind_socket("127.0.0.1", 0) as sock:
        print(sock.getsockname()[1], flush=True)
        await run_server(tiny_app(context), context, Shop(), sock)


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1])))
