"""The tokenizer of ling-nano: byte-level BPE made for copying, trained on the generator's own text.

A value must give the same tokens in a request (after a space) and in JSON (after a quote): spaces
are never glued to words, digits are single, runs of JSON punctuation and white space form pieces of
their own. The fixed texts of the template are one token each.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lingflash.core.errors import ConfigError
from lingflash.train.data.chinese import chinese_dialogue
from lingflash.train.data.dialogue import copy_dialogue, plain_dialogue, tool_dialogue
from lingflash.train.data.render import TOOLS_HEAD, TOOLS_TAIL, render_segments
from lingflash.train.data.words import Words

START, END, ROLE_END = "<|startoftext|>", "<|endoftext|>", "<|role_end|>"
CONTROL_TOKENS = (START, END, ROLE_END, "<role>", "</role>")
TAG_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
FIXED_TEXTS = (
    TOOLS_HEAD,
    TOOLS_TAIL,
    "detailed thinking off",
    "detailed thinking on",
    '{"type": "function", "function": {"name": "',
    '{"name": "',
    '", "arguments": {',
    '", "description": "',
    '"description": "',
    '"type": "string"',
    '"type": "integer"',
    '"type": "number"',
    '"type": "boolean"',
    '"type": "array"',
    '"type": "object"',
    '"items": {"type": "string"}',
    '"parameters": {"type": "object", "properties": {',
    '"required": [',
    '"enum": ["',
)
PIECES = r'[A-Z]?[a-z]+|[A-Z]+|\d|["{}\[\]:, \n]+|[^\n]'


def corpus(seed: int, count: int) -> Iterator[str]:
    """Yield the texts of `count` training dialogues, without control tokens and fixed texts."""
    rng = random.Random(seed)
    words = Words(held_out=False)
    for i in range(count):
        x = rng.random()
        make = copy_dialogue if x < 0.1 else plain_dialogue if x < 0.15 else tool_dialogue
        dialogue = make(rng, words)
        text = "".join(t for t, _ in render_segments(dialogue.messages, dialogue.tools))
        for fixed in (*CONTROL_TOKENS, *TAG_TOKENS, *FIXED_TEXTS):
            text = text.replace(fixed, "\x00")
        yield from (part for part in text.split("\x00") if part)
        if i % 7 == 0:  # every word of the list at least now and then
            yield " ".join(words.plain[(i * 31 + k) % len(words.plain)] for k in range(40))


def build_tokenizer(folder: Path, vocab_size: int, seed: int = 1, count: int = 12_000) -> None:
    """Train the tokenizer and write tokenizer.json and tokenizer_config.json.

    Args:
        count: dialogues to train on.

    Raises:
        ConfigError: vocab_size is not a multiple of 128 or too small.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size % 128 or vocab_size < 512:
        raise ConfigError(f"vocab_size is {vocab_size}; allowed: a multiple of 128, at least 512.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [*CONTROL_TOKENS, *TAG_TOKENS, *FIXED_TEXTS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in added],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed, count), trainer)
    raw: dict[str, Any] = json.loads(tokenizer.to_str())
    for entry in raw["added_tokens"]:
        entry["special"] = entry["content"] in CONTROL_TOKENS
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(raw, ensure_ascii=False, indent=0, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": START,
        "clean_up_tokenization_spaces": False,
        "eos_token": ROLE_END,
        "model_max_length": 8192,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )


def add_characters(folder: Path, vocab_size: int, seed: int = 1, count: int = 12_000) -> None:
    """Give the most frequent Chinese characters of the generator a token each, in tokenizer.json.

    One character, one token: what is copied has the same tokens wherever it stands. Characters
    without one are three bytes, as before; the tokens that were there keep their ids.

    Args:
        folder: with a tokenizer.json.
        vocab_size: entries afterwards.
        count: dialogues in which to count.
    """
    path = folder / "tokenizer.json"
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    first = 1 + max(*raw["model"]["vocab"].values(), *(t["id"] for t in raw["added_tokens"]))
    known = {token["content"] for token in raw["added_tokens"]}
    rng = random.Random(seed)
    words = Words(held_out=False)
    found: Counter[str] = Counter()
    for _ in range(count):
        dialogue = chinese_dialogue(rng, words)
        for text, _ in render_segments(dialogue.messages, dialogue.tools):
            found.update(c for c in text if "\u3000" <= c <= "\uffef" and c not in known)
    chosen = sorted(found, key=lambda c: (-found[c], c))[: vocab_size - first]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    raw["added_tokens"] += [
        {"id": first + i, "content": character, **flags} for i, character in enumerate(chosen)
    ]
    text = json.dumps(raw, ensure_ascii=False, indent=0, separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8")
