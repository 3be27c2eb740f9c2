"""What a cluster is asked: sessions that grow turn by turn, generated or recorded."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lingflash.core.errors import ConfigError
from lingflash.records.record import require


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session.

    Args:
        new_tokens: that the prompt has after the last answer.
        pause_s: from that answer to this request.
        is_rewritten: the next prompt has the answer in other tokens than it was made of, as where
            it was cut off or had its reasoning taken out.
    """

    new_tokens: int
    answer_tokens: int
    pause_s: float = 0.0
    is_rewritten: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """Turns that each send all before.

    Args:
        shared: name of what it begins with, such as an agent's tools and instructions.
        shared_tokens: of that, at the beginning of the first turn's new tokens.
    """

    name: str
    shared: str
    shared_tokens: int
    turns: Sequence[Turn] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Prompts and answers of all turns, as a bill counts them."""
        length = total = 0
        for turn in self.turns:
            length += turn.new_tokens + turn.answer_tokens
            total += length
        return total

    @property
    def answer_tokens(self) -> int:
        """Of all turns."""
        return sum(turn.answer_tokens for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionShape:
    """What generated sessions are like; sizes are means.

    The defaults make requests of about 6,300 tokens of which 6 % are answers, as the sums of
    docs/cluster-sums.md do.

    Args:
        num_apps: different beginnings; a few have most sessions, as of any popularity.
        pause_s: of a tool or a person, between answer and next request.

    Raises:
        ConfigError: a value is out of range.
    """

    num_apps: int = 40
    shared_tokens: int = 2000
    new_tokens: int = 280
    answer_tokens: int = 390
    turns: int = 6
    pause_s: float = 6.0

    def __post_init__(self) -> None:
        for name, least in (("num_apps", 1), ("shared_tokens", 0), ("new_tokens", 1),
                            ("answer_tokens", 1), ("turns", 1), ("pause_s", 0)):  # fmt: skip
            given = getattr(self, name)
            flag = "--" + name.removeprefix("num_").replace("_", "-")
            require(given >= least, flag, given, f"{least} or more")


def generate_sessions(shape: SessionShape, seed: int) -> Iterator[Session]:
    """Sessions without end, always the same for a seed."""
    rng = random.Random(seed)
    apps = [(f"app-{i}", _size(rng, shape.shared_tokens)) for i in range(shape.num_apps)]
    weights = [1 / (i + 1) for i in range(shape.num_apps)]
    number = 0
    while True:
        (app, shared), *_ = rng.choices(apps, weights)
        count = 1 + int(rng.expovariate(1 / max(shape.turns - 0.5, 0.5)))
        turns = [
            Turn(
                _size(rng, shape.new_tokens) + (0 if i else shared),
                _size(rng, shape.answer_tokens),
                rng.expovariate(1.0) * shape.pause_s if i else 0.0,
            )
            for i in range(count)
        ]
        yield Session(f"session-{number}", app, shared, turns)
        number += 1


def _size(rng: random.Random, mean: int) -> int:
    """A size as those of texts are: many small ones, a few that are ten times as large."""
    return max(round(rng.lognormvariate(-0.32, 0.8) * mean), 1) if mean else 0


def read_sessions(path: Path) -> list[Session]:
    """Sessions of a file.

    Args:
        path: one JSON object a line, in the order in which they were sent: "conversation" (any
            name), "new_tokens", "answer_tokens", "pause_s" if it is not 0, "rewritten" if the
            answer was sent back in other tokens, and in a conversation's first, if it shares its
            beginning with others, "shared" (any name) and "shared_tokens".

    Raises:
        ConfigError: the file cannot be read; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--trace {path} cannot be read: {error}.", param="trace") from None
    turns: dict[str, list[Turn]] = {}
    shared: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            name = str(entry["conversation"])
            sizes = (entry["new_tokens"], entry["answer_tokens"])
            if any(type(size) is not int or size < 1 for size in sizes):
                raise ValueError("sizes are whole numbers from 1")
            pause_s = float(entry.get("pause_s", 0.0))
            if not 0 <= pause_s < math.inf:
                raise ValueError("pause_s is a finite number from 0")
            common = entry.get("shared_tokens", 0)
            if type(common) is not int or not 0 <= common <= sizes[0]:
                raise ValueError("shared_tokens are part of new_tokens")
            shared.setdefault(name, (str(entry.get("shared", name)), common))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"--trace {path}, line {number}: {error!r}; a line is an object with conversation, "
                "new_tokens and answer_tokens.",
                param="trace",
            ) from None
        turn = Turn(*sizes, pause_s, entry.get("rewritten") is True)
        turns.setdefault(name, []).append(turn)
    if not turns:
        raise ConfigError(f"--trace {path} has no lines.", param="trace")
    return [Session(name, *shared[name], each) for name, each in turns.items()]


def write_sessions(path: Path, sessions: Sequence[Session]) -> None:
    """What read_sessions reads: turn by turn in rotation."""
    lines: list[str] = []
    for number in range(max(len(each.turns) for each in sessions)):
        for each in sessions:
            if number < len(each.turns):
                turn = each.turns[number]
                entry = {"conversation": each.name, "new_tokens": turn.new_tokens,
                         "answer_tokens": turn.answer_tokens}  # fmt: skip
                if turn.pause_s:
                    entry["pause_s"] = turn.pause_s
                if turn.is_rewritten:
                    entry["rewritten"] = True
                if not number and each.shared_tokens:
                    entry |= {"shared": each.shared, "shared_tokens": each.shared_tokens}
                lines.append(json.dumps(entry))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
