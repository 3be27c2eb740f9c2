"""A request as it came, and as one upstream gets it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import Request

from lingflash.core.errors import refuse
from lingflash.gateway.accounting import Caller, Dialect, Part
from lingflash.gateway.accounts.parts import parts_of, pieces_of, session_id_of
from lingflash.gateway.config.tables import RequestsTable
from lingflash.gateway.relay.bounds import may_exceed_bytes, num_prompts
from lingflash.gateway.relay.usage import estimated_tokens
from lingflash.gateway.routing.catalog import Endpoint
from lingflash.gateway.routing.chain import Chain, make_chain
from lingflash.gateway.routing.wish import OWN_FIELDS, Wish, read_wish
from lingflash.httpd.body import read_json

# What OpenAI's completions generate where nothing is said.
_COMPLETION_TOKENS = 16
# OpenAI's bound.
_MAX_CHOICES = 128
_LARGE_BYTES = 1 << 18
_MAX_TOKENS = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
PATHS: dict[Dialect, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "responses": "/responses",
    "messages": "/messages",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that is to be relayed.

    Args:
        id: of its generation.
        path: behind an upstream's base URL.
        is_openrouters: came under /api/v1, so that the answer has OpenRouter's additions.
        fields: the body's, undecoded: what an upstream gets is what the client wrote.
        chain: what it has in common with others, for a choice of replicas.
        num_choices: answers that it asks for at once.
        is_free_of_charge: counts tokens only.
        is_session_named: by the client, and not found by content.
        previous_response: the stored response that it goes on from.
        num_prompts: that it can have; each may fill a context.
        may_exceed_bytes: the prompt may have more tokens than the request has bytes.
        headers: of the request, those that an upstream gets, too.
        trace: its headers of W3C's trace context.
    """

    id: str
    request_id: str
    caller: Caller
    dialect: Dialect
    path: str
    is_openrouters: bool
    wish: Wish
    session_id: str
    fields: Mapping[str, msgspec.Raw] = field(repr=False)
    parts: tuple[Part, ...] = field(repr=False)
    chain: Chain = field(repr=False)
    num_bytes: int
    is_streamed: bool
    shows_usage: bool
    wants_metadata: bool
    num_choices: int
    is_free_of_charge: bool = False
    is_session_named: bool = False
    previous_response: str | None = None
    num_prompts: int = 1
    may_exceed_bytes: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    trace: Mapping[str, str] = field(default_factory=dict[str, str])

    def body_for(self, endpoint: Endpoint) -> bytes:
        """The body that an upstream gets."""
        fields: dict[str, Any] = {k: v for k, v in self.fields.items() if k not in OWN_FIELDS}
        fields["model"] = endpoint.upstream_model
        if self.is_streamed and self.dialect in ("chat", "completions"):
            asked = fields.get("stream_options")
            options = msgspec.json.decode(asked) if asked is not None else None
            options = options if isinstance(options, dict) else {}
            fields["stream_options"] = {**options, "include_usage": True}
        for name in (endpoint.slug, endpoint.provider.lower()):
            fields |= self.wish.options.get(name, {})
        return msgspec.json.encode(fields)

    @property
    def estimated_prompt_tokens(self) -> int:
        """About how many tokens the prompt has, for the bill of an answer that tells nothing."""
        # Of a stored conversation only the bytes of the request are known.
        return estimated_tokens(sum(part.num_bytes for part in self.parts) or self.num_bytes)

    def most_tokens(self, endpoint: Endpoint, requests: RequestsTable) -> tuple[int, int]:
        """The most tokens that prompt and answer can have at an endpoint."""
        if self.is_free_of_charge:
            return 0, 0
        prompt = endpoint.context_tokens * self.num_prompts
        if not self.may_exceed_bytes:
            prompt = min(int(self.num_bytes / requests.bytes_per_token) + 1, prompt)
        asked = self.wish.completion_tokens
        answer = endpoint.max_output_tokens
        if asked is not None:
            answer = min(asked, answer)
        return prompt, answer * self.num_choices


