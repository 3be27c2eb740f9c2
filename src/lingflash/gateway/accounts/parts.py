"""What a request is made of, and which conversation it belongs to; sizes and digests, never text.

Bodies are as the client sent them, checked by nobody yet: what is not of the expected shape is left
out here and refused elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from lingflash.core.errors import refuse
from lingflash.gateway.accounting import Dialect, Part

MAX_SESSION_CHARS = 256
_Role = Literal["system", "user", "assistant", "tool", "tools"]
# role, content, name of the tool whose result it is
_Piece = tuple[_Role, Any, str | None]
# Clients move these marks along with the conversation; the model does not see them.
_MARKS = frozenset(("cache_control", "id", "status"))
_ROLES: Mapping[str, _Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class Piece(NamedTuple):
    """A part of a request with its content: as canonical bytes, and the size of its texts."""

    role: _Role
    content: bytes
    num_bytes: int
    name: str | None


def pieces_of(dialect: Dialect, body: Mapping[str, Any]) -> list[Piece]:
    """What a request is made of, in its order; none where it lies with the server."""
    if body.get("previous_response_id"):
        return []
    return [
        Piece(role, _bytes_of(content), _size_of(content), name)
        for role, content, name in _pieces(dialect, body)
    ]


def parts_of(pieces: Sequence[Piece], session_id: str) -> tuple[Part, ...]:
    """The parts of a request in their order.

    Args:
        session_id: digests are of one session, so that a text cannot be known again in another's.
    """
    key = hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).digest()
    return tuple(
        Part(
            role=each.role,
            name=each.name,
            digest=hashlib.blake2b(each.content, digest_size=8, key=key).hexdigest(),
            num_bytes=each.num_bytes,
        )
        for each in pieces
    )


def session_id_of(dialect: Dialect, body: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """The conversation: as the client says, else by content.

    By content it is the hash of what all of its turns have in common: model, instructions, tools
    and the first message of the user.

    Raises:
        InvalidRequestError: the client's is too long.
    """
    for name, given in (
        ("session_id", body.get("session_id")),
        ("x-session-id", headers.get("x-session-id")),
        ("prompt_cache_key", body.get("prompt_cache_key")),
    ):
        if isinstance(given, str) and given:
            if len(given) > MAX_SESSION_CHARS:
                refuse(name, f"has {len(given)} characters; allowed: {MAX_SESSION_CHARS}")
            return given
    digest = hashlib.blake2b(digest_size=16)
    model = body.get("model")
    digest.update(_bytes_of(model.partition(":")[0] if isinstance(model, str) else None))
    for role, content, _ in _pieces(dialect, body):
        if role in ("assistant", "tool"):
            break
        digest.update(role.encode() + b"\0" + _bytes_of(content))
        if role == "user":
            break
    return f"auto-{digest.hexdigest()}"


def _pieces(dialect: Dialect, body: Mapping[str, Any]) -> Iterator[_Piece]:
    if body.get("tools"):
        yield "tools", body["tools"], None
    match dialect:
        case "chat":
            yield from _of_chat(_list(body.get("messages")))
        case "completions":
            yield "user", body.get("prompt"), None
        case "responses":
            if body.get("instructions"):
                yield "system", body["instructions"], None
            given = body.get("input")
            if isinstance(given, str):
                yield "user", given, None
            else:
                yield from _of_items(_list(given))
        case "messages":
            if body.get("system"):
                yield "system", body["system"], None
            yield from _of_messages(_list(body.get("messages")))


def _of_chat(messages: Sequence[Mapping[str, Any]]) -> Iterator[_Piece]:
    names: dict[str, str] = {}
    for message in messages:
        role = _ROLES.get(str(message.get("role")), "user")
        calls = _list(message.get("tool_calls"))
        for call in calls:
            function = call.get("function")
            if isinstance(function, Mapping):
                names[str(call.get("id"))] = str(function.get("name"))
        if role == "tool":
            known = names.get(str(message.get("tool_call_id")))
            yield role, message.get("content"), known or str(message.get("name") or "tool")
        elif role == "assistant":
            # Only what the model reads: clients send back different things beside it.
            yield role, [message.get("content"), _calls_of(calls)], None
        else:
            yield role, message.get("content"), None


def _calls_of(calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [call.get("function") or call.get("custom") for call in calls]


def _of_items(items: Sequence[Mapping[str, Any]]) -> Iterator[_Piece]:
    names: dict[str, str] = {}
    for item in items:
        kind = str(item.get("type") or "message")
        if kind == "message":
            yield _ROLES.get(str(item.get("role")), "user"), item.get("content"), None
        elif kind.endswith("_call_output"):
            name = names.get(str(item.get("call_id")), kind.removesuffix("_call_output"))
            yield "tool", item.get("output"), name
        elif kind == "code_interpreter_call":  # it ran at the server: call and result are one item
            yield "assistant", item.get("code"), None
            yield "tool", item.get("outputs"), "code_interpreter"
        else:
            names[str(item.get("call_id"))] = str(item.get("name") or kind)
            yield "assistant", item, None


def _of_messages(messages: Sequence[Mapping[str, Any]]) -> Iterator[_Piece]:
    names: dict[str, str] = {}
    for message in messages:
        content = message.get("content")
        blocks = _list(content)
        if message.get("role") == "assistant":
            for block in blocks:
                if block.get("type") == "tool_use":
                    names[str(block.get("id"))] = str(block.get("name"))
            yield "assistant", content, None
            continue
        rest: list[Any] = []
        for block in blocks:
            if block.get("type") == "tool_result":
                name = names.get(str(block.get("tool_use_id")), "tool")
                yield "tool", block.get("content"), name
            else:
                rest.append(block)
        if rest or not blocks:
            yield "user", rest or content, None


def _list(value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list):
        return []
    return [each for each in value if isinstance(each, Mapping)]


def _bytes_of(value: Any) -> bytes:
    """The same bytes for the same content, however a client orders and marks it.

    A text and a list of the one text are the same content: clients change from one to the other.
    """
    return msgspec.json.encode(_plain(value), order="sorted", enc_hook=str)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if k not in _MARKS}
    if isinstance(value, list):
        items = [_plain(each) for each in value]
        if len(items) == 1 and isinstance(items[0], Mapping) and "text" in items[0]:
            return items[0]["text"]
        return items
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value


def _size_of(value: Any) -> int:
    """Bytes of all texts in it."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return sum(_size_of(v) for k, v in value.items() if k not in _MARKS and k != "type")
    if isinstance(value, list):
        return sum(map(_size_of, value))
    return 0
