"""What code gave, as OpenAI's outputs, and as the text that the model reads of them.

The text is made of the outputs alone, so that a later request, which has only those, makes the same
prompt again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

# Of one run; what goes beyond is left out, and that is said.
MAX_LOG_CHARS = 1 << 18
MAX_IMAGE_CHARS = 8 << 20
_MAX_ERROR_CHARS = 1 << 14
# Of an output the model reads no more than this, however large its context is.
_MAX_READ_CHARS = 20_000
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_IMAGES = {"png": "image/png", "jpeg": "image/jpeg", "svg": "image/svg+xml"}


class Outputs:
    """Collects the events of one run.

    Args:
        num_bytes: of all that the code gave, with what is left out here.
        has_error: it raised.
    """

    def __init__(self) -> None:
        self._found: list[dict[str, Any]] = []
        self._pieces: list[str] = []  # of the logs after what was found
        self._log_room = MAX_LOG_CHARS
        self._image_room = MAX_IMAGE_CHARS
        self.num_bytes = 0
        self.has_error = False

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one of E2B's events."""
        match event.get("type"):
            case "stdout" | "stderr":
                self._log(str(event.get("text", "")))
            case "result":
                self._result(event)
            case "error":
                self.has_error = True
                trace = _COLOURS.sub("", str(event.get("traceback") or event.get("value")))
                self.num_bytes += len(trace.encode("utf-8", "replace"))
                self.note(trace[-_MAX_ERROR_CHARS:])
            case _:
                pass

    def note(self, text: str) -> None:
        """Add a line of its own, for which there is always room."""
        if self._pieces and not self._pieces[-1].endswith("\n"):
            self._pieces.append("\n")
        self._pieces.append(text if text.endswith("\n") else text + "\n")

    def whole(self) -> list[dict[str, Any]]:
        """The outputs so far."""
        if self._pieces:
            self._found.append({"type": "logs", "logs": "".join(self._pieces)})
            self._pieces.clear()
        return self._found

    def _result(self, event: Mapping[str, Any]) -> None:
        kinds = [kind for kind in _IMAGES if isinstance(event.get(kind), str)]
        if not kinds:
            text = event.get("text")
            if isinstance(text, str) and text:
                self._log(text + "\n")
            return
        kind = kinds[0]
        data: str = event[kind]
        self.num_bytes += len(data)
        room, self._image_room = self._image_room, self._image_room - len(data)
        if self._image_room < 0:
            if room >= 0:
                self.note(f"[images over {MAX_IMAGE_CHARS} bytes are left out]")
            return
        url = f"data:{_IMAGES[kind]};base64,{data}"
        if kind == "svg":
            url = f"data:{_IMAGES[kind]};utf8,{quote(data)}"
        self.whole().append({"type": "image", "url": url})

    def _log(self, text: str) -> None:
        self.num_bytes += len(text.encode("utf-8", "replace"))
        room, self._log_room = self._log_room, self._log_room - len(text)
        if room > 0 and text:
            self._pieces.append(text[:room])
            if room < len(text):
                self.note(f"[output over {MAX_LOG_CHARS} characters is left out]")


def text_of(outputs: Sequence[Any] | None, max_model_len: int) -> str:
    """What the model reads of a run: its logs, a word for each image, the middle of much left out.

    Args:
        outputs: as an item has them; of a client they may be anything, or left out.
        max_model_len: tokens of the context, of which one run may fill half at most.
    """
    if outputs is None:
        return "[the output was not sent back]"
    texts: list[str] = []
    for each in outputs:
        if not isinstance(each, Mapping):
            continue
        if each.get("type") == "logs":
            texts.append(str(each.get("logs", "")))
        elif each.get("type") == "image":
            texts.append("[an image, which is shown to the user]\n")
    text = "".join(texts)
    most = min(_MAX_READ_CHARS, max_model_len // 2)
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
