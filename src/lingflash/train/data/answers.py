"""What the model says when it does not call a tool, and tool results with the answers to them."""

from __future__ import annotations

import json
import random
from typing import Any

from lingflash.train.data.fillers import table
from lingflash.train.data.quantities import integer, number
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

_HELLO = """
hi|hello|hey|hi there|hello there|good morning|good evening|good afternoon|hey there|greetings|
hiya|howdy|hello!|yo|hi, how are you|how are you|how are you doing|how is it going|what's up|
nice to meet you|hello again|hey, you there|are you there|is anybody there|good day|hi ling|
hello ling-nano|hey ling|morning|evening
"""
_WHO = """
who are you|what are you|what is your name|what's your name|who made you|tell me about yourself|
introduce yourself|are you a robot|are you human|which model are you|what model is this|
what model are you|are you ChatGPT|are you an AI|who am I talking to|do you have a name|
what should I call you|who built you|who created you|what is ling-nano|say who you are|
your name please|who is this|describe yourself|what kind of model are you|
are you a language model|are you real|can you introduce yourself|where do you come from|
what is lingflash
"""
_THANK = """
thanks|thank you|thank you very much|thanks a lot|thx|great, thanks|perfect, thank you|ok thanks|
many thanks|cheers|awesome, thank you|thanks for your help|that helped, thanks|nice, thanks|
much appreciated|great job|well done|good work|that's perfect|wonderful, thanks so much
"""
_BYE = """
bye|goodbye|see you|see you later|bye bye|good night|that's all|have a nice day|talk to you later|
take care|farewell|until next time|I have to go|that's it for today|ciao
"""
_CAN = """
what can you do|how can you help me|what are you able to do|what do you do|help|
what is your purpose|how do you work|what are your abilities|what can I ask you|
what are you good at|how can you help|what are your capabilities|can you help me|
what tools do you have|which tools can you use|list your tools|what functions are available
"""
_GENERAL = """
tell me a joke|who won the {w} cup in {n}|write a poem about {w}|what is the capital of {c}|
why is the sky {k}|how do I bake {w} bread|what is the meaning of life|how old is the universe|
sing me a song|who wrote {t}|explain {w} to me|what is {n} times {n}|
how many {w} are there in {c}|recommend a good book|write a story about {p}|do you like {w}|
what do you think about {w}|what's the best way to learn {l}|solve this riddle|
is {w} better than {w}|how tall is {p}|give me advice about {w}|who is the president of {c}|
what happened in {n}|how far away is the moon|write code that does {w}|can you paint {w}|
tell me something interesting|what should I eat today|how do airplanes fly|what is {w}|
why do {w} matter|who invented the {w}|make me laugh|what is your favourite {w}|
do my homework about {w}|write an essay on {w} and {w}|is there life on Mars|how do magnets work|
tell me a story|what rhymes with {w}|when was {p} born|can you drive a car|how deep is the ocean|
what does {p} look like|predict the future|how many people live in {c}|
what language do they speak in {c}|should I trust {p}|is it true that {w} is {w}|
what's the difference between {w} and {w}|write a haiku about {w}|how do you spell {w}|
give me three facts about {w}|cook dinner for me|clean my {w}|feed the cat|open the pod bay doors|
fix my {w}|what did {p} say yesterday|find my keys|wash the car|iron my shirts|cut my hair|
explain how {w} works|draw me a map of {c}|fly me to the moon|water my plants
"""


def _lines(text: str) -> tuple[str, ...]:
    return tuple(p.strip() for p in text.replace("\n", "").split("|") if p.strip())


SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (_lines(_HELLO), GREETING),
    (_lines(_WHO), IDENTITY),
    (_lines(_THANK), THANKS),
    (_lines(_BYE), GOODBYE),
    (_lines(_CAN), ABILITY),
)
_GENERAL_LINES = _lines(_GENERAL)


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
    lines, answer = rng.choice(SMALL_TALK)
    text = rng.choice(lines)
    return _finish(rng, text, answer in (IDENTITY, ABILITY) or text.startswith("how")), answer


def general_request(rng: random.Random, words: Words) -> str:
    """Draw a request that needs knowledge or abilities that no tool here gives."""
    text = rng.choice(_GENERAL_LINES)
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


_RESULT_KEYS = table(
    """
status id name temperature condition price total count message date time city title url balance
result value currency location summary duration distance email owner created updated size score
rating author version humidity wind_speed order_id tracking_number state amount success
available booking_id event_id flight seats gate room language text path
"""
)
_RESULT_KINDS = (
    "word",
    "city",
    "person",
    "date",
    "time",
    "id",
    "title",
    "random",
    "email",
    "filename",
    "text",
    "url",
    "query",
    "unicode",
)


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
        return rng.choice(_RESULT_KEYS)
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
