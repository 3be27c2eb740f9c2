"""What one budget has reserved and spent: whole numbers, and windows that never go back.

A row of the table `budget`, read under its lock, changed here and written back. Every change is one
of three: reserve, give back, spend. What is reserved counts against whatever window it is now, so
that a request admitted before midnight cannot exceed the next day's limit either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from lingflash.gateway.accounting import MAX_PICO
from lingflash.gateway.accounts.config import Reset
from lingflash.gateway.accounts.times import EPOCH

_MONDAY = 4  # 1970-01-05
_MAX_COLUMN = 2**63 - 1


@dataclass(slots=True, kw_only=True)
class Balance:
    """One budget; its fields are the table's columns."""

    scope: str
    limit_pico: int | None = None
    limit_reset: Reset | None = None
    include_byok: bool = False
    reserved: int = 0
    reserved_byok: int = 0
    running: int = 0
    clock: int = 0
    day: int = 0
    week: int = 0
    month: int = 0
    spent_total: int = 0
    spent_day: int = 0
    spent_week: int = 0
    spent_month: int = 0
    byok_total: int = 0
    byok_day: int = 0
    byok_week: int = 0
    byok_month: int = 0
    free_used: int = 0

    def at(self, now_ms: int) -> Balance:
        """The same at a time: counters of windows that are over begin anew.

        A clock that went back is held to the latest time seen, so that no window begins twice.
        """
        self.clock = max(self.clock, now_ms)
        day, week, month = windows(self.clock)
        if day != self.day:
            self.day, self.spent_day, self.byok_day, self.free_used = day, 0, 0, 0
        if week != self.week:
            self.week, self.spent_week, self.byok_week = week, 0, 0
        if month != self.month:
            self.month, self.spent_month, self.byok_month = month, 0, 0
        return self

    @property
    def spent(self) -> int:
        """What counts against the limit in the current window, without what is reserved."""
        match self.limit_reset:
            case None:
                own, byok = self.spent_total, self.byok_total
            case "daily":
                own, byok = self.spent_day, self.byok_day
            case "weekly":
                own, byok = self.spent_week, self.byok_week
            case "monthly":
                own, byok = self.spent_month, self.byok_month
        return own + byok if self.include_byok else own

    @property
    def remaining(self) -> int | None:
        """What a request may still reserve; None without a limit."""
        if self.limit_pico is None:
            return None
        reserved = self.reserved + (self.reserved_byok if self.include_byok else 0)
        return self.limit_pico - self.spent - reserved

    def suffices(self, own: int, byok: int) -> bool:
        """Whether a request may reserve so much."""
        remaining = self.remaining
        return remaining is None or own + (byok if self.include_byok else 0) <= remaining

    def can_hold(self, own: int, byok: int) -> bool:
        """Whether it can be written down that so much more is reserved."""
        return max(self.reserved + own, self.reserved_byok + byok) <= MAX_PICO

    def reserve(self, own: int, byok: int) -> None:
        """Let a request in."""
        self.reserved += own
        self.reserved_byok += byok
        self.running += 1

    def give_back(self, own: int, byok: int) -> None:
        """Take back what reserve() did."""
        self.reserved -= own
        self.reserved_byok -= byok
        self.running -= 1

    def spend(self, own: int, byok: int) -> None:
        """Pay, in all windows at once."""
        # What no column holds is more than any limit; the total is the largest of all windows.
        own = min(own, _MAX_COLUMN - self.spent_total)
        byok = min(byok, _MAX_COLUMN - self.byok_total)
        self.spent_total += own
        self.spent_day += own
        self.spent_week += own
        self.spent_month += own
        self.byok_total += byok
        self.byok_day += byok
        self.byok_week += byok
        self.byok_month += byok


_LIMITS = ("scope", "limit_pico", "limit_reset", "include_byok")
_FIELDS = tuple(each.name for each in fields(Balance))
COUNTERS = tuple(name for name in _FIELDS if name not in _LIMITS)
"""What changes by requests; limits are others' to change."""


def balance_of(row: Mapping[Any, Any]) -> Balance:
    """From a row of `budget`."""
    return Balance(**{name: row[name] for name in _FIELDS})


def windows(now_ms: int) -> tuple[int, int, int]:
    """Numbers of the day, the week and the month, each greater than any before."""
    moment = EPOCH + timedelta(milliseconds=now_ms)
    day = (moment - EPOCH).days
    return day, (day - _MONDAY) // 7, moment.year * 12 + moment.month - 1


def next_reset(reset: Reset | None, now_ms: int) -> datetime | None:
    """When a budget's window ends; None if it never does."""
    day, week, month = windows(now_ms)
    match reset:
        case None:
            return None
        case "daily":
            return EPOCH + timedelta(days=day + 1)
        case "weekly":
            return EPOCH + timedelta(days=(week + 1) * 7 + _MONDAY)
        case "monthly":
            return datetime((month + 1) // 12, (month + 1) % 12 + 1, 1, tzinfo=UTC)
