"""Kinds of argument values: how they look, what such arguments are called and described as."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from lingflash.train.data.tables import NAMES, POOLS
from lingflash.train.data.words import Words, digits, random_string, unicode_text

Maker = Callable[[random.Random, Words], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of string value.

    Args:
        make: draws a value.
        names: argument names of this kind, words joined by a space.
        descriptions: what a schema says of it.
        preps: prepositions with which a request can name it without its label; may be empty.
    """

    make: Maker
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    preps: tuple[str, ...] = ()


def _city(rng: random.Random, words: Words) -> str:
    x = rng.random()
    if x < 0.45:
        return rng.choice(words.cities)
    if x < 0.6 and words.two_word_cities:
        return rng.choice(words.two_word_cities)
    name = words.proper(rng)
    if x > 0.85:
        name = rng.choice(("San ", "New ", "Port ", "Lake ", "El ", "Saint ", "North ")) + name
    elif x > 0.8:
        name += ", " + rng.choice(words.countries)
    return name


def first_name(rng: random.Random, words: Words) -> str:
    """Draw a given name, known or made up."""
    return rng.choice(words.first_names) if rng.random() < 0.55 else words.proper(rng)


def _person(rng: random.Random, words: Words) -> str:
    first = first_name(rng, words)
    if rng.random() < 0.5:
        return first
    last = rng.choice(words.last_names) if rng.random() < 0.5 else words.proper(rng)
    if rng.random() < 0.1:
        first = rng.choice(("Dr. ", "Prof. ", "Mrs. ", "Mr. ")) + first
    return f"{first} {last}"


def _domain(rng: random.Random, words: Words) -> str:
    return words.word(rng) + rng.choice(
        (".com", ".org", ".net", ".io", ".de", ".co.uk", ".dev", ".example")
    )


def _email(rng: random.Random, words: Words) -> str:
    user = first_name(rng, words).lower() if rng.random() < 0.5 else words.word(rng)
    if rng.random() < 0.4:
        user += rng.choice("._-") + words.word(rng)
    if rng.random() < 0.2:
        user += digits(rng, rng.randint(1, 3))
    return f"{user}@{_domain(rng, words)}"


_MONTHS, _DAYS = POOLS["months"], POOLS["days"]


def _date(rng: random.Random, words: Words) -> str:
    x = rng.random()
    y, m, d = rng.randint(1990, 2035), rng.randint(1, 12), rng.randint(1, 28)
    if x < 0.6:
        return f"{y}-{m:02d}-{d:02d}"
    if x < 0.7:
        return f"{rng.choice(_MONTHS)} {d}"
    if x < 0.78:
        return f"{d} {rng.choice(_MONTHS)} {y}"
    if x < 0.84:
        return f"{d:02d}/{m:02d}/{y}"
    if x < 0.9:
        return rng.choice(("today", "tomorrow", "tonight", "next week", "this weekend"))
    return rng.choice(("", "next ")) + rng.choice(_DAYS)


def _time(rng: random.Random, words: Words) -> str:
    h, m = rng.randint(0, 23), rng.choice((0, 15, 30, 45, rng.randint(0, 59)))
    if rng.random() < 0.6:
        return f"{h:02d}:{m:02d}"
    return rng.choice(
        (
            f"{h % 12 + 1}:{m:02d} pm",
            f"{h % 12 + 1}am",
            f"{h % 12 + 1} pm",
            "noon",
            f"{h % 12 + 1}pm",
        )
    )


def _datetime(rng: random.Random, words: Words) -> str:
    date = f"{rng.randint(2000, 2035)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return (
        date
        + rng.choice(("T", " "))
        + f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        + rng.choice(("", ":00", "Z"))
    )


def _ident(rng: random.Random, words: Words) -> str:
    x = rng.random()
    if x < 0.5:
        return random_string(rng)
    if x < 0.8:
        return (
            words.word(rng)[:4].upper()
            + rng.choice(("-", "", "_"))
            + digits(rng, rng.randint(2, 5))
        )
    return rng.choice(("#", "", "")) + digits(rng, rng.randint(3, 8))


def _url(rng: random.Random, words: Words) -> str:
    url = rng.choice(("https://", "http://", "https://www.")) + _domain(rng, words)
    for _ in range(rng.randint(0, 2)):
        url += "/" + words.word(rng)
    if rng.random() < 0.15:
        url += f"?{words.word(rng)}={rng.randint(1, 99)}"
    return url


_EXTENSIONS = (
    "txt",
    "csv",
    "json",
    "py",
    "md",
    "pdf",
    "png",
    "mp3",
    "log",
    "yaml",
    "docx",
    "xlsx",
    "zip",
    "tar.gz",
)


