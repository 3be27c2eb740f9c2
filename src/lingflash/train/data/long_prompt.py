"""System prompts of an agent's length around simple requests.

The prose is Python's own documentation of its language (`pydoc_data.topics`, in the standard
library, not copied here), cut at random and mixed with made-up rules, so that a request must be
found, and answered, behind thousands of tokens that do not matter.
"""

from __future__ import annotations

import math
import random
from functools import cache

from lingflash.train.data.render import Dialogue
from lingflash.train.data.tables import WORDINGS
from lingflash.train.data.values import KINDS, phrase
from lingflash.train.data.words import Words, is_held_out

_RULES = (
    "- Never {a} without {b}.", "- Always {a} before {b}.", "* {a}: {b}", "{a} must not {b}.",
    "- If the user asks for {a}, think about {b} first.", "IMPORTANT: {a} is {b}.", "1. {a}",
    "- Do not {a} unless {b}.", "You can use {a} to {b}.", "<{c}>{a} {b}</{c}>", "`{c}`: {a}",
    "- When {a}, call the tool for {b}.", "Example: {a} -> {b}", "{c} = {b}", "| {c} | {a} |",
)  # fmt: skip
_TITLES = ("# {a}", "## {a}", "### {a}", "**{a}**", "{a}:", "<{c}>", "---", "## {a} and {b}")


@cache
def _prose(held_out: bool) -> tuple[str, ...]:
    from pydoc_data.topics import topics

    chosen = (t for name, t in sorted(topics.items()) if is_held_out(name) == held_out)
    return tuple(t for t in chosen if len(t) > 400)


def long_text(rng: random.Random, words: Words, num_chars: int) -> str:
    """Make a text of about so many characters."""
    parts: list[str] = []
    size = 0
    while size < num_chars:
        x = rng.random()
        if x < 0.55:
            text = rng.choice(_prose(words.held_out))
            start = rng.randrange(max(1, len(text) - 300))
            piece = text[start : start + rng.randint(200, 3000)]
        elif x < 0.75:
            piece = "\n".join(
                rng.choice(_RULES).format(
                    a=phrase(rng, words, 2, 9), b=phrase(rng, words, 1, 8), c=words.word(rng)
                )
                for _ in range(rng.randint(2, 12))
            )
        elif x < 0.85:
            piece = phrase(rng, words, 30, 120)
        else:
            piece = "\n".join(
                f"{words.word(rng)}: {KINDS[rng.choice(tuple(KINDS))].make(rng, words)}"
                for _ in range(rng.randint(2, 10))
            )
        title = rng.choice(_TITLES).format(a=words.word(rng), b=words.word(rng), c=words.word(rng))
        parts.append(f"{title}\n{piece}")
        size += len(piece) + len(title)
    return rng.choice(("\n\n", "\n")).join(parts)[:num_chars]


def with_long_prompt(
    rng: random.Random, words: Words, dialogue: Dialogue, max_chars: int
) -> Dialogue:
    """Put a long system prompt before a dialogue, and now and then long texts into its tools."""
    size = int(math.exp(rng.uniform(math.log(1500), math.log(max_chars))))
    system = rng.choice(WORDINGS["system"]) if rng.random() < 0.5 else ""
    for key in ("{w}", "{d}", "{p}", "{c}", "{t}"):
        system = system.replace(key, words.word(rng))
    in_tools = rng.uniform(0.2, 0.7) if dialogue.tools and rng.random() < 0.4 else 0.0
    content = f"{system}\n\n{long_text(rng, words, int(size * (1 - in_tools)))}".strip()
    messages = [m for m in dialogue.messages if m["role"] != "system"]
    tools = []
    for tool in dialogue.tools:
        function = dict(tool["function"])
        share = int(size * in_tools / len(dialogue.tools))
        if share > 50:
            about = function.get("description", "")
            function["description"] = f"{about}\n\n{long_text(rng, words, share)}".strip()
        tools.append({"type": "function", "function": function})
    return Dialogue([{"role": "system", "content": content}, *messages], tools, dialogue.thinking)
