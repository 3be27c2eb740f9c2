"""The event that ends a stream whose upstream broke off, in the caller's dialect; never [DONE]."""

from __future__ import annotations

import time

from lingflash.core.errors import LingflashError
from lingflash.gateway.dialects import OPENROUTER_ERRORS
from lingflash.gateway.relay.call import Call
from lingflash.gateway.relay.frames import Frames
from lingflash.httpd.error_map import envelope
from lingflash.protocol.messages import ANTHROPIC_ERRORS
from lingflash.protocol.sse import named_event, sse_event


def last_words(call: Call, frames: Frames, error: LingflashError, provider: str) -> bytes:
    """What the client gets instead of the rest."""
    match call.dialect:
        case "messages":
            return named_event("error", envelope(error, ANTHROPIC_ERRORS))
        case "responses":
            response = getattr(frames, "response", {}) or {
                "id": call.id,
                "object": "response",
                "created_at": int(time.time()),
                "model": call.wish.models[0],
                "output": [],
            }
            failed = {
                "type": "response.failed",
                "sequence_number": getattr(frames, "sequence_number", -1) + 1,
                "response": {
                    **response,
                    "status": "failed",
                    "error": {"code": "server_error", "message": error.message},
                },
            }
            return named_event("response.failed", failed)
    if not call.is_openrouters:
        return sse_event(envelope(error))
    choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
    if call.dialect == "completions":
        choice = {"index": 0, "text": "", "finish_reason": "error"}
    chunk = {
        "id": frames.answer_id or call.id,
        "object": "chat.completion.chunk" if call.dialect == "chat" else "text_completion",
        "created": int(time.time()),
        "model": call.wish.models[0],
        "provider": provider,
        **envelope(error, OPENROUTER_ERRORS),
        "choices": [choice],
    }
    return sse_event(chunk)
