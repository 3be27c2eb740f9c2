"""Collects a conversation's messages, in the one form that templates see.

Every dialect's reader adds messages here, with the place that each came from; `finish` decides what
only the whole conversation tells:

- A part that a text model cannot read is a short note where it is history, or a tool's result: the
  client cannot take it back, so a refusal would end its session. In the user's newest message it is
  a refusal, unless the server was told otherwise. A user message directly after a tool's result is
  how clients of an API without pictures in results send the result's, so it counts as one.
- Tool results are put in the order of the calls that they answer, since the prompt shows no ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lingflash.core.errors import refuse
from lingflash.protocol.fields import Dropped
from lingflash.text.parts import Part, Unreadable, join_parts


@dataclass(slots=True)
class _Entry:
    message: dict[str, Any]
    parts: list[Part]
    where: str
    joint: str


class MessageList:
    """Messages so far.

    Args:
        dropped: takes what a note stands for.
        notes_only: a note also stands for what is in the newest message.
        call_id: the dialect's name of a tool result's call id.
    """

    def __init__(
        self, dropped: Dropped, *, notes_only: bool = False, call_id: str = "tool_call_id"
    ) -> None:
        self.dropped = dropped
        self._notes_only = notes_only
        self._call_id = call_id
        self._entries: list[_Entry] = []

    def add(
        self,
        role: str,
        parts: Sequence[Part],
        where: str,
        *,
        joint: str = "",
        **fields: Any,
    ) -> dict[str, Any]:
        """Add a message.

        Args:
            parts: of its content.
            where: the message's place in the request.
            joint: between two parts.
            fields: more of it, in the form that templates see.

        Returns:
            The message, whose content comes with `finish`; it may still be given other fields.
        """
        message: dict[str, Any] = {"role": role, "content": "", **fields}
        self._entries.append(_Entry(message, list(parts), where, joint))
        return message

    def extend(self, message: dict[str, Any], parts: Sequence[Part]) -> None:
        """Add to the content of the last message, which `add` returned."""
        assert self._entries[-1].message is message
        self._entries[-1].parts += parts

    def finish(self, param: str = "messages") -> list[dict[str, Any]]:
        """All messages.

        Args:
            param: the field that they came in.

        Raises:
            InvalidRequestError: there are none; the newest cannot be read; a result has no call.
        """
        if not self._entries:
            refuse(param, "is empty; at least one message is needed")
        newest = self._newest_user()
        for i, entry in enumerate(self._entries):
            for part in entry.parts:
                if isinstance(part, Unreadable):
                    if i == newest and not self._notes_only:
                        refuse(
                            f"{part.where}.type",
                            f"is {part.type!r}; this model reads text parts only",
                        )
                    self.dropped.add(part.where, part.kind)
            entry.message["content"] = join_parts(entry.parts, entry.joint)
        return self._in_order()

    def _newest_user(self) -> int | None:
        """The message that the answer is to, if the user wrote it."""
        last = len(self._entries) - 1
        while last >= 0 and self._entries[last].message["role"] == "system":
            last -= 1
        if last < 0 or self._entries[last].message["role"] != "user":
            return None
        is_result = last > 0 and self._entries[last - 1].message["role"] == "tool"
        return None if is_result else last

    def _in_order(self) -> list[dict[str, Any]]:
        """Sort each run of tool results by the calls before it; refuse ids that no call has."""
        result: list[dict[str, Any]] = []
        order: dict[str, int] = {}
        known: set[str] = set()
        run: list[dict[str, Any]] = []

        def close_run() -> None:
            if all(message.get("tool_call_id") in order for message in run):
                run.sort(key=lambda message: order[message["tool_call_id"]])
            result.extend(run)
            run.clear()

        for entry in self._entries:
            message = entry.message
            if message["role"] == "tool":
                call_id = message.get("tool_call_id")
                if call_id is not None and call_id not in known:
                    refuse(
                        f"{entry.where}.{self._call_id}",
                        f"is {call_id!r}, which no earlier assistant message called",
                    )
                run.append(message)
                continue
            if run:
                close_run()
            result.append(message)
            if message["role"] == "assistant":
                ids = [call["id"] for call in message.get("tool_calls", ()) if call["id"]]
                order = {call_id: index for index, call_id in enumerate(ids)}
                known.update(ids)
        close_run()
        return result
