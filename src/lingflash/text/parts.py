"""The parts of a message's content, in any dialect: text, and what a text model cannot read.

A picture, sound, file or PDF becomes an `Unreadable`; whoever knows the whole conversation decides
whether a note takes its place or the request is refused (`conversation.py`). A file or document
that holds text is text.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lingflash.core.errors import refuse
from lingflash.protocol.fields import Dropped, take
from lingflash.protocol.history_fields import TEXT_PART

# Each dialect's word for a part, to what it is.
_TEXTS = frozenset(
    ("text", "input_text", "output_text", "summary_text", "reasoning_text", "advisor_result")
)
_KINDS = {
    **dict.fromkeys(("image_url", "input_image", "image", "computer_screenshot"), "image"),
    **dict.fromkeys(("input_audio", "audio_url", "audio"), "audio"),
    **dict.fromkeys(("video_url", "input_video", "video"), "video"),
    **dict.fromkeys(("file", "input_file", "document"), "file"),
}
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml")
_DATA_KEYS = ("image_url", "input_audio", "audio_url", "video_url", "file", "source")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A part that this model cannot read.

    Args:
        kind: image, audio, video, file, or "part" for what is not known.
        type: the client's word for it.
        where: the part, such as messages[2].content[0].
        detail: what is known of it, such as "image/png, 3 KB".
    """

    kind: str
    type: str
    where: str
    detail: str = ""

    @property
    def note(self) -> str:
        """What stands in its place."""
        name = self.type if self.kind == "part" else self.kind
        detail = f" ({self.detail})" if self.detail else ""
        return f"[{name} omitted{detail}: this model reads text only]"


Part = str | Unreadable


def read_parts(content: Any, where: str, dropped: Dropped) -> list[Part]:
    """Read a message's content: a string, or a list of parts.

    Raises:
        InvalidRequestError: it is neither, or a part is malformed.
    """
    if isinstance(content, str):
        return [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        refuse(where, f"is {type(content).__name__}; a string or a list of text parts is needed")
    parts: list[Part] = []
    for i, part in enumerate(content):
        parts += read_part(part, f"{where}[{i}]", dropped)
    return parts


def read_part(part: Any, where: str, dropped: Dropped) -> list[Part]:
    """Read one part; several come of a document that has parts of its own.

    Raises:
        InvalidRequestError: it is malformed.
    """
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        refuse(f"{where}.type", f"is {kind!r}; this model reads text parts only")
    if kind in _TEXTS:
        text = take(part, TEXT_PART, where, dropped).get("text")
        return [_string(text, f"{where}.text")]
    if kind == "refusal":
        return [_string(part.get("refusal"), f"{where}.refusal")]
    if kind == "search_result":
        head = [str(part[key]) for key in ("title", "source") if isinstance(part.get(key), str)]
        return ["\n".join(head), *read_parts(part.get("content"), f"{where}.content", dropped)]
    if kind == "tool_reference":
        return [f"Tool found: {_string(part.get('tool_name'), f'{where}.tool_name')}"]
    if _KINDS.get(kind) == "file":
        found = _document(part, where, dropped)
        if found is not None:
            return found
    return [Unreadable(_KINDS.get(kind, "part"), kind, where, _detail(part))]


def join_parts(parts: Sequence[Part], joint: str) -> str:
    """One text of parts, with a note for each that cannot be read, on lines of its own."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    text = ""
    after_note = False
    for i, part in enumerate(parts):
        is_note = isinstance(part, Unreadable)
        if i:
            text += joint or ("\n" if is_note or after_note else "")
        text += part.note if isinstance(part, Unreadable) else part
        after_note = is_note
    return text


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        refuse(where, f"is {value!r}; a string is needed")
    return value


def _document(part: Mapping[str, Any], where: str, dropped: Dropped) -> list[Part] | None:
    """The text of a file, if it is text."""
    citations = part.get("citations")
    if isinstance(citations, Mapping) and citations.get("enabled"):
        refuse(f"{where}.citations", "is not supported; leave it out")
    source = part.get("source")
    head = "\n".join(
        value
        for key in ("title", "filename", "context")
        if isinstance(value := part.get(key), str) and value
    )
    title = [head] if head else []
    if isinstance(source, Mapping):  # Anthropic's
        if source.get("type") == "text" and isinstance(source.get("data"), str):
            return [*title, source["data"]]
        if source.get("type") == "content":
            inner = source.get("content")
            return [*title, *read_parts(inner, f"{where}.source.content", dropped)]
        return None
    file = part.get("file") if isinstance(part.get("file"), Mapping) else part
    assert isinstance(file, Mapping)
    data, name = file.get("file_data"), file.get("filename")
    if not isinstance(data, str):
        return None
    media_type, encoded = _split_data_url(data)
    if media_type is None and isinstance(name, str):
        media_type = mimetypes.guess_type(name)[0]
    if media_type is None or not media_type.startswith(_TEXT_TYPES):
        return None
    try:
        text = base64.b64decode(encoded, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    return [name, text] if isinstance(name, str) and name else [text]


def _split_data_url(url: str) -> tuple[str | None, str]:
    """The media type and the base64 of a data: URL, or no type and the text as it is."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:"):
        return None, url
    return head.removeprefix("data:").partition(";")[0] or None, data


def _detail(part: Mapping[str, Any]) -> str:
    """What a part says of itself: its media type or format, and its size."""
    inner: Any = part
    for key in _DATA_KEYS:
        if part.get(key) is not None:
            inner = part[key]
            break
    if isinstance(inner, str):
        inner = {"url": inner}
    if not isinstance(inner, Mapping):
        return ""
    media_type: Any = inner.get("media_type") or inner.get("format")
    data: Any = inner.get("data") or inner.get("file_data")
    url = inner.get("url")
    if data is None and isinstance(url, str) and url.startswith("data:"):
        media_type, data = _split_data_url(url)
    elif isinstance(data, str) and data.startswith("data:"):
        media_type, data = _split_data_url(data)
    found = []
    if isinstance(media_type, str) and len(media_type) < 64:
        found.append(media_type)
    if isinstance(data, str) and data:
        found.append(f"{max(1, round(len(data) * 3 / 4 / 1024))} KB")
    return ", ".join(found)
