"""An HTTP server without a subject: what every server of the house needs around its routes.

    context = HttpContext(HttpMetrics(), api_keys=("secret",))
    app = make_app(context)  # request ids, log lines, error envelopes

    @app.post("/echo", dependencies=[Depends(require_key)], openapi_extra=json_body(Echo))
    async def echo(request: Request) -> Response:
        body = await read_request(request, Echo)  # within the size limit, unknown fields refused
        context.require_ready()
        context.in_flight[body.id] = cancel  # the drain waits for it, then calls cancel()
        ...
        return json_response({"text": body.text})

    install_openapi(app, (Echo,), answers={"/echo": ("text",)})
    with bind_socket("127.0.0.1", 8000) as sock:
        asyncio.run(run_server(app, context, service, sock))  # until SIGTERM and the drain

`service` is what the server stands in front of: something that is started, stopped, and may die.
Every error is a class of `core/errors.py`; `error_map.py` gives it a status, the context's dialect
gives it its form.
"""