def _filename(rng: random.Random, words: Words) -> str:
    stem = words.word(rng)
    if rng.random() < 0.4:
        stem += rng.choice("_-") + words.word(rng)
    return f"{stem}.{rng.choice(_EXTENSIONS)}"


def _path(rng: random.Random, words: Words) -> str:
    parts = [words.word(rng) for _ in range(rng.randint(1, 3))]
    x = rng.random()
    root = "/" if x < 0.6 else "./" if x < 0.7 else "~/" if x < 0.85 else ""
    tail = "/" + _filename(rng, words) if rng.random() < 0.7 else ""
    return root + "/".join(parts) + (tail or ("/" if not root else ""))


def phrase(rng: random.Random, words: Words, low: int, high: int) -> str:
    """Draw low to high words, English small words mixed in."""
    n = rng.randint(low, high)
    return " ".join(
        rng.choice(POOLS["small"]) if i and rng.random() < 0.3 else words.word(rng)
        for i in range(n)
    )


def _text(rng: random.Random, words: Words) -> str:
    text = phrase(rng, words, 2, 9)
    x = rng.random()
    if x < 0.5:
        text = text[0].upper() + text[1:]
    if x < 0.12:
        text += rng.choice(("!", "?", "."))
    elif x < 0.2:
        text += ", " + phrase(rng, words, 1, 4)
    elif x < 0.25:
        text = text.replace(" is ", " isn't ").replace(" we ", " we'll ")
    return text


def _title(rng: random.Random, words: Words) -> str:
    parts = phrase(rng, words, 1, 4).split()
    return " ".join(p.capitalize() for p in parts) if rng.random() < 0.7 else " ".join(parts)


def _query(rng: random.Random, words: Words) -> str:
    return phrase(rng, words, 1, 4)


def _plain(rng: random.Random, words: Words) -> str:
    x = rng.random()
    if x < 0.6:
        return words.word(rng)
    if x < 0.72:
        return words.made_up(rng)
    if x < 0.78:
        return words.spliced(rng)
    if x < 0.9:
        return words.word(rng) + rng.choice((" ", "-", "_")) + words.word(rng)
    return words.word(rng).capitalize()


def _phone(rng: random.Random, words: Words) -> str:
    return rng.choice(
        (
            f"+{rng.randint(1, 99)} {digits(rng, 3)} {digits(rng, 4)}",
            f"{digits(rng, 3)}-{digits(rng, 4)}",
            f"+{digits(rng, 10)}",
            f"0{digits(rng, 8)}",
            f"({digits(rng, 3)}) {digits(rng, 3)}-{digits(rng, 4)}",
        )
    )


def _address(rng: random.Random, words: Words) -> str:
    street = words.word(rng).capitalize() + rng.choice(
        (" Street", " Avenue", " Road", " Lane", "straße", " St", " Blvd")
    )
    return f"{rng.randint(1, 999)} {street}"


_MAKERS: dict[str, Maker] = {
    "city": _city,
    "person": _person,
    "email": _email,
    "date": _date,
    "time": _time,
    "datetime": _datetime,
    "id": _ident,
    "url": _url,
    "path": _path,
    "filename": _filename,
    "text": _text,
    "title": _title,
    "query": _query,
    "word": _plain,
    "random": lambda rng, words: random_string(rng),
    "phone": _phone,
    "currency": lambda rng, words: (
        "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=3))
        if rng.random() < 0.5
        else rng.choice(("USD", "EUR", "GBP", "JPY", "CHF", "INR", "CAD"))
    ),
    "language": lambda rng, words: (
        rng.choice(words.languages) if words.languages and rng.random() < 0.8 else words.proper(rng)
    ),
    "country": lambda rng, words: (
        rng.choice(words.countries) if rng.random() < 0.7 else words.proper(rng) + "ia"
    ),
    "color": lambda rng, words: rng.choice(words.colors) if rng.random() < 0.7 else words.word(rng),
    "address": _address,
    "unicode": unicode_text,
    "user": lambda rng, words: (
        rng.choice(("@", "@", ""))
        + words.word(rng)
        + rng.choice(("", "", "_" + words.word(rng), digits(rng, 2)))
    ),
    "channel": lambda rng, words: (
        rng.choice(("#", "#", "")) + words.word(rng) + rng.choice(("", "-" + words.word(rng)))
    ),
}
KINDS = {
    kind: Kind(make, **{key: tuple(texts) for key, texts in NAMES["kinds"][kind].items()})
    for kind, make in _MAKERS.items()
}
