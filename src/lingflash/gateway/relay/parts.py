"""A request's parts by their sizes, and its conversation by its beginning; never their text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from lingflash.gateway.accounting import Part

_Role = Literal["system", "user", "assistant", "tool", "tools"]
_ROLES: dict[str, _Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
    "tool": "tool", "function": "tool",
}  # fmt: skip


def parts_of(body: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts of a request in any dialect, in the order of the prompt."""
    found: list[Part] = []
    if body.get("tools"):
        found.append(_part("tools", body["tools"]))
    for name in ("system", "instructions"):
        if body.get(name):
            found.append(_part("system", body[name]))
    for name in ("messages", "input", "prompt"):
        value = body.get(name)
        if isinstance(value, str) and value:
            found.append(_part("user", value))
        for message in value if isinstance(value, list) else ():
            found.append(_message(message))
    return tuple(found)


def session_by_content(model: str, parts: tuple[Part, ...]) -> str:
    """A name for a conversation whose client gives none: all before its first answer."""
    digest = hashlib.sha256(model.encode("utf-8", "surrogatepass"))
    for part in parts:
        digest.update(f"\0{part.role}\0{part.digest}".encode())
        if part.role == "user":
            break
    return f"content-{digest.hexdigest()[:32]}"


def _message(message: Any) -> Part:
    if not isinstance(message, Mapping):
        return _part("user", message)
    kind, name = message.get("type"), message.get("name")
    role: _Role = _ROLES.get(str(message.get("role")), "user")
    if isinstance(kind, str) and kind.endswith(("_call_output", "tool_result")):
        role = "tool"
    elif isinstance(kind, str) and kind.endswith(("_call", "reasoning")):
        role = "assistant"
    content = {k: v for k, v in message.items() if k not in ("role", "id", "status")}
    return _part(role, content, name if isinstance(name, str) else None)


def _part(role: _Role, value: Any, name: str | None = None) -> Part:
    text = msgspec.json.encode(value, order="sorted")
    return Part(
        role=role, digest=hashlib.sha256(text).hexdigest()[:32], num_bytes=len(text), name=name
    )
