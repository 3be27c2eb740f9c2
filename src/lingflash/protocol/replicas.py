"""What servers of one model say of themselves, and what a directory of them says of each.

`ling serve` writes a `Health` on /ready, `ling cluster` a list of `Replica` on /cluster/replicas;
the gateway reads both. Fields that a reader does not know are those of a newer writer: ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

DIRECTORY_PATH = "/cluster/replicas"
# What is outside, no server counts, and no router could reckon with.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether a server serves, and how much it has to do.

    Args:
        draining: it finishes what runs, and takes nothing new; never ready.
        model: the first name that requests may use.
        capacity: sequences that run at once.
        sequences: that run or wait.
        tokens_in_flight: of those sequences, prompts and what was generated.
        queued_prompt_tokens: prompt tokens that wait, as if no cache had any of them.
        taken_prompt_tokens: how many have left that queue since the start, cached ones too.
        sessions: what would be lost with it: those sequences, and states that it keeps for the
            next turns of others.
    """

    ready: bool
    draining: bool = False
    model: str = ""
    capacity: _Count = 0
    sequences: _Count = 0
    tokens_in_flight: _Count = 0
    queued_prompt_tokens: _Count = 0
    taken_prompt_tokens: _Count = 0
    sessions: _Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One of the servers in a directory; the others' fields are those of its `Health`.

    Args:
        url: scheme, host and port. A server that is started again has another, as far as it can.
    """

    url: str
    model: str = ""
    capacity: _Count = 0
    tokens_in_flight: _Count = 0
    ready: bool = False
    draining: bool = False

    @classmethod
    def of(cls, url: str, health: Health) -> Replica:
        """The replica at a URL, by what it said of itself."""
        return cls(
            url=url,
            model=health.model,
            capacity=health.capacity,
            tokens_in_flight=health.tokens_in_flight,
            ready=health.ready,
            draining=health.draining,
        )


@dataclass(frozen=True, slots=True)
class _Listing:
    replicas: list[Replica]


def read_health(body: bytes, *, is_ready: bool) -> Health:
    """What a server's /ready says.

    Args:
        is_ready: its status was 200.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        fields = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("no object")
    return msgspec.convert({**fields, "ready": is_ready}, Health)


def write_listing(replicas: Sequence[Replica]) -> bytes:
    """The answer of a directory."""
    return msgspec.json.encode(_Listing(list(replicas)))


def read_listing(body: bytes) -> list[Replica]:
    """The replicas that a directory names.

    Raises:
        ValueError: the answer is none of a directory.
    """
    try:
        return msgspec.json.decode(body, type=_Listing).replicas
    except RecursionError:
        raise ValueError("nested too deeply") from None
