"""What the model says when it does not call a tool, and tool results with the answers to them."""

from __future__ import annotations

import json
import random
from typing import Any

from lingflash.train.data.quantities import integer, number
from lingflash.train.data.tables import POOLS, WORDINGS
from lingflash.train.data.values import KINDS, phrase
from lingflash.train.data.words import Words

REFUSAL = "Sorry, none of my tools can do that."
NO_TOOLS = "I am a small model without knowledge of my own. Give me tools and I will call them."
GREETING = "Hello! How can I help you?"
IDENTITY = "I am ling-nano, the small model that comes with lingflash. I call tools for you."
THANKS = "You are welcome!"
GOODBYE = "Goodbye!"
ABILITY = "I can call the tools that you give me."
FAILED = "That did not work: "
DONE = "Done."

# In the order in which they are drawn.
SMALL_TALK = {
    "hello": GREETING,
    "who": IDENTITY,
    "thank": THANKS,
    "bye": GOODBYE,
    "can": ABILITY,
}


def _finish(rng: random.Random, text: str, question: bool) -> str:
    if rng.random() < 0.7:
        text = text[0].upper() + text[1:]
    x = rng.random()
    if x < 0.55 and text[-1] not in "!?.":
        text += "?" if question else rng.choice((".", "!", ""))
    if x > 0.9 and question:
        text = rng.choice(("Hey, ", "Hi, ", "So, ", "Please, ", "Hello! ")) + text
    return text


def small_talk(rng: random.Random) -> tuple[str, str]:
    """Draw a greeting, a question about the model, thanks or farewell, and its answer."""
    kind, answer = rng.choice(tuple(SMALL_TALK.items()))
    text = rng.choice(WORDINGS[kind])
    return _finish(rng, text, answer in (IDENTITY, ABILITY) or text.startswith("how")), answer


def general_request(rng: random.Random, words: Words) -> str:
    """Draw a request that needs knowledge or abilities that no tool here gives."""
    text = rng.choice(WORDINGS["general"])
    while "{" in text:
        at = text.index("{")
        key = text[at + 1]
        filled = (
            words.word(rng) if key == "w"
            else str(rng.randint(2, 2030)) if key == "n"
            else KINDS["country"].make(rng, words) if key == "c"
            else KINDS["color"].make(rng, words) if key == "k"
            else KINDS["title"].make(rng, words) if key == "t"
            else KINDS["language"].make(rng, words) if key == "l"
            else KINDS["person"].make(rng, words)
        )  # fmt: skip
        text = text[:at] + filled + text[at + 3 :]
    return _finish(
        rng,
        text,
        text.split()[0] in ("what", "who", "why", "how", "is", "do", "when", "what's", "can"),
    )


_RESULT_KINDS = POOLS["result_kinds"]


def _scalar(rng: random.Random, words: Words) -> Any:
    x = rng.random()
    if x < 0.55:
        return KINDS[rng.choice(_RESULT_KINDS)].make(rng, words)
    if x < 0.72:
        return integer(rng)
    if x < 0.88:
        return number(rng)
    return rng.random() < 0.6


def _key(rng: random.Random, words: Words) -> str:
    x = rng.random()
    if x < 0.6:
        return rng.choice(POOLS["result_keys"])
    return words.word(rng) + ("_" + words.word(rng) if x > 0.85 else "")


def _say(value: Any) -> str:
    if value is True or value is False:
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _row(item: dict[str, Any]) -> str:
    return ", ".join(f"{k.replace('_', ' ')}: {_say(v)}" for k, v in item.items())


def draw_result(rng: random.Random, words: Words, scale: int = 1) -> tuple[str, str]:
    """Draw what a tool returns and the answer that reports it.

    Args:
        scale: multiplies the number of rows, for long documents.

    Returns:
        The result's text, mostly JSON, and the answer.
    """
    x = rng.random()
    dump = (
        json.dumps
        if rng.random() < 0.8
        else lambda v, **k: json.dumps(v, separators=(",", ":"), **k)
    )
    if x < 0.08:
        message = phrase(rng, words, 2, 6)
        key = rng.choice(("error", "error", "message"))
        body: dict[str, Any] = {key: message}
        if key == "message" or rng.random() < 0.2:
            body = {"status": "error", **body}
        return dump(body, ensure_ascii=False), FAILED + message + "."
    if x < 0.13:
        return rng.choice(
            ("null", "", "{}", "ok", "OK", "done", '{"status": "ok"}', '{"success": true}', "[]")
        ), DONE
    if x < 0.22:
        text = KINDS["text"].make(rng, words) + rng.choice(("", "", "."))
        return (
            (dump(text, ensure_ascii=False), text)
            if rng.random() < 0.3 and '"' not in text
            else (text, text)
        )
    if x < 0.32:
        kind = KINDS[rng.choice(_RESULT_KINDS)]
        items = [kind.make(rng, words) for _ in range(rng.randint(1, 5) * scale)]
        return dump(items, ensure_ascii=False), "I found " + ", ".join(items) + "."
    if x < 0.47:
        keys = list(dict.fromkeys(_key(rng, words) for _ in range(rng.randint(1, 3))))
        rows = [{k: _scalar(rng, words) for k in keys} for _ in range(rng.randint(1, 4) * scale)]
        wrapped: Any = rows
        if rng.random() < 0.4:
            wrapped = {rng.choice(("results", "items", "data", "matches")): rows}
        return dump(wrapped, ensure_ascii=False), "I found:\n" + "\n".join(
            "- " + _row(r) for r in rows
        )
    result = {
        _key(rng, words): _scalar(rng, words) for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5)))
    }
    if rng.random() < 0.12:
        kind = KINDS[rng.choice(_RESULT_KINDS)]
        result[_key(rng, words)] = [kind.make(rng, words) for _ in range(rng.randint(1, 3))]
    parts = [
        f"{k.replace('_', ' ')} is " + (", ".join(v) if isinstance(v, list) else _say(v))
        for k, v in result.items()
    ]
    return dump(result, ensure_ascii=False), "The " + ", the ".join(parts) + "."
