"""Endless wordings: phrases put together at random from common words.

A model that has seen only written-out templates learns the templates. These make it learn what is
always true instead: a value is what is neither a common word nor a label, and it stands next to
its label.
"""

from __future__ import annotations

import random
from functools import cache


def table(text: str) -> tuple[str, ...]:
    """Split a table of words."""
    return tuple(text.split())


_COMMON = """
a an the this that these those my your our his her their its it he she they we you I me us them
him one some any all each every both another other such same own more most less much many few very
too so just only also even still then there here now again once always never maybe perhaps please
kindly well ok okay right sure fine good great nice better best really quite rather simply exactly
about above after against along among around as at before behind below beside between beyond by
down during except for from in inside into like near of off on onto out outside over past per
since than through till to toward under until up upon via with within without and or but if
because while when where which who whose what how why be is are was were been being am do does did
done doing have has had having can could will would shall should may might must need needs needed
want wants wanted like likes let lets make makes made making take takes took taken taking give
gives gave given giving go goes went gone going come comes came put puts putting get gets got
getting keep keeps kept set sets setting use uses used using say says said tell tells told call
calls called know think see look looks find show pick picks choose chooses chosen choosing select
selects enter enters type types fill fills filled leave leaves left hold insert add adds apply
applies read reads write writes assume suppose expect mean means try help wish hope prefer love
guess bet work works run runs turn turns turned carry bring brings send sends thing things
something stuff way case part point time day today tonight tomorrow people somebody someone
everybody anybody nobody friend boss team colleague customer thanks hello hi hey yes no not don't
doesn't isn't aren't won't can't let's I'm I'd I'll it's that's what's we're we'd you're ought
supposed required going next first last second final new old big small long short long little high
low early late soon ready open exact proper correct wrong true usual instead together already yet
ever meanwhile however therefore otherwise though although either neither whether equal equals
entry field slot argument parameter option value input setting name number word kind sort
"""
_PUNCTUATION = ("", "", "", "", "", ",", ":", " -", " =", " ->", "...", ";")
_ON = table(
    """
on active enabled yes true needed desired activated checked allowed required welcome okay in
effect running used included applied ticked good granted set present mandatory expected useful
fine accepted permitted confirmed
"""
)
_OFF = table(
    """
off inactive disabled no false unneeded undesired deactivated unchecked forbidden unnecessary
excluded absent removed out unused skipped omitted dropped banned declined ignored refused unset
unavailable useless prohibited denied
"""
)
_NEGATIONS = (
    "not",
    "not",
    "never",
    "isn't",
    "no longer",
    "hardly",
    "shouldn't be",
    "must not be",
    "is not",
    "won't be",
    "don't want it",
    "not at all",
)
_STRONG_YES = (
    "yes",
    "sure",
    "certainly",
    "of course",
    "absolutely",
    "surely",
    "do",
    "gladly",
    "always",
    "okay",
    "with",
    "plus",
    "I want",
    "I need",
    "also",
    "please add",
    "clearly",
    "obviously",
    "yes please,",
)
_STRONG_NO = (
    "no",
    "not",
    "never",
    "without",
    "certainly no",
    "surely not",
    "certainly not",
    "absolutely no",
    "don't",
    "do not",
    "under no circumstances",
    "minus",
    "except",
    "I don't want",
    "lose the",
    "rather no",
    "clearly no",
    "obviously not",
    "zero",
)


@cache
def common_words() -> tuple[str, ...]:
    """Return the common words, each once."""
    return tuple(dict.fromkeys(_COMMON.split()))


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


def switch_phrase(rng: random.Random, label: str, on: bool) -> str:
    """Say in random words that a switch is to be on or off."""
    x = rng.random()
    if x < 0.3:
        word = rng.choice(_STRONG_YES if on else _STRONG_NO)
        return _space(
            filler(rng, 0, 1) if rng.random() < 0.4 else "",
            word,
            filler(rng, 0, 1) if rng.random() < 0.3 else "",
            label,
        )
    state = rng.choice(_ON if on else _OFF)
    if rng.random() < 0.3:
        state = rng.choice(_NEGATIONS) + " " + rng.choice(_OFF if on else _ON)
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
        core: what is asked for.
        noise: words that mean nothing here, put among the common ones.
    """
    tail = " " + filler(rng, 1, 4) if rng.random() < 0.15 else ""
    front = filler(rng, 1, 8).split()
    for word in noise:
        front.insert(rng.randint(0, len(front)), word)
    mark = rng.choice(("", "", "", ",", ",", ":", ".", "?", "!", " and"))
    return _space(" ".join(front) + mark, core) + tail
