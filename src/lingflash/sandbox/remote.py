"""Backend `remote`: sandboxes of E2B's or Novita's cloud, or of another `ling sandbox`.

What callers send is passed on as it is, the house's key instead of theirs, and so are the answers:
what the remote server can do, its callers can. Which sandbox is whose is known here alone, so each
key sees its own; they are counted against the key's limits, and ended with this server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from lingflash.core.errors import (
    AuthenticationError,
    CapacityError,
    ConfigError,
    InvalidRequestError,
    LingflashError,
    NotFoundError,
    QueueFullError,
    RateLimitError,
    SandboxGoneError,
    UpstreamError,
)
from lingflash.link.connection_pool import ConnectionPool
from lingflash.link.http_client import Address, Answer, BadAnswer, Deadlines, open_request
from lingflash.sandbox.config import SandboxConfig
from lingflash.sandbox.metrics import SandboxMetrics
from lingflash.sandbox.quotas import Quotas

_DEADLINES = Deadlines(connect_s=10.0)
_CONTROL = Deadlines(connect_s=10.0, first_byte_s=60.0, idle_s=60.0)
_MAX_ANSWER_BYTES = 8 << 20
_MAX_WHOLE_BYTES = 1 << 20  # of a body; a longer one is passed on as it comes
# On a vendor's domain each service of a sandbox is a host of its own.
_CODE_PORT, _ENVD_PORT = 49999, 49983
_CODE_PATHS = ("/execute", "/contexts")
_CONTROL_PATH = re.compile(r"(/v\d)?/sandboxes/(?P<id>[\w-]+)(?P<rest>(/[\w-]+)*)", re.ASCII)
# Of one connection, not of the message; and whose key it was.
_NOT_PASSED_ON = frozenset(
    {"connection", "content-length", "cookie", "date", "host", "keep-alive", "server", "te"}
    | {"set-cookie", "trailer", "transfer-encoding", "upgrade", "x-api-key"}
)


@dataclass(slots=True)
class Rented:
    """A sandbox elsewhere.

    Args:
        token: of its calls; "" if the remote server gave none.
        domain: below which its hosts are, if it said so.
    """

    id: str
    owner: str
    token: str
    domain: str | None


class Remote:
    """Which sandboxes were made elsewhere, and for whom; the service behind the HTTP server."""

    name = "remote sandboxes"

    def __init__(self, config: SandboxConfig, metrics: SandboxMetrics) -> None:
        self.config = config
        self.metrics = metrics
        self.is_ready = False
        self._is_url = "://" in config.remote
        url = config.remote if self._is_url else f"https://api.{config.remote}"
        self._control = Address.parse_any(url, flag="--remote")
        self._pool = ConnectionPool()
        self._quotas = Quotas(config)
        self._by_id: dict[str, Rented] = {}
        self._making: Counter[str] = Counter()
        metrics.state.set_function(lambda: len(self._by_id))

    # --- the service -------------------------------------------------------------------------

    async def start(self) -> None:
        """See whether the remote server is there and takes the key.

        Raises:
            ConfigError: it does not.
        """
        try:
            status, _ = await self._call("GET", "/v2/sandboxes?limit=1")
        except UpstreamError as error:
            raise ConfigError(f"--remote {self.config.remote}: {error.message}") from None
        if status != 200:
            raise ConfigError(
                f"--remote {self.config.remote} answered with status {status} to "
                "/v2/sandboxes; is it a server of E2B's API, and the --remote-api-key its?"
            )
        self.is_ready = True

    async def wait_dead(self) -> LingflashError:
        """It does not die by itself."""
        await asyncio.Event().wait()
        raise AssertionError("never set")

    def drain(self) -> None:
        """Nothing is prepared."""

    async def stop(self) -> None:
        """End all sandboxes that were made here."""
        await asyncio.gather(
            *(self._end(each, "server_stopped") for each in list(self._by_id.values()))
        )
        self._pool.close()

    # --- control -----------------------------------------------------------------------------

    async def create(self, owner: str, path: str, wanted: Any) -> tuple[int, Any]:
        """Make a sandbox there; gives the answer for the caller.

        Raises:
            CapacityError: the key or the server has as many as it may.
            UpstreamError: the remote server gave no answer.
        """
        if not isinstance(wanted, dict):
            raise InvalidRequestError("The request body must be an object.")
        if self.config.internet != "allow":
            _refuse_rules("network" in wanted)
            asked = [each for each in ("allow_internet_access", "allowInternetAccess") if
                     wanted.pop(each, None)]  # fmt: skip
            if asked and self.config.internet == "strict":
                raise InvalidRequestError(
                    f"{asked[0]} is true, but this server gives no network (--internet strict).",
                    param=asked[0],
                )
            wanted["allow_internet_access"] = False
        await self._check_room(owner)
        self._making[owner] += 1
        try:
            status, told = await self._call("POST", path, {"secure": True, **wanted})
            if status == 201 and isinstance(told, dict) and isinstance(told.get("sandboxID"), str):
                made = Rented(told["sandboxID"], owner, "", None)
                self._learn(made, told)
                self._by_id[made.id] = made
                self.metrics.created.labels("remote").inc()
        finally:
            self._making[owner] -= 1
        return status, told

    async def _check_room(self, owner: str) -> None:
        config = self.config
        if self._count(owner) >= config.max_sandboxes_per_key or (
            len(self._by_id) + self._making.total() >= config.max_sandboxes
        ):
            await self._forget_ended()
        if (mine := self._count(owner)) >= config.max_sandboxes_per_key:
            self.metrics.refused.labels("count").inc()
            raise QueueFullError(
                f"This API key has {mine} sandboxes, which is all that one may have; "
                "kill one, or raise --max-sandboxes-per-key."
            )
        if len(self._by_id) + self._making.total() >= config.max_sandboxes:
            raise CapacityError(
                f"All {config.max_sandboxes} sandboxes are taken; try again, or raise "
                "--max-sandboxes."
            )
        try:
            self._quotas.check(owner)
        except RateLimitError as error:
            self.metrics.refused.labels(error.param or "").inc()
            raise

    def _count(self, owner: str) -> int:
        return sum(each.owner == owner for each in self._by_id.values()) + self._making[owner]

    async def _forget_ended(self) -> None:
        """Ask after each whether it is still there; some end by their own time."""

        async def look(rented: Rented) -> None:
            with contextlib.suppress(UpstreamError):
                status, _ = await self._call("GET", f"/sandboxes/{rented.id}")
                if status == 404:
                    self._forget(rented, "expired")

        await asyncio.gather(*map(look, list(self._by_id.values())))

    async def control(
        self, owner: str, method: str, path: str, query: str, wanted: Any
    ) -> tuple[int, Any]:
        """Ask something of one sandbox of the caller's, which the path names.

        Raises:
            NotFoundError: it is not the caller's, or the path is none.
            RateLimitError: it is to run again, and its key has used up its output.
            UpstreamError: the remote server gave no answer.
        """
        found = _CONTROL_PATH.fullmatch(path)
        rented = self._by_id.get(found["id"]) if found else None
        if found is None or rented is None or rented.owner != owner:
            raise NotFoundError("The sandbox was not found.")
        if found["rest"] in ("/connect", "/resume"):
            self._quotas.check(owner)
        if self.config.internet != "allow" and method != "GET":
            named = isinstance(wanted, dict) and "network" in wanted
            _refuse_rules(named or found["rest"] == "/network")
        status, told = await self._call(method, path + query, wanted)
        if status == 404 or (method == "DELETE" and status == 204):
            self._forget(rented, "expired" if status == 404 else "killed")
        self._learn(rented, told)
        return status, told

    async def all_of(self, owner: str, path: str) -> tuple[int, Any]:
        """The caller's sandboxes."""
        status, told = await self._call("GET", path)
        if status != 200 or not isinstance(told, list):
            return status, told
        mine = {each.id for each in self._by_id.values() if each.owner == owner}
        found = [each for each in told if isinstance(each, dict) and each.get("sandboxID") in mine]
        for each in found:
            each["domain"] = None
        return status, found

    def _learn(self, rented: Rented, told: Any) -> None:
        """Take from an answer what a sandbox's own calls need, and lead those calls here."""
        if not isinstance(told, dict) or told.get("sandboxID") != rented.id:
            return
        rented.token = str(told.get("envdAccessToken") or rented.token)
        rented.domain = told.get("domain") or rented.domain
        told["domain"] = None

    async def _end(self, rented: Rented, reason: str) -> None:
        with contextlib.suppress(UpstreamError):
            await self._call("DELETE", f"/sandboxes/{rented.id}")
        self._forget(rented, reason)

    async def kill(self, sandbox_id: str) -> None:
        """End one that nobody came to know of."""
        if (rented := self._by_id.get(sandbox_id)) is not None:
            await self._end(rented, "killed")

    def _forget(self, rented: Rented, reason: str) -> None:
        if self._by_id.pop(rented.id, None) is not None:
            self.metrics.ended.labels(reason).inc()

    async def _call(self, method: str, path: str, payload: Any = None) -> tuple[int, Any]:
        """Ask the remote control API; gives the status and the JSON, None if there is none."""
        body = None if payload is None else msgspec.json.encode(payload)
        headers = [("x-api-key", self.config.remote_api_key or "")]
        try:
            async with self._pool.open(
                self._control, method, path, body, headers=headers, deadlines=_CONTROL
            ) as answer:
                content = b""
                async for part in answer.parts():
                    content += part
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise BadAnswer("its answer is too long")
        except (OSError, BadAnswer) as error:
            raise UpstreamError(f"The remote sandbox server gave no answer: {error}.") from None
        if answer.status in (401, 403):
            raise UpstreamError("The remote sandbox server refused the house's key.")
        try:
            return answer.status, msgspec.json.decode(content) if content else None
        except msgspec.DecodeError:
            raise UpstreamError("The remote sandbox server's answer is no JSON.") from None

    # --- what happens in a sandbox -----------------------------------------------------------

    def sandbox_of(self, headers: Mapping[str, str], *, id_is_enough: bool) -> Rented:
        """The sandbox that a call names, by the rules of `e2b.access.sandbox_of`.

        Raises:
            AuthenticationError: nothing is named, or the id and the token are of two sandboxes.
            SandboxGoneError: there is none.
        """
        token, sandbox_id = headers.get("x-access-token", ""), headers.get("e2b-sandbox-id", "")
        if token:
            given = token.encode("utf-8", "surrogateescape")
            found = [
                each
                for each in self._by_id.values()
                if each.token and hmac.compare_digest(each.token.encode(), given)
            ]
            if found and sandbox_id and found[0].id != sandbox_id:
                raise AuthenticationError("The access token is of another sandbox.")
        elif id_is_enough and sandbox_id:
            found = [self._by_id[sandbox_id]] if sandbox_id in self._by_id else []
        else:
            raise AuthenticationError(
                "No access token was given; send the sandbox's as the header X-Access-Token."
            )
        if not found:
            raise SandboxGoneError("The sandbox was not found; it has ended, or never was.")
        return found[0]

    async def forward(self, request: Request, rented: Rented) -> Response:
        """Pass a call on, and its answer back as it comes.

        Raises:
            RateLimitError: the key has used up its output.
            UpstreamError: no answer came.
        """
        self._quotas.check(rented.owner)
        scope = request.scope
        path = scope["raw_path"].decode("latin-1").partition("?")[0]
        query = scope["query_string"].decode("latin-1")
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name not in _NOT_PASSED_ON and not value.lower().startswith("bearer ")
        ]
        target = f"{path}?{query}" if query else path
        address, method = self._address(rented, path), request.method
        declared = request.headers.get("content-length", "0")
        stack = contextlib.AsyncExitStack()
        try:
            if "transfer-encoding" in request.headers or int(declared) > _MAX_WHOLE_BYTES:
                opened = open_request(
                    address, method, target, request.stream(), headers=headers, deadlines=_DEADLINES
                )
            else:
                body = await request.body() or None
                opened = self._pool.open(
                    address, method, target, body, headers=headers, deadlines=_DEADLINES
                )
            answer = await stack.enter_async_context(opened)
        except (OSError, BadAnswer) as error:
            raise UpstreamError(f"The remote sandbox gave no answer: {error}.") from None
        except ClientDisconnect:
            raise InvalidRequestError("The request body did not arrive.") from None
        except ValueError:
            raise InvalidRequestError("The path or a header is no printable ASCII.") from None
        kept = {k: v for k, v in answer.headers.items() if k not in _NOT_PASSED_ON}
        if "content-length" in answer.headers:
            kept["content-length"] = answer.headers["content-length"]
        return StreamingResponse(
            self._counted(stack, answer, rented), status_code=answer.status, headers=kept
        )

    def _address(self, rented: Rented, path: str) -> Address:
        if self._is_url:
            return self._control
        port = _CODE_PORT if path.startswith(_CODE_PATHS) else _ENVD_PORT
        host = f"{port}-{rented.id}.{rented.domain or self.config.remote}"
        return Address(host, 443, is_tls=True)

    async def _counted(
        self, stack: contextlib.AsyncExitStack, answer: Answer, rented: Rented
    ) -> AsyncGenerator[bytes, None]:
        async with stack:
            async for part in answer.parts():
                self.metrics.output.inc(len(part))
                self._quotas.charge(rented.owner, cpu_s=0.0, output_bytes=len(part))
                yield part


def _refuse_rules(is_asked: bool) -> None:
    """Let nobody open by rules, which go before `allow_internet_access`, what --internet closes.

    Raises:
        InvalidRequestError: a call has some.
    """
    if is_asked:
        raise InvalidRequestError(
            "network is not supported by this sandbox server without --internet allow.",
            param="network",
        )
