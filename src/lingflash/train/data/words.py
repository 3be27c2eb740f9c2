"""Word pools and name makers; every pool is split by hash into a training and a held-out part."""

from __future__ import annotations

import random
import zlib
from functools import cache

from lingflash.train.data.fillers import common_words
from lingflash.train.data.tables import POOLS, WORDINGS, read_text

HELD_OUT_MODULUS = 10


_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ou", "oo"]
_CODAS = ["", "", "", "n", "r", "s", "l", "m", "x", "nd", "rt", "ck", "th", "ll", "p"]


def is_held_out(word: str) -> bool:
    """Tell whether a word is kept for the test; about one in ten is."""
    return zlib.crc32(word.lower().encode()) % HELD_OUT_MODULUS == 0


@cache
def all_words() -> tuple[str, ...]:
    """Return the plain English words of words.txt."""
    return tuple(read_text("words.txt").split())


@cache
def pieces() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the alphabetic entries of the tokenizer's vocabulary, lower case and capitalised."""
    found = read_text("pieces.txt").split()
    return tuple(p for p in found if p.islower()), tuple(p for p in found if not p.islower())


def _part(words: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    return tuple(w for w in words if is_held_out(w) == held_out)


class Words:
    """The pools of one side of the split.

    Args:
        held_out: the test's side if true, the training's if false.
    """

    def __init__(self, held_out: bool) -> None:
        self.held_out = held_out
        # Common words are what requests are made of, so they do not serve as names and values.
        common = frozenset(common_words()) if not held_out else frozenset()
        self.plain = tuple(w for w in _part(all_words(), held_out) if w not in common)
        self.first_names = _part(POOLS["first"], held_out)
        self.last_names = _part(POOLS["last"], held_out)
        self.cities = _part(POOLS["cities"], held_out)
        self.two_word_cities = () if held_out else tuple(WORDINGS["two_word_cities"])
        self.countries = _part(POOLS["countries"], held_out)
        self.languages = _part(POOLS["languages"], held_out)
        self.colors = _part(POOLS["colors"], held_out) or ("crimson",)

    def word(self, rng: random.Random) -> str:
        """Draw an English word, or one made of syllables, of parts of words, or of tokens."""
        x = rng.random()
        if x < 0.62:
            return rng.choice(self.plain)
        return (
            self.made_up(rng) if x < 0.74 else self.spliced(rng) if x < 0.84 else self.pieced(rng)
        )

    def pieced(self, rng: random.Random) -> str:
        """Join one to three entries of the vocabulary, so that each gets copied now and then."""
        lower, capital = pieces()
        while True:
            word = "".join(rng.choices(lower, k=rng.choice((1, 2, 2, 3))))
            if rng.random() < 0.08:
                word = rng.choice(capital) + word
            if len(word) > 2 and is_held_out(word) == self.held_out:
                return word

    def spliced(self, rng: random.Random) -> str:
        """Join the start of one word and the end of another."""
        while True:
            a, b = rng.choice(self.plain), rng.choice(self.plain)
            word = a[: rng.randint(2, 6)] + b[rng.randint(1, len(b) - 2) :]
            if 3 < len(word) < 13 and is_held_out(word) == self.held_out:
                return word

    def proper(self, rng: random.Random) -> str:
        """Make a capitalised name of any kind."""
        make = rng.choice((self.made_up, self.spliced, self.word, self.capital))
        word = make(rng)
        return word[0].upper() + word[1:]

    def capital(self, rng: random.Random) -> str:
        """Join a capitalised entry of the vocabulary and another one."""
        lower, capital = pieces()
        while True:
            word = rng.choice(capital) + (rng.choice(lower) if rng.random() < 0.7 else "")
            if is_held_out(word) == self.held_out:
                return word

    def made_up(self, rng: random.Random) -> str:
        """Make a word of two or three syllables that is on this side of the split."""
        while True:
            word = "".join(
                rng.choice(POOLS["onsets"]) + rng.choice(_VOWELS) + rng.choice(_CODAS)
                for _ in range(rng.choice((1, 2, 2, 2, 3)))
            )
            if len(word) > 3 and is_held_out(word) == self.held_out:
                return word


_ALNUM = "abcdefghijklmnopqrstuvwxyz0123456789"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ACCENTS = "áàâäãåéèêëíìîïóòôöõøúùûüñçšžýłğş"
_EMOJI = "😀🎉🚀❤🔥🌧☀🍕🎵📅✅⚠"


def random_string(rng: random.Random) -> str:
    """Draw a random string of letters and digits, now and then with separators."""
    style = rng.random()
    n = rng.randint(3, 10)
    if style < 0.4:
        return "".join(rng.choices(_ALNUM, k=n))
    if style < 0.6:
        return (
            "".join(rng.choices(_UPPER, k=rng.randint(2, 4))) + "-" + digits(rng, rng.randint(2, 6))
        )
    if style < 0.75:
        return "".join(rng.choices(_ALNUM[:26], k=n))
    if style < 0.9:
        return "".join(rng.choices(_ALNUM + _UPPER, k=n))
    return rng.choice("-_.").join(
        "".join(rng.choices(_ALNUM, k=3)) for _ in range(rng.randint(2, 3))
    )


def digits(rng: random.Random, n: int) -> str:
    """Draw n decimal digits, the first not zero."""
    return str(rng.randint(10 ** (n - 1), 10**n - 1))


def unicode_text(rng: random.Random, words: Words) -> str:
    """Draw a short text with letters outside ASCII."""
    style = rng.random()
    if style < 0.5:
        word = list(words.made_up(rng))
        for _ in range(rng.randint(1, 2)):
            word[rng.randrange(len(word))] = rng.choice(_ACCENTS)
        return "".join(word).capitalize()
    if style < 0.9:
        return "".join(rng.choices(rng.choice(POOLS["scripts"]), k=rng.randint(2, 6)))
    return words.word(rng) + " " + rng.choice(_EMOJI)
