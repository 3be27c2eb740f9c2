"""Endless wordings: phrases put together at random from common words.

A model that has seen only written-out templates learns the templates. These make it learn what is
always true instead: a value is what is neither a common word nor a label, and it stands next to
its label.
"""

from __future__ import annotations

import random
from functools import cache

from lingflash.train.data.tables import POOLS, WORDINGS

_PUNCTUATION = ("", "", "", "", "", ",", ":", " -", " =", " ->", "...", ";")
_ON, _OFF = POOLS["on"], POOLS["off"]


@cache
def common_words() -> tuple[str, ...]:
    """Return the common words, each once."""
    return tuple(dict.fromkeys(POOLS["common"]))


def filler(rng: random.Random, low: int, high: int) -> str:
    """Draw low to high common words."""
    return " ".join(rng.choices(common_words(), k=rng.randint(low, high)))


def _space(*parts: str) -> str:
    return " ".join(p for p in parts if p)


def value_phrase(rng: random.Random, label: str, surface: str) -> str:
    """Name a value and its label in either order with random common words between and around."""
    before = filler(rng, 0, 2) if rng.random() < 0.6 else ""
    after = filler(rng, 1, 2) if rng.random() < 0.2 else ""
    middle = filler(rng, 1, 4) if rng.random() < 0.85 else ""
    x = rng.random()
    if x < 0.2:  # nothing but punctuation between
        before = filler(rng, 1, 3) if rng.random() < 0.8 else ""
        return _space(
            before, label + rng.choice((",", ",", ",", ":", " ->", " =", " -", ";", "?")), surface
        )
    if x < 0.3:  # one word between
        return _space(before, label, filler(rng, 1, 1), surface)
    if rng.random() < 0.5:
        joint = rng.choice(_PUNCTUATION)
        return _space(before, label + joint, middle, surface, after)
    return _space(before, surface, middle or filler(rng, 1, 1), label, after)


def adverb(label: str) -> str:
    """Make an adverb of a switch's name: recursive, recursively."""
    if label.endswith("ly"):
        return label
    for end, instead in (("ble", "bly"), ("ic", "ically"), ("y", "ily"), ("ll", "lly")):
        if label.endswith(end):
            return label[: -len(end)] + instead
    return label + "ly"


def switch_phrase(rng: random.Random, label: str, on: bool) -> str:
    """Say in random words that a switch is to be on or off."""
    x = rng.random()
    if x < 0.12 and " " not in label:
        how = adverb(label) if rng.random() < 0.7 else label
        if on:
            return _space(filler(rng, 0, 2) if rng.random() < 0.3 else "", how)
        return _space(rng.choice(WORDINGS["negations"] + ["but not", "just not", "not too"]), how)
    if x < 0.3:
        word = rng.choice(WORDINGS["strong_yes" if on else "strong_no"])
        return _space(
            filler(rng, 0, 1) if rng.random() < 0.4 else "",
            word,
            filler(rng, 0, 1) if rng.random() < 0.3 else "",
            label,
        )
    state = rng.choice(_ON if on else _OFF)
    if rng.random() < 0.3:
        state = rng.choice(WORDINGS["negations"]) + " " + rng.choice(_OFF if on else _ON)
        if on:
            state = rng.choice(_ON)
    middle = filler(rng, 0, 3)
    before = filler(rng, 0, 2) if rng.random() < 0.5 else ""
    if x < 0.8:
        return _space(before, label + rng.choice(_PUNCTUATION), middle, state)
    return _space(before, state, middle, label)


def lead(rng: random.Random, core: str, noise: list[str]) -> str:
    """Put random common words before what is asked for, and now and then after it.

    Args:
        noise: words that mean nothing here, put among the common ones.
    """
    tail = " " + filler(rng, 1, 4) if rng.random() < 0.15 else ""
    front = filler(rng, 1, 8).split()
    for word in noise:
        front.insert(rng.randint(0, len(front)), word)
    mark = rng.choice(("", "", "", ",", ",", ":", ".", "?", "!", " and"))
    return _space(" ".join(front) + mark, core) + tail
