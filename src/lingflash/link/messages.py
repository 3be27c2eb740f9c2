"""What the server and the engine's process say to each other, as msgpack in frames.

server process                               engine process (worker.py)
IpcEngineClient  -- Start, Submit, Abort, Reset, Ping -->  EngineLoop
                 <-- Loading, Ready, Answer, ResetDone, Events, Pong --
"""

from __future__ import annotations

from typing import Any

import msgspec

from lingflash.core.config import EngineConfig
from lingflash.core.types import EngineInfo, EngineRequest, EngineStats, TokenEvent
from lingflash.link import frames


class Start(msgspec.Struct, tag=True):
    """First message to the engine."""

    config: EngineConfig


class Submit(msgspec.Struct, tag=True):
    """Serve this."""

    request: EngineRequest


class Abort(msgspec.Struct, tag=True):
    """End this request."""

    request_id: str


class Reset(msgspec.Struct, tag=True):
    """Forget every computed prefix."""

    number: int


class ResetDone(msgspec.Struct, tag=True):
    """It was done: blocks and state checkpoints that were forgotten."""

    number: int
    blocks: int
    checkpoints: int


class Ping(msgspec.Struct, tag=True):
    """Say that you live; answered by the thread that reads, whatever the engine is at."""

    number: int


class Pong(msgspec.Struct, tag=True):
    """The answer: for how long the engine has been at its present work, 0 if it waits for some."""

    number: int
    busy_s: float


class Loading(msgspec.Struct, tag=True):
    """Bytes of weights read so far and in all."""

    done: int
    total: int


class Ready(msgspec.Struct, tag=True):
    """The engine can serve."""

    info: EngineInfo


class Failed(msgspec.Struct, tag=True):
    """The engine cannot start or go on; it exits after this."""

    code: str
    message: str
    param: str | None = None


class Answer(msgspec.Struct, tag=True):
    """Whether a request was accepted; code is None if it was."""

    request_id: str
    code: str | None = None
    message: str = ""
    param: str | None = None


class Events(msgspec.Struct, tag=True):
    """What one step did, and the gauges now and then."""

    events: list[TokenEvent]
    stats: EngineStats | None = None


ToEngine = Start | Submit | Abort | Reset | Ping
FromEngine = Loading | Ready | Failed | Answer | ResetDone | Events | Pong

encoder = msgspec.msgpack.Encoder()
to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)


def frame(message: Any) -> bytes:
    return frames.frame(encoder.encode(message))
