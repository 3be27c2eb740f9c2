"""Word pools and name makers; every pool is split by hash into a training and a held-out part."""

from __future__ import annotations

import random
import zlib
from functools import cache
from importlib import resources

from lingflash.train.data.fillers import common_words, table

HELD_OUT_MODULUS = 10

# Groups of verbs that mean the same; the first is the plainest.
VERB_GROUPS: tuple[tuple[str, ...], ...] = tuple(
    tuple(line.split())
    for line in """
get fetch retrieve obtain read pull show
find search locate lookup discover query
list enumerate show display
create make add build generate
delete remove erase drop discard
update modify change edit adjust
send dispatch deliver transmit forward
book reserve
cancel abort revoke
start launch begin run
stop halt end terminate
open unlock
close shut
set configure assign apply
check verify validate test inspect
compute calculate determine work-out
convert transform translate turn
schedule plan arrange
play stream
pause suspend hold
resume continue
buy purchase order
sell trade
pay settle
transfer move shift
copy duplicate clone
rename relabel
upload push post submit
download save export
import load ingest
merge combine join
split divide separate
sort rank arrange
filter select pick
compare contrast
count tally total
summarize condense digest
analyze examine study
publish release announce
archive store keep
restore recover undo
share give
invite ask
assign allocate give
register enroll sign-up
subscribe follow
block ban mute
approve accept confirm
reject decline refuse
track monitor watch follow
measure gauge
estimate predict forecast
print render draw
record log note
notify alert warn remind
encrypt lock secure
compress shrink zip
resize scale
rotate spin
tag label mark
review rate score
deploy install roll-out
reset clear wipe
sync refresh reload
call phone ring dial
attach link connect
detach unlink disconnect
enable activate switch-on
disable deactivate switch-off
recommend suggest propose
request demand
extract parse
scan sweep
""".strip().splitlines()
)

_FIRST = table(
    """
Alice Bob Carla David Emma Frank Grace Hector Irene Jack Karen Liam Maria Nina Oscar Paula
Quentin Rosa Samuel Tara Ursula Victor Wendy Xavier Yasmin Zoe Ahmed Priya Chen Yuki Olga Ivan
Fatima Lars Ingrid Mateo Sofia Kwame Aisha Ravi Mei Hiro Pedro Lucia Anna Jonas Elif Omar Leila
Noah Mia Ethan Chloe Lukas Hannah Diego Camila Tomas Sven Bianca
"""
)
_LAST = table(
    """
Smith Jones Garcia Miller Davis Lopez Wilson Anderson Taylor Thomas Moore Martin Lee Thompson
White Harris Clark Lewis Walker Hall Young King Wright Scott Green Baker Adams Nelson Hill
Rivera Campbell Mitchell Carter Roberts Tanaka Suzuki Kim Park Nguyen Patel Singh Khan Ivanov
Novak Schmidt Weber Rossi Silva Santos Costa Larsen Olsen
"""
)
_CITIES = table(
    """
Paris London Berlin Madrid Rome Vienna Prague Lisbon Dublin Oslo Stockholm Helsinki Warsaw
Athens Budapest Tokyo Osaka Kyoto Seoul Beijing Shanghai Singapore Bangkok Hanoi Mumbai Delhi
Cairo Nairobi Lagos Accra Casablanca Toronto Montreal Vancouver Chicago Boston Seattle Denver
Austin Dallas Houston Miami Atlanta Phoenix Portland Sydney Melbourne Auckland Lima Bogota
Santiago Quito Havana Geneva Zurich Munich Hamburg Lyon Nice Milan Turin Naples Porto Seville
Valencia Bilbao Krakow Gdansk Riga Tallinn Vilnius Istanbul Ankara Dubai Doha
"""
)
_TWO_WORD_CITIES = (
    "New York",
    "Los Angeles",
    "San Francisco",
    "Buenos Aires",
    "Mexico City",
    "Cape Town",
    "Hong Kong",
    "Tel Aviv",
    "São Paulo",
    "Rio de Janeiro",
    "Kuala Lumpur",
    "Salt Lake City",
)
_COUNTRIES = table(
    """
France Germany Spain Italy Portugal Norway Sweden Finland Poland Greece Hungary Japan Korea
China India Egypt Kenya Nigeria Ghana Morocco Canada Brazil Peru Chile Cuba Switzerland Turkey
Qatar Mexico Argentina Ireland Denmark Austria Belgium Iceland
"""
)
_LANGUAGES = table(
    """
English French German Spanish Italian Portuguese Norwegian Swedish Polish Greek Japanese Korean
Chinese Hindi Arabic Swahili Turkish Dutch Danish Czech Russian Finnish
"""
)
_COLORS = table(
    """
red blue green yellow orange purple pink black white gray brown teal navy gold silver
"""
)

_ONSETS = table(
    """
b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl pr qu sh sk sl st th tr ch bl gl
"""
)
_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ou", "oo"]
_CODAS = ["", "", "", "n", "r", "s", "l", "m", "x", "nd", "rt", "ck", "th", "ll", "p"]


def is_held_out(word: str) -> bool:
    """Tell whether a word is kept for the test; about one in ten is."""
    return zlib.crc32(word.lower().encode()) % HELD_OUT_MODULUS == 0


@cache
def all_words() -> tuple[str, ...]:
    """Return the plain English words of words.txt."""
    text = resources.files("lingflash.train.data").joinpath("words.txt").read_text(encoding="utf-8")
    return tuple(text.split())


@cache
def pieces() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the alphabetic entries of the tokenizer's vocabulary, lower case and capitalised."""
    found = (
        resources.files("lingflash.train.data")
        .joinpath("pieces.txt")
        .read_text(encoding="utf-8")
        .split()
    )
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
        self.first_names = _part(tuple(_FIRST), held_out)
        self.last_names = _part(tuple(_LAST), held_out)
        self.cities = _part(tuple(_CITIES), held_out)
        self.two_word_cities = () if held_out else _TWO_WORD_CITIES
        self.countries = _part(tuple(_COUNTRIES), held_out)
        self.languages = _part(tuple(_LANGUAGES), held_out)
        self.colors = _part(tuple(_COLORS), held_out) or ("crimson",)

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
                rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
                for _ in range(rng.choice((1, 2, 2, 2, 3)))
            )
            if len(word) > 3 and is_held_out(word) == self.held_out:
                return word


_ALNUM = "abcdefghijklmnopqrstuvwxyz0123456789"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ACCENTS = "áàâäãåéèêëíìîïóòôöõøúùûüñçšžýłğş"
_SCRIPTS = (
    "абвгдежзиклмнопрстуфхцчшыя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "北京上海東京大阪今日天气你好世界文件市場山水花月人心",
    "あいうえおかきくけこさしすせそたちつてとなにのはまやらりん",
    "가나다라마바사아자차카타파하서울부산",
    "אבגדהוזחטיכלמנ",
    "अआइईकखगघचजटडतदनपबमयरलवसह",
)
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
        return "".join(rng.choices(rng.choice(_SCRIPTS), k=rng.randint(2, 6)))
    return words.word(rng) + " " + rng.choice(_EMOJI)