async def read_call(
    request: Request, caller: Caller, dialect: Dialect, *, is_count: bool = False
) -> Call:
    """Read a request.

    Raises:
        InvalidRequestError: it is no JSON object, or its routing cannot be read.
    """
    body, value = await read_json(request)
    if not isinstance(value, dict):
        refuse("body", "must be a JSON object")
    if len(body) > _LARGE_BYTES:
        return await asyncio.to_thread(_made, request, caller, dialect, body, value, is_count)
    return _made(request, caller, dialect, body, value, is_count)


def _made(
    request: Request,
    caller: Caller,
    dialect: Dialect,
    body: bytes,
    value: dict[str, Any],
    is_count: bool,
) -> Call:
    headers = {name.lower(): text for name, text in request.headers.items()}
    most, num_choices = _answer_size(dialect, value)
    wish = read_wish(
        value,
        headers,
        prompt_tokens=estimated_tokens(len(body)),
        completion_tokens=most,
    )
    if value.get("background"):
        refuse("background", "is not supported here; ask the upstream itself, or stream")
    is_openrouters = request.scope["path"].startswith("/api/")
    options = value.get("stream_options")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    session_id = session_id_of(dialect, value, headers)
    pieces = pieces_of(dialect, value)
    role = "text" if dialect == "completions" else None
    salt = str(value.get("cache_salt") or "").encode("utf-8", "replace")
    stream = value.get("stream")
    if stream is not None and not isinstance(stream, bool):
        refuse("stream", "must be true or false")
    previous = value.get("previous_response_id")
    return Call(
        id=f"gen-{secrets.token_hex(12)}",
        request_id=request.scope["state"]["request_id"],
        caller=caller,
        dialect=dialect,
        path=PATHS[dialect] + ("/count_tokens" if is_count else ""),
        is_openrouters=is_openrouters,
        wish=wish,
        session_id=session_id,
        fields=_undecoded(body, value),
        parts=parts_of(pieces, session_id),
        chain=make_chain([(role or each.role, each.content) for each in pieces], salt=salt),
        num_bytes=len(body),
        is_streamed=bool(stream) and not is_count,
        shows_usage=asked or is_openrouters,
        wants_metadata=headers.get("x-openrouter-metadata", "").lower() == "enabled",
        num_choices=num_choices,
        is_free_of_charge=is_count,
        is_session_named=bool(
            value.get("session_id") or headers.get("x-session-id") or value.get("prompt_cache_key")
        ),
        previous_response=previous if isinstance(previous, str) and previous else None,
        num_prompts=num_prompts(dialect, value),
        # A vendor's options become fields of the body.
        may_exceed_bytes=any(
            may_exceed_bytes(dialect, {**value, **more}) for more in ({}, *wish.options.values())
        ),
        trace={k: v for k, v in headers.items() if k in ("traceparent", "tracestate")},
        headers=tuple(
            (name, headers[name])
            for name in ("anthropic-version", "anthropic-beta")
            if name in headers and headers[name].isascii() and headers[name].isprintable()
        ),
    )


def _undecoded(body: bytes, value: dict[str, Any]) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):  # it had to be repaired to be read
        return {name: msgspec.Raw(msgspec.json.encode(each)) for name, each in value.items()}


def _answer_size(dialect: Dialect, value: Mapping[str, Any]) -> tuple[int | None, int]:
    """The longest answer that is asked for, None if that is open, and how many of them."""
    most: int | None = _COMPLETION_TOKENS if dialect == "completions" else None
    limits: list[int] = []
    for name in _MAX_TOKENS[dialect]:
        given = value.get(name)
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, int) or given < 0:
                refuse(name, "must be a whole number, 0 or more")
            limits.append(given)
    if limits:
        # Servers differ in which of two names they obey, and many read 0 as no limit.
        most = max(limits) if min(limits) > 0 or dialect == "completions" else None
    count = 1
    for name in ("n", "best_of") if dialect in ("chat", "completions") else ():
        given = value.get(name)
        if given is not None:
            # Some servers read 8.0 and "8" as 8; what is reserved must not differ from theirs.
            if isinstance(given, bool) or not isinstance(given, int) or given > _MAX_CHOICES:
                refuse(name, f"must be a whole number, up to {_MAX_CHOICES}")
            count = max(count, given)
    return most, count * num_prompts(dialect, value)
