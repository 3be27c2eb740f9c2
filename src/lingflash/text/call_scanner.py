"""Reads the JSON of one tool call while it is being written.

JSON, character by character, so that text that is no call is given up at the first character that
cannot belong to one. What is plainly meant is read for it and repaired: raw control characters in
strings, half surrogates, arguments as a string of JSON.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from lingflash.protocol.unicode import replace_escaped_surrogates, replace_surrogates

OPEN_TAG = "<tool_call>"
CLOSE_TAG = "</tool_call>"

# A client must be able to send a call back, so not deeper than a request may be (httpd/body.py),
# and no longer integers than Python's json module reads.
MAX_DEPTH = 100
MAX_NUMBER_CHARS = 4000

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LITERALS = ("true", "false", "null")
_SPACE = " \t\n\r"
_HEX = "0123456789abcdefABCDEF"
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f]")

_State = Literal[
    "value", "first_item", "first_key", "key", "colon", "after", "string", "escape", "hex", "word"
]


class CallScanner:
    """The text between the tags of one call.

    Attributes:
        text: all of it so far.
        position: how far it has been read.
        name: of the function, once known.
        arguments_start: where the arguments' object begins in `text`, once known.
        arguments_end: where it ends, exclusive.
        is_whole: the call's JSON is complete, and nothing but its closing tag may follow.
    """

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        self.name: str | None = None
        self.arguments_start: int | None = None
        self.arguments_end: int | None = None
        self._state: _State = "value"
        self._stack: list[str] = []
        self._begin = 0  # of the string or word being read
        self._is_key = False
        self._hex_left = 0
        self._key: str | None = None  # at the call's own level
        self._seen: set[str] = set()
        self._decoded: str | None = None  # arguments that were a string of JSON
        self._has_control = False
        self.is_whole = False

    @property
    def safe_position(self) -> int:
        """Where text that was no call may begin to be read anew.

        That is before an open string, and before a closing tag in a string: there the string was
        most likely meant to have ended.
        """
        in_string = self._state in ("string", "escape", "hex")
        end = self._begin if in_string else self.position
        tag = self.text.find(CLOSE_TAG, 0, end)
        return end if tag < 0 else tag

    @property
    def repaired_arguments(self) -> str | None:
        """A whole call's arguments, if they are not just what stands in `text`."""
        if self._decoded is not None:
            return self._decoded
        if self.arguments_start is None:
            return "{}"
        written = self.text[self.arguments_start : self.arguments_end]
        repaired = replace_escaped_surrogates(written)
        if self._has_control:
            repaired = _STRING.sub(_escape_controls, repaired)
        return None if repaired == written else repaired

    def scan(self) -> Literal["more", "closed", "broken"]:
        """Read on: more text is needed, or the call is complete, or it is none.

        After "closed" `position` is behind the closing tag, or before the next call's opening tag
        if there was none.
        """
        text = self.text
        while self.position < len(text):
            if self.is_whole:
                if text[self.position] in _SPACE:
                    self.position += 1
                    continue
                if text.startswith(CLOSE_TAG, self.position):
                    self.position += len(CLOSE_TAG)
                    return "closed"
                if text.startswith(OPEN_TAG, self.position):
                    return "closed"
                rest = text[self.position : self.position + len(CLOSE_TAG)]
                is_open = CLOSE_TAG.startswith(rest) or OPEN_TAG.startswith(rest)
                return "more" if is_open else "broken"
            if not self._step(text):
                return "broken"
        return "more"

    def _step(self, text: str) -> bool:
        """Read one character, or a run of plain ones; False if it is not JSON."""
        char = text[self.position]
        match self._state:
            case "string":
                return self._string(text, char)
            case "escape":
                if char == "u":
                    self._state, self._hex_left = "hex", 4
                elif char in '"\\/bfnrt':
                    self._state = "string"
                else:
                    return False
            case "hex":
                if char not in _HEX:
                    return False
                self._hex_left -= 1
                if not self._hex_left:
                    self._state = "string"
            case "word":
                if char in _SPACE or char in ",]}":
                    return self._end_word(text)
                if self.position - self._begin > MAX_NUMBER_CHARS:
                    return False
            case _:
                if char in _SPACE:
                    self.position += 1
                    return True
                if not self._between(char):
                    return False
        self.position += 1
        return True

    def _string(self, text: str, char: str) -> bool:
        if char == '"':
            self.position += 1
            if self._is_key:
                self._state = "colon"
                return self._end_key(text[self._begin : self.position])
            return self._end_value(text)
        if char == "\\":
            self._state = "escape"
            self.position += 1
            return True
        plain = _PLAIN.match(text, self.position)
        if plain is None:
            self._has_control = True
            self.position += 1
        else:
            self.position = plain.end()
        return True

    def _end_word(self, text: str) -> bool:
        word = text[self._begin : self.position]
        if self._is_arguments and word != "null":
            return False
        return (word in _LITERALS or _NUMBER.fullmatch(word) is not None) and self._end_value(text)

    @property
    def _is_arguments(self) -> bool:
        """Whether the value being read is the arguments themselves."""
        return len(self._stack) == 1 and self._key == "arguments"

    def _between(self, char: str) -> bool:
        """A character outside of strings and words."""
        state = self._state
        if state in ("first_key", "key") and char == '"':
            self._state, self._is_key, self._begin = "string", True, self.position
            return True
        if state == "colon":
            self._state = "value"
            return char == ":"
        if state == "after":
            if char == ",":
                self._state = "key" if self._stack[-1] == "{" else "value"
                return True
            return self._close(char)
        if state == "first_key" or (state == "first_item" and char == "]"):
            return self._close(char)
        if state in ("value", "first_item"):
            return self._open_value(char)
        return False

    def _open_value(self, char: str) -> bool:
        if not self._stack and char != "{":
            return False
        if self._is_arguments:
            if char not in '{"n':
                return False
            if char == "{":
                self.arguments_start = self.position
        elif len(self._stack) == 1 and self._key == "name" and char != '"':
            return False
        if char in "{[":
            self._stack.append(char)
            self._state = "first_key" if char == "{" else "first_item"
            return len(self._stack) <= MAX_DEPTH
        self._begin, self._is_key = self.position, False
        self._state = "string" if char == '"' else "word"
        return char in '"-0123456789tfn'

    def _close(self, char: str) -> bool:
        if char != ("}" if self._stack[-1] == "{" else "]"):
            return False
        self._stack.pop()
        if not self._stack:
            self.is_whole = bool(self.name)
            return self.is_whole
        self._state = "after"
        if self._is_arguments:
            self.arguments_end = self.position + 1
        return True

    def _end_key(self, raw: str) -> bool:
        if len(self._stack) == 1:
            self._key = _string_value(raw)
            if self._key in self._seen:
                return False
            self._seen.add(self._key)
        return True

    def _end_value(self, text: str) -> bool:
        self._state = "after"
        if len(self._stack) == 1 and text[self._begin] == '"':
            if self._key == "name":
                self.name = _string_value(text[self._begin : self.position])
                return bool(self.name)
            if self._key == "arguments":
                self._decoded = _object_in(_string_value(text[self._begin : self.position]))
                return self._decoded is not None
        return True


def _string_value(raw: str) -> str:
    """What a JSON string says, as text that UTF-8 can hold."""
    return replace_surrogates(json.loads(raw, strict=False))


def _object_in(text: str) -> str | None:
    """The JSON of an object that a string holds, repaired; None if it holds something else."""
    text = text.strip() or "{}"
    if text[0] != "{":
        return None
    inner = CallScanner()
    before = '{"name": "f", "arguments": '
    inner.text = before + text + "}" + CLOSE_TAG
    if inner.scan() != "closed" or inner.arguments_end != len(before) + len(text):
        return None
    return inner.repaired_arguments or text


def _escape_controls(string: re.Match[str]) -> str:
    return _CONTROL.sub(lambda char: json.dumps(char[0])[1:-1], string[0])
