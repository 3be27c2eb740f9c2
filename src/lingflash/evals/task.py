"""What a benchmark is to the runner: items, and how one of them is asked and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an answer took; reasoning is part of completion, cached of prompt."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer of the server.

    Args:
        tool_calls: as OpenAI writes them in a message.
        tokens: None if the server did not say.
    """

    content: str
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    finish_reason: str | None = None
    tokens: Tokens | None = None

    def as_message(self) -> dict[str, Any]:
        """For the next turn; reasoning is not sent back."""
        calls = {"tool_calls": list(self.tool_calls)} if self.tool_calls else {}
        return {"role": "assistant", "content": self.content, **calls}

    def as_json(self) -> dict[str, Any]:
        """For the results: what is empty is left out."""
        parts = {
            "content": self.content,
            "reasoning": self.reasoning,
            # Ids are drawn anew by each run.
            "tool_calls": [call["function"] for call in self.tool_calls],
            "finish_reason": self.finish_reason,
        }
        return {name: value for name, value in parts.items() if value}


class Ask(Protocol):
    """Asks the server that is measured; what it answers is counted and written down."""

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Any] = (), **fields: Any
    ) -> Reply:
        """The answer.

        Args:
            fields: further ones of the request; a flag of the command line is stronger.

        Raises:
            Refused: the server will not answer this one.
        """
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """One question. Its id is unique in the task; a score is given for each category, too."""

    id: str
    category: str
    data: Any = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an item is solved.

    Args:
        why: in few words, where it is not.
        scores: further measures between 0 and 1 that the benchmark has, by name.
    """

    is_solved: bool
    why: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """A benchmark."""

    name: str
    needs_tools: bool
    notes: Sequence[str]
    """What a reader of the score must know, such as what was left out."""

    async def open(self) -> None:
        """Install and load what it needs; called once, before the rest.

        Raises:
            LingflashError: it cannot be had.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """Of the packages that its data and scorer come from."""
        ...

    def items(self) -> Sequence[Item]:
        """All, in an order that never changes."""
        ...

    async def attempt(self, item: Item, ask: Ask) -> Verdict:
        """Ask one item and judge the answer."""
        ...

    async def close(self) -> None:
        """Give everything back; open() may have failed."""
        ...


def take_evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The first `limit` items, taken from the categories in turn, in the task's order."""
    if limit is None or limit >= len(items):
        return list(items)
    by_category: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        by_category.setdefault(item.category, []).append(index)
    places = sorted((turn, index) for own in by_category.values() for turn, index in enumerate(own))
    return [items[index] for index in sorted(index for _, index in places[:limit])]
