"""`ling bench mask`: time of a token mask with a large vocabulary, per token and sequence."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lingflash.bench.in_engine.ceilings import sample_ceilings
from lingflash.core.types import GrammarSpec
from lingflash.records.record import Record, require
from lingflash.structured.answer_form import answer_grammar
from lingflash.structured.grammar import GrammarCompiler
from lingflash.structured.masks import TokenMatcher, mask_words, unpack_mask
from lingflash.structured.vocabulary import Vocabulary

_TARGET_US = 150.0
_TAGS = [b"<|role_end|>", b"<tool_call>", b"</tool_call>", b"<think>", b"</think>"]
_STOP = 0

_PARAMETERS = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "description": "what to look for"},
        "limit": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "filter": {
            "type": "object",
            "properties": {"lang": {"enum": ["en", "de", "zh"]}, "since": {"type": "string"}},
            "required": ["lang"],
        },
    },
    "required": ["query", "limit"],
}
_TOOLS = [
    {
        "type": "function",
        "function": {"name": f"search_{kind}", "parameters": _PARAMETERS, "strict": True},
    }
    for kind in ("web", "files", "mail")
]

# A grammar and a text that it admits, such as a model would write. A tag's name is its token.
_ARGUMENTS = json.dumps(
    {
        "query": "how large is the Zürich lake in square kilometres, and how deep? " * 3,
        "limit": 25,
        "tags": ["geography", "lakes", 'the "deep" ones'],
        "filter": {"lang": "de", "since": "2024-05-17"},
    },
    ensure_ascii=False,
)
_CALL = f'<tool_call>\n{{"name": "search_web", "arguments": {_ARGUMENTS}}}\n</tool_call>'
_PROSE = "The lake covers about eighty-eight square kilometres; it is 136 metres deep.\n" * 4


def _cases() -> dict[str, tuple[GrammarSpec, str]]:
    required = answer_grammar(tools=_TOOLS, tool_choice="required")
    automatic = answer_grammar(tools=_TOOLS)
    silent = answer_grammar(tools=_TOOLS, tool_choice="none")
    assert required is not None
    assert automatic is not None
    assert silent is not None
    return {
        "tool_choice required": (required, _CALL),
        "strict tools, auto": (automatic, _PROSE + _CALL),
        "tool_choice none": (silent, _PROSE),
        "json_schema": (GrammarSpec("json_schema", json.dumps(_PARAMETERS)), _ARGUMENTS),
        "json_object": (GrammarSpec("json_object"), _ARGUMENTS),
        "regex": (
            GrammarSpec("regex", r"(\d{3}-[a-z]+ )+end"),
            "".join(f"{i:03}-{'abcdefgh'[i % 5 :]} " for i in range(40)) + "end",
        ),
    }


def synthetic_vocabulary(size: int) -> Vocabulary:
    """A made vocabulary of the usual mixture: bytes, words with and without a space, JSON, CJK."""
    rng = random.Random(0)
    tokens: dict[bytes, None] = dict.fromkeys(_TAGS)
    tokens |= dict.fromkeys(bytes([i]) for i in range(256))
    marks = ['{"', '":', '", "', '"}', "}}", "[]", "], ", '": "', '": {"', "  ", "\n\n", "    "]
    tokens |= dict.fromkeys(mark.encode() for mark in marks)
    tokens |= dict.fromkeys(f"{i}".encode() for i in range(1000))
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    while len(tokens) < size:
        kind = rng.random()
        if kind < 0.72:
            word = "".join(
                letters[min(int(rng.expovariate(0.18)), 25)] for _ in range(rng.randint(2, 11))
            )
            word = word.capitalize() if rng.random() < 0.25 else word
            tokens[((" " if rng.random() < 0.6 else "") + word).encode()] = None
        elif kind < 0.92:
            count = rng.randint(1, 4)
            tokens["".join(chr(rng.randint(0x4E00, 0x8FFF)) for _ in range(count)).encode()] = None
        elif kind < 0.96:
            count = rng.randint(1, 4)
            tokens["".join(chr(rng.randint(0x430, 0x44F)) for _ in range(count)).encode()] = None
        else:
            count = rng.randint(2, 5)
            tokens[
                "".join(rng.choice("{}[]()<>=+-*/\"':,.;_# \n") for _ in range(count)).encode()
            ] = None
    table = list(tokens)
    by_bytes = {token: index for index, token in enumerate(table)}
    longest = max(map(len, table))

    def encode(text: str) -> list[int]:
        data, found, at = text.encode(), [], 0
        while at < len(data):
            for end in range(min(at + longest, len(data)), at, -1):
                index = by_bytes.get(data[at:end])
                if index is not None and index >= len(_TAGS):
                    found.append(index)
                    at = end
                    break
        return found

    return Vocabulary(table, range(len(_TAGS)), [_STOP], size, encode)


def _tokens(vocabulary: Vocabulary, text: str) -> list[int]:
    """Encode a text in which tags are tokens."""
    found: list[int] = []
    while True:
        places = [(text.find(tag.decode()), i) for i, tag in enumerate(_TAGS)]
        at, tag = min(((at, i) for at, i in places if at >= 0), default=(len(text), -1))
        found += vocabulary.encode(text[:at])
        if tag < 0:
            return found
        found.append(tag)
        text = text[at + len(_TAGS[tag]) :]


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - start)


def run_mask(*, vocab_size: int, repeats: int, out: Path | None, allow_dirty: bool) -> Record:
    """Walk texts through their grammars and time each token's mask.

    Raises:
        ConfigError: a value is out of range.
    """
    require(2000 <= vocab_size <= 1_000_000, "--vocab-size", vocab_size, "2000 to 1000000")
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    record = Record("mask", out, allow_dirty)
    record.settings = {"vocab_size": vocab_size, "repeats": repeats}
    vocabulary = synthetic_vocabulary(vocab_size)
    record.derived["vocabulary index, s"] = _timed(vocabulary.build) / 1e6
    compiler = GrammarCompiler(lambda: vocabulary)
    compiler.compile(GrammarSpec("choice", '["warm"]'))
    row = np.zeros((1, mask_words(vocab_size)), np.uint32)
    every: list[float] = []
    for name, (spec, text) in _cases().items():
        record.derived[f"{name}: compile, ms"] = _timed(lambda s=spec: compiler.compile(s)) / 1e3
        tokens = _tokens(vocabulary, text)
        samples: list[float] = []
        for i in range(repeats + 1):
            sample_ceilings(record)
            times = _walk(compiler.compile(spec), tokens, row)
            if i:
                samples += times
        record.add(f"{name}: mask and commit of a token", "us", samples)
        every += samples
    whole = record.add("all: mask and commit of a token", "us", every)
    record.derived["all: 99th percentile, us"] = sorted(every)[int(0.99 * len(every))]
    record.add(
        "unpack a mask to booleans",
        "us",
        [_timed(lambda: ~unpack_mask(row, vocab_size)) for _ in range(50 * repeats)],
    )
    record.promise("mask of a token and sequence, median us", whole.median, _TARGET_US, "at most")
    record.notes.append(
        "one thread, made vocabulary; in the engine it overlaps the model step in a thread of its "
        "own"
    )
    record.finish()
    return record


def _walk(matcher: TokenMatcher, tokens: list[int], row: np.ndarray) -> list[float]:
    times = []
    for token in tokens:

        def work(token: int = token) -> None:
            matcher.fill(row[0], (_STOP,))
            if not matcher.consume(token):
                raise AssertionError("the text does not follow its grammar")

        times.append(_timed(work))
    return times
