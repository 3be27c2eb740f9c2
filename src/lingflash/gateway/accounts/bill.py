"""What a session cost, and for what: each step's tokens shared out over the parts of its prompt.

The server says how many tokens a prompt had, not which part of it had how many. What a step has
more than the one before is that one's answer, then new messages, which share it by their bytes. A
part keeps its tokens for as long as it is sent again, and each time pays its share of that step's
prompt, cached tokens being the first ones. Shares are whole numbers and add up to the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lingflash.core.types import CodeUsage
from lingflash.gateway.accounting import Part
from lingflash.gateway.accounts.rows import part_of_json

_FINISHED = frozenset(("stop", "end_turn", "stop_sequence", "completed"))


@dataclass(slots=True)
class PartBill:
    """A part of the conversation: when it came, how long it is, what it cost each time it was sent.

    Args:
        came: the step that sent it first, of an answer the step that gave it.
        tokens: None until a step has said how long its prompt was.
        sent: by step its cost and how many of its tokens were cached.
    """

    part: Part
    tokens: int | None = None
    came: int = 0
    sent: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])

    @property
    def first_cost(self) -> int:
        """What it cost when it came."""
        return self.sent[self.came][0] if self.came in self.sent else 0

    @property
    def resent_cost(self) -> int:
        """What it cost all the times it was sent again."""
        return sum(cost for step, (cost, _) in self.sent.items() if step != self.came)


@dataclass(frozen=True, slots=True)
class StepBill:
    """One request of a session.

    Args:
        row: of the ledger.
        new_by_role: tokens that were not sent before, by the role of their part.
        resent_cost: of its cost the part for what was sent before.
        unattributed_cost: of its cost the part whose parts are not known.
    """

    row: Mapping[Any, Any]
    new_by_role: Mapping[str, int]
    resent_cost: int
    unattributed_cost: int

    @property
    def cost(self) -> int:
        """What the caller paid."""
        return self.row["cost_prompt"] + self.row["cost_completion"]

    @property
    def code(self) -> CodeUsage:
        """What code took that the server ran within this step."""
        told = self.row["wire"].get("code")
        return CodeUsage(**(told or {"calls": 0, "seconds": 0.0, "output_bytes": 0}))

    @property
    def new_tokens(self) -> int:
        return sum(self.new_by_role.values())

    @property
    def finishes_task(self) -> bool:
        """Whether its answer was for the user, and not a call of a tool."""
        reason = self.row["wire"].get("finish_reason")
        return self.row["outcome"] == "completed" and reason in _FINISHED


@dataclass(frozen=True, slots=True)
class Bill:
    """A session's steps, and every part that was ever sent in it."""

    steps: Sequence[StepBill]
    parts: Sequence[PartBill]

    @property
    def tool_results(self) -> list[PartBill]:
        """The results of tools, in the order in which they came."""
        return [each for each in self.parts if each.part.role == "tool" and each.sent]

    @property
    def tokens_per_task(self) -> float | None:
        """Output tokens of the session per task that it finished; None before the first."""
        tasks = sum(each.finishes_task for each in self.steps)
        output = sum(each.row["tokens_completion"] for each in self.steps)
        return output / tasks if tasks else None


def bill_of(rows: Iterable[Mapping[Any, Any]]) -> Bill:
    """The bill of a session.

    Args:
        rows: its rows in the ledger, by step.
    """
    steps: list[StepBill] = []
    parts: list[PartBill] = []
    sent: list[PartBill] = []  # the last step's whose parts are known
    last: Mapping[Any, Any] | None = None  # the last step whose prompt was counted
    for row in rows:
        stored = row["parts"]
        if stored is not None:
            new = [PartBill(part_of_json(each)) for each in stored["new"]]
            parts += new
            sent = [*sent[: stored["kept"]], *new]
        prompt = row["tokens_prompt"]
        if stored is None or not prompt:
            unknown = row["cost_prompt"] if stored is None else 0
            steps.append(StepBill(row, {}, 0, unknown))
            continue
        _count_tokens(sent, row, last)
        _share_cost(sent, row)
        last = row
        new_by_role: dict[str, int] = {}
        for each in sent:
            if each.came == row["step"]:
                role = each.part.role
                new_by_role[role] = new_by_role.get(role, 0) + (each.tokens or 0)
        resent = sum(each.sent[row["step"]][0] for each in sent if each.came != row["step"])
        steps.append(StepBill(row, new_by_role, resent, 0))
    return Bill(steps, parts)


def _count_tokens(
    sent: Sequence[PartBill], row: Mapping[Any, Any], last: Mapping[Any, Any] | None
) -> None:
    """Give every part of a prompt its tokens, so that they are the prompt's."""
    prompt, step = row["tokens_prompt"], row["step"]
    new = [each for each in sent if each.tokens is None]
    rest = prompt - sum(each.tokens or 0 for each in sent)
    for each in new:
        each.came = step
    if rest < 0 or not new:
        # Shorter than what was kept of it, or longer without anything new: another template, or
        # thoughts that the server dropped. Nothing is known but the whole.
        if rest:
            _assign(sent, prompt)
        return
    answers = [each for each in new if each.part.role == "assistant"]
    others = [each for each in new if each.part.role != "assistant"]
    if not answers or last is None:
        _assign(new, rest)
        return
    for each in answers:
        each.came = last["step"]  # as output; now it is sent again
    of_answers = min(rest, last["tokens_completion"]) if others else rest
    _assign(answers, of_answers)
    _assign(others, rest - of_answers)


def _assign(parts: Sequence[PartBill], tokens: int) -> None:
    weights = [max(1, each.part.num_bytes) for each in parts]
    for each, count in zip(parts, shares(tokens, weights), strict=True):
        each.tokens = count


def _share_cost(sent: Sequence[PartBill], row: Mapping[Any, Any]) -> None:
    """Share out what a prompt cost; the cached tokens, which are its first ones, cost less."""
    tokens = [each.tokens or 0 for each in sent]
    left, cached = min(row["tokens_cached"], row["tokens_prompt"]), []
    for count in tokens:
        cached.append(min(count, left))
        left -= cached[-1]
    full = shares(row["cost_prompt"] + row["cache_saving"], tokens)
    # Where nothing was read from a cache, writing to it was dearer: that is all new ones' to pay.
    saved = shares(row["cache_saving"], cached if any(cached) else tokens)
    for each, own, less, hit in zip(sent, full, saved, cached, strict=True):
        each.sent[row["step"]] = (own - less, hit)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Whole shares of a total by weight, that add up to it; all of it to the last of no weight."""
    if not weights:
        return []
    whole = sum(weights)
    if not whole:
        return [*([0] * (len(weights) - 1)), total]
    # Differences of the running sum: what is rounded away in one share is in the next.
    sums = [total * upto // whole for upto in itertools.accumulate(weights)]
    return [upto - before for before, upto in itertools.pairwise([0, *sums])]
