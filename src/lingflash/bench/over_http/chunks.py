"""The chunks of a streamed answer, held to what a whole and successful one looks like."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from lingflash.link.http_client import Answer, BadAnswer


async def read_chunks(answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """The JSON of every event up to [DONE].

    Raises:
        BadAnswer: the status is not 200, an event is an error, or the end is missing.
    """
    if answer.status != 200:
        raise BadAnswer(f"status {answer.status}: {(await answer.read())[:200]!r}")
    async for data in answer.events():
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise BadAnswer(f"error event: {data[:200]}")
        yield chunk
    raise BadAnswer("the stream ended without [DONE]")
