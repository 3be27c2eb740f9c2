"""What the lines of an evaluation come to: scores, tokens, money, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_RESAMPLES = 2000
_SEED = 2026
_BOUNDS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens."""

    prompt: float
    cached: float
    completion: float


@dataclass(slots=True)
class Group:
    """Lines that are summed up together: a category, or all.

    Args:
        solved: 1 or 0 for each item.
        completion: tokens of each item's answers.
    """

    solved: list[int] = field(default_factory=list)
    completion: list[int] = field(default_factory=list)
    prompt: int = 0
    cached: int = 0
    reasoning: int = 0
    scores: dict[str, list[float]] = field(default_factory=dict)
    is_metered: bool = True

    def add(self, line: Mapping[str, Any]) -> None:
        """Take an item's line in."""
        self.solved.append(int(line["solved"]))
        for name, value in line.get("scores", {}).items():
            self.scores.setdefault(name, []).append(value)
        tokens = line["tokens"]
        if tokens is None:
            self.is_metered = False
            return
        self.completion.append(tokens["completion"])
        self.prompt += tokens["prompt"]
        self.reasoning += tokens["reasoning"]
        self.cached += line["run"]["cached"]

    def as_dict(self, price: Price | None = None) -> dict[str, Any]:
        """For the record; intervals are those of 95 %."""
        num, num_solved = len(self.solved), sum(self.solved)
        if not num:
            return {"items": 0, "solved": 0}
        score_interval, tokens_interval = self._intervals()
        found: dict[str, Any] = {
            "items": num,
            "solved": num_solved,
            "score": round(100 * num_solved / num, 2),
            "score_interval": score_interval,
        }
        for name, values in self.scores.items():
            found[name] = round(100 * sum(values) / len(values), 2)
        if not self.is_metered:
            return {**found, "metered": False}
        total = sum(self.completion)
        found |= {
            "prompt_tokens": self.prompt,
            "cached_tokens": self.cached,
            "completion_tokens": total,
            "reasoning_tokens": self.reasoning,
            "completion_tokens_per_item": round(total / num, 1),
            # Failures included: they were paid for, too.
            "completion_tokens_per_solved": round(total / num_solved, 1) if num_solved else None,
            "completion_tokens_per_solved_interval": tokens_interval,
        }
        if price is not None:
            found["cost_usd"] = round(
                (
                    (self.prompt - self.cached) * price.prompt
                    + self.cached * price.cached
                    + total * price.completion
                )
                * 1e-6,
                6,
            )
        return found

    def _intervals(self) -> tuple[list[float], list[float] | None]:
        """Of the score and of the tokens per solved item: all items drawn again and again."""
        generator, num = np.random.default_rng(_SEED), len(self.solved)
        solved = np.asarray(self.solved)
        tokens = np.asarray(self.completion if self.is_metered else self.solved)
        sums = np.empty((_RESAMPLES, 2))
        for row in sums:
            drawn = generator.integers(num, size=num)
            row[:] = solved[drawn].sum(), tokens[drawn].sum()
        low, high = np.quantile(100 * sums[:, 0] / num, _BOUNDS)
        score = [round(float(low), 2), round(float(high), 2)]
        ok = sums[:, 0] > 0  # a draw without any solved item has no quotient
        if not self.is_metered or not ok.any():
            return score, None
        low, high = np.quantile(sums[ok, 1] / sums[ok, 0], _BOUNDS)
        return score, [round(float(low), 1), round(float(high), 1)]


@dataclass(slots=True)
class Summary:
    """All lines of a run."""

    whole: Group = field(default_factory=Group)
    categories: dict[str, Group] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Summary:
        """Sum them up, one at a time."""
        found = cls()
        for line in lines:
            found.whole.add(line)
            found.categories.setdefault(line["category"], Group()).add(line)
            tokens = line["tokens"]
            found.samples[line["id"]] = [
                int(line["solved"]), *([] if tokens is None else [tokens["completion"]])
            ]  # fmt: skip
            if not line["solved"]:
                found.reasons[line.get("why", "").split(": ")[0][:60]] += 1
            found.failures.update(line["run"].get("failures", ()))
        return found
