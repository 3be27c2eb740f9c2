"""Integers and numbers as values of arguments."""

from __future__ import annotations

import random


def integer(rng: random.Random) -> int:
    """Draw an integer, small ones more often."""
    x = rng.random()
    if x < 0.45:
        return rng.randint(1, 20)
    if x < 0.75:
        return rng.randint(1, 100) * rng.choice((1, 1, 5, 10))
    if x < 0.93:
        return rng.randint(100, 9999)
    if x < 0.97:
        return rng.randint(10_000, 9_999_999)
    return -rng.randint(1, 50)


def number(rng: random.Random) -> int | float:
    """Draw a number that is mostly not whole."""
    x = rng.random()
    if x < 0.25:
        return integer(rng)
    if x < 0.6:
        return round(rng.uniform(0.1, 99), 1)
    if x < 0.85:
        return round(rng.uniform(0.01, 500), 2)
    if x < 0.93:
        return round(rng.uniform(0, 1), rng.randint(1, 3)) or 0.5
    return round(rng.uniform(-180, 180), rng.randint(1, 4)) or 0.25
