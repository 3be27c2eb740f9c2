"""A client of `ling sandbox`, or of any server that speaks E2B's API: sandboxes, code and files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from lingflash.core.errors import (
    CapacityError,
    LingflashError,
    NotFoundError,
    SandboxError,
    SandboxGoneError,
)
from lingflash.link.http_client import Address, Answer, BadAnswer, Deadlines, open_request
from lingflash.protocol.unicode import replace_escaped_surrogates

HOME = "/home/user"
_CALL = Deadlines(connect_s=10, first_byte_s=60, idle_s=60, total_s=90)
# Code may be silent for as long as it is let run.
_RUN = Deadlines(connect_s=10, first_byte_s=60)
_MAX_LINE = 1 << 26


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One that was made: its id, and the token that opens it."""

    id: str
    token: str


class SandboxServer:
    """Asks one server.

    Args:
        url: of it.
        api_key: whose sandboxes they are, if it wants one.
        flag: what an error calls the URL.

    Raises:
        ConfigError: the URL is none.
    """

    def __init__(self, url: str, api_key: str | None, flag: str = "--sandbox") -> None:
        # Another header than OpenAI's carries the key.
        self._address = Address.parse_any(url, None, flag)
        self._key = [("X-API-Key", api_key)] if api_key else []
        self.url = url

    async def check(self) -> None:
        """Return if it would make a sandbox for this key.

        Raises:
            LingflashError: it would not; why.
        """
        await self._json("GET", "/v2/sandboxes")

    async def create(self, life_s: float) -> Sandbox:
        """Make a sandbox that ends after so long by itself.

        Raises:
            CapacityError: the server has none free.
            SandboxGoneError: it does not answer, or takes no such key.
        """
        told = await self._json("POST", "/sandboxes", {"templateID": "base", "timeout": life_s})
        try:
            return Sandbox(told["sandboxID"], told["envdAccessToken"])
        except (KeyError, TypeError):
            raise SandboxGoneError(f"{self.url} is no sandbox server.") from None

    async def kill(self, sandbox: Sandbox) -> None:
        """End it, if it is still there."""
        with contextlib.suppress(NotFoundError):
            await self._json("DELETE", f"/sandboxes/{sandbox.id}")

    async def keep(self, sandbox: Sandbox, life_s: float) -> None:
        """Let it live for so long from now.

        Raises:
            NotFoundError: it has ended.
        """
        await self._json("POST", f"/sandboxes/{sandbox.id}/timeout", {"timeout": life_s})

    async def execute(self, sandbox: Sandbox, code: str) -> AsyncGenerator[dict[str, Any], None]:
        """Run code in the sandbox's kernel; gives E2B's events. Left early, it is interrupted.

        Raises:
            SandboxGoneError: the sandbox has ended.
        """
        body = json.dumps({"code": code}).encode()
        rest = b""
        async with self._open("POST", "/execute", body, _of(sandbox), _RUN) as answer:
            async for part in answer.parts():
                *lines, rest = (rest + part).split(b"\n")
                if len(rest) > _MAX_LINE:
                    raise SandboxGoneError("The sandbox wrote a line without an end.")
                for line in lines:
                    if line:
                        yield _decoded(line)

    async def list_files(self, sandbox: Sandbox, folder: str, depth: int) -> list[dict[str, Any]]:
        """The entries of a folder, as E2B's ListDir tells them."""
        given = {"path": folder, "depth": depth}
        told = await self._json("POST", "/filesystem.Filesystem/ListDir", given, _of(sandbox))
        return list(told.get("entries") or ())

    async def entry(self, sandbox: Sandbox, path: str) -> dict[str, Any] | None:
        """What there is at a path, as E2B's Stat tells it; None if nothing."""
        try:
            told = await self._json(
                "POST", "/filesystem.Filesystem/Stat", {"path": path}, _of(sandbox)
            )
        except NotFoundError:
            return None
        return told["entry"]

    async def write_file(self, sandbox: Sandbox, path: str, content: bytes) -> None:
        """Make a file."""
        headers = [*_of(sandbox), ("Content-Type", "application/octet-stream")]
        async with self._open("POST", _files(path), content, headers) as answer:
            await answer.read()

    def read_file(
        self, sandbox: Sandbox, path: str
    ) -> contextlib.AbstractAsyncContextManager[Answer]:
        """A file's bytes, for as long as the block is open."""
        return self._open("GET", _files(path), None, _of(sandbox))

    async def remove_file(self, sandbox: Sandbox, path: str) -> None:
        """Remove a file."""
        await self._json("POST", "/filesystem.Filesystem/Remove", {"path": path}, _of(sandbox))

    async def _json(
        self,
        method: str,
        path: str,
        given: Mapping[str, Any] | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> Any:
        body = None if given is None else json.dumps(given).encode()
        async with self._open(method, path, body, headers) as answer:
            text = await answer.read()
        return _decoded(text) if text else {}

    @contextlib.asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Iterable[tuple[str, str]] = (),
        deadlines: Deadlines = _CALL,
    ) -> AsyncIterator[Answer]:
        """An answer that is a success.

        Raises:
            LingflashError: it is none; the class says whose fault it is.
        """
        try:
            async with open_request(
                self._address, method, path, body, headers=[*self._key, *headers],
                deadlines=deadlines,
            ) as answer:  # fmt: skip
                if answer.status >= 300:
                    # A key opens the server; in a sandbox 403 is what its file system said.
                    said = await answer.read()
                    if answer.status == 403 and headers:
                        raise SandboxError(_message(said))
                    raise self._error(answer.status, said)
                yield answer
        except (OSError, BadAnswer) as error:
            raise SandboxGoneError(
                f"The sandbox server at {self.url} does not answer ({error}); start one with "
                "`ling sandbox`."
            ) from None

    def _error(self, status: int, body: bytes) -> LingflashError:
        said = _message(body)
        match status:
            case 401 | 403:
                return SandboxGoneError(
                    f"The sandbox server at {self.url} takes no such key; see --sandbox-key."
                )
            case 404:
                return NotFoundError(said)
            case 429 | 503:
                return CapacityError(f"The sandbox server has no room now: {said}")
            case 502:
                return SandboxGoneError(said)
            case _:
                return SandboxError(f"The sandbox server said {status}: {said}")


def _of(sandbox: Sandbox) -> list[tuple[str, str]]:
    return [("X-Access-Token", sandbox.token), ("E2b-Sandbox-Id", sandbox.id)]


def _files(path: str) -> str:
    return "/files?" + urlencode({"path": path})


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(replace_escaped_surrogates(text.decode("utf-8", "replace")))
    except ValueError:
        raise SandboxGoneError("The sandbox server's answer is no JSON.") from None
