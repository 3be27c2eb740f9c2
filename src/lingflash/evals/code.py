"""Programs that a model wrote, run in `ling sandbox` (or E2B's like) over HTTP; never here.

Each program has a sandbox of its own, which is killed when it has ended.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import struct
import time
from dataclasses import dataclass
from typing import Any

from lingflash.core.errors import AuthenticationError, ConfigError, EngineError, LingflashError
from lingflash.link.http_client import Address, BadAnswer, Deadlines, open_request

_LIFE_S = 120
_START_DEADLINES = Deadlines(connect_s=10, first_byte_s=60, idle_s=60, total_s=90)
_FRAME = struct.Struct(">BI")
_MOST_OUTPUT = 1 << 20
# So long a server that has no sandbox free is waited for.
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended.

    Args:
        code: of its exit; None if it was ended, by the clock or a limit.
        why: what ended it then, or the last line of its errors.
    """

    code: int | None
    stdout: str
    why: str


class CodeRunner:
    """Runs Python programs in sandboxes of a server.

    Args:
        url: of `ling sandbox`.
        api_key: of it, if it wants one.

    Raises:
        ConfigError: the URL is none.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        # Another header than OpenAI's carries the key.
        self._address = Address.parse_any(url, None, "--sandbox-url")
        self._key = [("X-API-Key", api_key)] if api_key else []
        self._url = url

    async def check(self) -> None:
        """Run a program that says hello.

        Raises:
            LingflashError: the sandbox does not run programs; one line that says why.
        """
        ran = await self.run("print(6 * 7)", 30.0)
        if (ran.code, ran.stdout) != (0, "42\n"):
            raise LingflashError(f"The sandbox at {self._url} runs no Python: {ran.why}.")

    async def passes(self, program: str, timeout_s: float) -> Ran:
        """Run a program; its code is 0 only if it came to its last line.

        A program that ends itself before its tests have run has not passed them.
        """
        mark = secrets.token_hex(16)
        ran = await self.run(f"{program}\n\nprint({mark!r})\n", timeout_s)
        if ran.code == 0 and not ran.stdout.endswith(f"{mark}\n"):
            return Ran(None, ran.stdout, "ended before its tests")
        return ran

    async def run(self, program: str, timeout_s: float, stdin: str | None = None) -> Ran:
        """Run a program with a standard input.

        Raises:
            LingflashError: there is no sandbox, and it is not the program's fault.
        """
        if stdin is not None:
            program = f"import io, sys\nsys.stdin = io.StringIO({stdin!r})\n{program}"
        made = await self._make()
        try:
            return await self._start(made, program, timeout_s)
        finally:
            await self._kill(made["sandboxID"])

    async def _make(self) -> dict[str, Any]:
        body = json.dumps({"templateID": "base", "timeout": _LIFE_S}).encode()
        began = time.monotonic()
        while True:
            status, text = await self._call("POST", "/sandboxes", body)
            if status == 201:
                return json.loads(text)
            if status in (401, 403):
                raise AuthenticationError(
                    f"The sandbox server at {self._url} takes no such key; give one with "
                    "--sandbox-key or E2B_API_KEY."
                )
            if status not in (429, 503) or time.monotonic() - began > _PATIENCE_S:
                said = text[:200].decode("utf-8", "replace")
                raise EngineError(f"{self._url} makes no sandbox ({status}): {said}")
            await asyncio.sleep(0.2)

    async def _kill(self, sandbox_id: str) -> None:
        await asyncio.shield(self._call("DELETE", f"/sandboxes/{sandbox_id}", None))

    async def _call(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        try:
            async with open_request(
                self._address, method, path, body, headers=self._key, deadlines=_START_DEADLINES
            ) as answer:
                return answer.status, await answer.read()
        except (OSError, BadAnswer) as error:
            raise LingflashError(
                f"No sandbox server answers at {self._url} ({error}). Start one with "
                "`ling sandbox`, or say with --sandbox-url where it is."
            ) from None

    async def _start(self, made: dict[str, Any], program: str, timeout_s: float) -> Ran:
        config = {"cmd": "python", "args": ["-I", "-c", program]}
        message = json.dumps({"process": config, "stdin": False}).encode()
        headers = [
            ("Content-Type", "application/connect+json"),
            ("Connect-Timeout-Ms", str(int(timeout_s * 1000))),
            ("X-Access-Token", made["envdAccessToken"]),
            ("E2b-Sandbox-Id", made["sandboxID"]),
        ]
        deadlines = Deadlines(connect_s=10, total_s=timeout_s + 60)
        out, errors = bytearray(), bytearray()
        try:
            async with open_request(
                self._address, "POST", "/process.Process/Start",
                _FRAME.pack(0, len(message)) + message, headers=headers, deadlines=deadlines,
            ) as answer:  # fmt: skip
                buffer = bytearray()
                async for part in answer.parts():
                    buffer += part
                    for event in _frames(buffer):
                        if "error" in event:
                            return Ran(None, _text(out), str(event["error"].get("code")))
                        event = event.get("event", {})
                        for name, data in event.get("data", {}).items():
                            kept = out if name == "stdout" else errors
                            kept += base64.b64decode(data)
                            del kept[:-_MOST_OUTPUT]
                        if "end" in event:
                            return _ended(event["end"], out, errors)
        except (OSError, BadAnswer) as error:
            # What a program does to its sandbox is the program's doing.
            return Ran(None, _text(out), f"the sandbox broke off ({error})")
        return Ran(None, _text(out), "the sandbox said no end")


def _frames(buffer: bytearray) -> list[dict[str, Any]]:
    """The whole messages of Connect at a buffer's beginning, taken out of it."""
    found = []
    while len(buffer) >= _FRAME.size:
        _, size = _FRAME.unpack_from(buffer)
        if len(buffer) < _FRAME.size + size:
            break
        found.append(json.loads(buffer[_FRAME.size : _FRAME.size + size]))
        del buffer[: _FRAME.size + size]
    return found


def _ended(end: dict[str, Any], out: bytearray, errors: bytearray) -> Ran:
    lines = _text(errors).strip().splitlines()
    if not end.get("exited"):
        return Ran(None, _text(out), str(end.get("status")))
    return Ran(int(end["exitCode"]), _text(out), lines[-1][:200] if lines else "")


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "replace")


def require_code_runner(what: str, url: str | None, api_key: str | None) -> CodeRunner:
    """The sandbox that was named.

    Raises:
        ConfigError: none was.
    """
    if url is None:
        raise ConfigError(
            f"{what} runs programs that a model wrote, in a sandbox alone: start one with "
            "`ling sandbox` and say with --sandbox-url where it is.",
            param="sandbox_url",
        )
    return CodeRunner(url, api_key)
