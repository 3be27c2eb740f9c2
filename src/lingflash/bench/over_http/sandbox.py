"""`ling bench sandbox`: how long sandboxes take to be had, and to do something."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lingflash.bench.over_http.server_process import ServerProcess, running
from lingflash.core.errors import EngineError
from lingflash.link.http_client import Address, call, open_request
from lingflash.records.record import Record, require

_POOL_MS, _COLD_MS, _ECHO_MS, _BESIDE_MS = 50.0, 1500.0, 30.0, 1000.0
_BOMB = "f() { f | f & }; f; sleep 1000"


class _Sandbox:
    """One sandbox of the server that is measured."""

    def __init__(self, address: Address, told: dict[str, Any]) -> None:
        self._address = address
        self._id = told["sandboxID"]
        self._headers = [("X-Access-Token", told["envdAccessToken"])]

    @classmethod
    async def create(cls, address: Address) -> _Sandbox:
        body = {"templateID": "base", "timeout": 600}
        status, answer = await call(address, "POST", "/v2/sandboxes", body)
        if status != 201:
            raise EngineError(f"No sandbox: {answer.decode(errors='replace')}")
        return cls(address, json.loads(answer))

    async def kill(self) -> None:
        await call(self._address, "DELETE", f"/sandboxes/{self._id}")

    async def run(self, script: str) -> bytes:
        """What a shell script writes."""
        message = {"process": {"cmd": "/bin/bash", "args": ["-c", script]}, "stdin": False}
        body = json.dumps(message).encode()
        framed = struct.pack(">BI", 0, len(body)) + body
        headers = [*self._headers, ("Content-Type", "application/connect+json")]
        answer = await self._post("/process.Process/Start", framed, headers)
        parts = answer.split(b'"stdout": "')[1:]
        return b"".join(base64.b64decode(part.partition(b'"')[0]) for part in parts)

    async def execute(self, code: str) -> bytes:
        """What a piece of Python does, as lines of JSON."""
        body = json.dumps({"code": code}).encode()
        return await self._post("/execute", body, self._headers)

    async def _post(self, path: str, body: bytes, headers: list[tuple[str, str]]) -> bytes:
        asking = open_request(self._address, "POST", path, body, headers=headers)
        async with asking as answer:
            return await answer.read()


async def run_sandbox(
    *, repeats: int = 20, out: Path | None = None, allow_dirty: bool = False
) -> None:
    """Measure servers of our own on this machine.

    Raises:
        ConfigError: a flag is out of range.
        EngineError: a server did not start.
    """
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    record = Record("sandbox", out, allow_dirty)
    record.settings = {"repeats": repeats}
    async with running(ServerProcess.ling_sandbox(["--warm=0"])) as server:
        cold = [await _timed(_cold, server.address) for _ in range(repeats)]
    async with running(ServerProcess.ling_sandbox(["--warm=2"])) as server:
        pool = []
        for _ in range(repeats):
            await _until_warm(server.address)
            made: list[_Sandbox] = []

            async def create(address: Address, made: list[_Sandbox] = made) -> None:
                made.append(await _Sandbox.create(address))

            pool.append(await _timed(create, server.address))
            await made[0].kill()
        echo, code, beside = await _in_use(server.address, repeats)
    for name, samples, limit in (
        ("create, from the pool", pool, _POOL_MS),
        ("create, cold, and the first code run", cold, _COLD_MS),
        ("command: echo", echo, _ECHO_MS),
    ):
        series = record.add(name, "ms", samples)
        record.promise(f"{name}, median", series.median, limit, "at most")
    record.add("code: 1 + 1", "ms", code)
    record.add("command: echo, beside a fork bomb", "ms", beside)
    record.promise("echo beside a fork bomb, worst", max(beside), _BESIDE_MS, "at most")
    record.finish()


async def _cold(address: Address) -> None:
    made = await _Sandbox.create(address)
    await _answers(made.execute, "1 + 1", b'"2"')
    await made.kill()


async def _in_use(address: Address, repeats: int) -> tuple[list[float], list[float], list[float]]:
    made = await _Sandbox.create(address)
    await made.execute("1")

    async def echo(_: Address) -> None:
        await _answers(made.run, "echo here", b"here")

    async def code(_: Address) -> None:
        await _answers(made.execute, "1 + 1", b'"2"')

    alone = [await _timed(echo, address) for _ in range(repeats)]
    codes = [await _timed(code, address) for _ in range(repeats)]
    bomb = await _Sandbox.create(address)
    exploding = asyncio.create_task(bomb.run(_BOMB))
    await asyncio.sleep(0.5)
    beside = [await _timed(echo, address) for _ in range(repeats)]
    await bomb.kill()
    await exploding
    await made.kill()
    return alone, codes, beside


async def _answers(ask: Callable[[str], Awaitable[bytes]], what: str, wanted: bytes) -> None:
    answer = await ask(what)
    if wanted not in answer:
        raise EngineError(f"{what!r} was answered by {answer[:200]!r}")


async def _timed(work: Callable[[Address], Awaitable[None]], address: Address) -> float:
    began = time.perf_counter()
    await work(address)
    return 1e3 * (time.perf_counter() - began)


async def _until_warm(address: Address) -> None:
    while True:
        _, text = await call(address, "GET", "/metrics")
        if b"lingflash_sandboxes_warm 2.0" in text:
            return
        await asyncio.sleep(0.05)
