"""Questions that a few lines of Python answer, the code, and what it printed, told in a sentence.

The code is run here, so that results are true. It uses single quotes: inside JSON they need no
backslash, and what is quoted keeps its tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from lingflash.train.data import answers, chinese
from lingflash.train.data.dialogue import call_turn, draw_tools
from lingflash.train.data.quantities import integer, number
from lingflash.train.data.render import Dialogue, Message
from lingflash.train.data.tables import read_table
from lingflash.train.data.tools import to_json_tool
from lingflash.train.data.values import phrase
from lingflash.train.data.words import Words

TEXTS = read_table("code.toml")
Fields = dict[str, Any]
Question = tuple[Fields, str]


def _whole(rng: random.Random, low: int = 2) -> int:
    return rng.choice((rng.randint(low, 30), rng.randint(low, 200), rng.randint(low, 9999)))


def _amount(rng: random.Random) -> int | float:
    value = abs(number(rng)) if rng.random() < 0.35 else abs(integer(rng))
    return value or 7


def _grouped(rng: random.Random, value: float) -> str:
    """Write a number, a large one now and then with commas."""
    return f"{value:,}" if value >= 1000 and rng.random() < 0.35 else str(value)


def _numbers(rng: random.Random) -> list[int | float]:
    n = rng.choice((3, 3, 4, 4, 5, 5, 6, 7, 8, 10))
    x = rng.random()
    if x < 0.25:
        return [round(rng.uniform(0, 99), rng.choice((1, 1, 2))) for _ in range(n)]
    high = rng.choice((9, 20, 99, 99, 999, 5000))
    low = -high if x > 0.93 else 0
    return [rng.randint(low, high) for _ in range(n)]


def _listed(rng: random.Random, items: list[Any]) -> str:
    texts = [str(i) for i in items]
    x = rng.random()
    if x < 0.45:
        return ", ".join(texts)
    if x < 0.75:
        return ", ".join(texts[:-1]) + rng.choice((" and ", ", and ")) + texts[-1]
    return rng.choice((" ", ",", "; ", " ")).join(texts) if x < 0.92 else str(items)


def _word(rng: random.Random, words: Words) -> tuple[str, str]:
    """A word and how a question shows it."""
    word = words.word(rng) if rng.random() < 0.7 else words.proper(rng)
    return word, rng.choice(("{}", "{}", '"{}"', "'{}'", "the word {}")).format(word)


def _expression(rng: random.Random) -> str:
    def operand() -> str:
        return str(_amount(rng)) if rng.random() < 0.3 else str(_whole(rng))

    text = operand()
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        sign = rng.choice("++--***/")
        space = rng.choice((" ", " ", ""))
        text = f"{text}{space}{sign}{space}{operand()}"
        if rng.random() < 0.2:
            text = f"({text})"
    return text


def _shown(expression: str) -> str:
    return (
        f"print(round({expression}, 6))"
        if "/" in expression or "." in expression
        else (f"print({expression})")
    )


def _pair(form: str, exact: bool = False) -> Callable[[random.Random, Words], Question]:
    """A family over two numbers; `form` is the expression."""

    def make(rng: random.Random, words: Words) -> Question:
        a, b = (_whole(rng), _whole(rng)) if exact else (_amount(rng), _amount(rng))
        code = _shown(form.format(a=a, b=b))
        if not exact and rng.random() < 0.1:
            return {"a": f"${a}", "b": b}, code
        return {"a": _grouped(rng, a), "b": _grouped(rng, b)}, code

    return make


def _power(rng: random.Random, words: Words) -> Question:
    a, b = rng.randint(2, 25), rng.randint(2, 12)
    return {"a": a, "b": b}, f"print({a} ** {b})"


def _single(form: str, high: int) -> Callable[[random.Random, Words], Question]:
    """A family over one whole number."""

    def make(rng: random.Random, words: Words) -> Question:
        n = rng.randint(2, rng.choice((12, 40, high)) if high > 40 else high)
        return {"a": n, "n": n}, form.format(n=n)

    return make


def _percent(form: str) -> Callable[[random.Random, Words], Question]:
    def make(rng: random.Random, words: Words) -> Question:
        p = rng.choice((5, 10, 15, 20, 25, 30, rng.randint(1, 99), 7.5, 12.5))
        a = _amount(rng)
        shown = _grouped(rng, a)
        if rng.random() < 0.15:
            shown = f"{rng.choice('$€')}{shown}"
        return {"p": p, "a": shown}, _shown(form.format(p=p, a=a))

    return make


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1950, 2040)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _between(rng: random.Random, words: Words) -> Question:
    a, b = sorted((_date(rng), _date(rng)))
    code = (
        "from datetime import date\n"
        f"print((date.fromisoformat('{b}') - date.fromisoformat('{a}')).days)"
    )
    return {"a": a, "b": b}, code


def _weekday(rng: random.Random, words: Words) -> Question:
    a = _date(rng)
    return {"a": a}, f"from datetime import date\nprint(date.fromisoformat('{a}').strftime('%A'))"


def _shift(sign: str) -> Callable[[random.Random, Words], Question]:
    def make(rng: random.Random, words: Words) -> Question:
        a, n = _date(rng), rng.randint(2, rng.choice((30, 100, 1000)))
        code = (
            "from datetime import date, timedelta\n"
            f"print(date.fromisoformat('{a}') {sign} timedelta(days={n}))"
        )
        return {"a": a, "n": n}, code

    return make


def _over(form: str, head: str = "") -> Callable[[random.Random, Words], Question]:
    """A family over a list of numbers."""

    def make(rng: random.Random, words: Words) -> Question:
        items = _numbers(rng)
        shown = _listed(rng, items)
        if "mode" in form:
            items[rng.randrange(1, len(items))] = items[0]
            shown = _listed(rng, items)
        n = rng.randint(1, 99)
        return {"x": shown, "n": n}, head + form.format(x=items, n=n)

    return make


def _words_list(form: str) -> Callable[[random.Random, Words], Question]:
    def make(rng: random.Random, words: Words) -> Question:
        items = [words.word(rng) for _ in range(rng.randint(3, 6))]
        texts = (
            ", ".join(items) if rng.random() < 0.6 else ", ".join(items[:-1]) + " and " + items[-1]
        )
        return {"x": texts}, form.format(x=items)

    return make


def _over_word(form: str) -> Callable[[random.Random, Words], Question]:
    def make(rng: random.Random, words: Words) -> Question:
        word, shown = _word(rng, words)
        return {"w": shown}, form.format(w=word)

    return make


def _letter(rng: random.Random, words: Words) -> Question:
    word, shown = _word(rng, words)
    c = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    return {"w": shown, "c": c}, f"print('{word}'.count('{c}'))"


def _phrase_words(rng: random.Random, words: Words) -> Question:
    text = phrase(rng, words, 3, 9)
    return {"w": text}, f"print(len('{text}'.split()))"


def _round(rng: random.Random, words: Words) -> Question:
    a, n = round(rng.uniform(0.1, 500), rng.randint(3, 6)), rng.randint(1, 2)
    return {"a": a, "n": n}, f"print(round({a}, {n}))"


def _range(rng: random.Random, words: Words) -> Question:
    a, b = rng.randint(1, 50), rng.randint(51, 2000)
    return {"a": a, "b": b}, f"print(sum(range({a}, {b} + 1)))"


_STATISTICS = "import statistics\n"
FAMILIES: dict[str, Callable[[random.Random, Words], Question]] = {
    "arithmetic": lambda rng, words: (lambda e: ({"x": e}, _shown(e)))(_expression(rng)),
    "words_add": _pair("{a} + {b}"),
    "words_subtract": _pair("{a} - {b}"),
    "words_multiply": _pair("{a} * {b}"),
    "words_divide": _pair("{a} / {b}"),
    "remainder": _pair("{a} % {b}", True),
    "power": _power,
    "square": _single("print({n} ** 2)", 999),
    "root": _single("import math\nprint(round(math.sqrt({n}), 6))", 9999),
    "percent_of": _percent("{a} * {p} / 100"),
    "percent_more": _percent("{a} * (100 + {p}) / 100"),
    "percent_less": _percent("{a} * (100 - {p}) / 100"),
    "percent_ratio": _pair("{a} / {b} * 100"),
    "percent_change": _pair("({b} - {a}) / {a} * 100"),
    "days_between": _between,
    "weekday": _weekday,
    "days_after": _shift("+"),
    "days_before": _shift("-"),
    "leap": _single("import calendar\nprint(calendar.isleap({n}))", 2400),
    "sort": _over("print(sorted({x}))"),
    "sort_down": _over("print(sorted({x}, reverse=True))"),
    "sort_words": _words_list("print(sorted({x}))"),
    "sort_length": _words_list("print(sorted({x}, key=len))"),
    "count_letter": _letter,
    "length": _over_word("print(len('{w}'))"),
    "vowels": _over_word("print(sum(c in 'aeiou' for c in '{w}'.lower()))"),
    "reverse": _over_word("print('{w}'[::-1])"),
    "palindrome": _over_word("word = '{w}'.lower()\nprint(word == word[::-1])"),
    "upper": _over_word("print('{w}'.upper())"),
    "count_words": _phrase_words,
    "mean": _over("print(round(statistics.mean({x}), 6))", _STATISTICS),
    "median": _over("print(statistics.median({x}))", _STATISTICS),
    "stdev": _over("print(round(statistics.stdev({x}), 6))", _STATISTICS),
    "variance": _over("print(round(statistics.variance({x}), 6))", _STATISTICS),
    "mode": _over("print(statistics.mode({x}))", _STATISTICS),
    "sum": _over("print(round(sum({x}), 6))"),
    "product": _over("print(math.prod({x}))", "import math\n"),
    "largest": _over("print(max({x}))"),
    "smallest": _over("print(min({x}))"),
    "spread": _over("numbers = {x}\nprint(round(max(numbers) - min(numbers), 6))"),
    "count_above": _over("print(sum(n > {n} for n in {x}))"),
    "count_below": _over("print(sum(n < {n} for n in {x}))"),
    "count_even": _over("print(sum(n % 2 == 0 for n in {x}))"),
    "unique": _over("print(len(set({x})))"),
    "range_sum": _range,
    "factorial": _single("import math\nprint(math.factorial({n}))", 20),
    "gcd": _pair("math.gcd({a}, {b})", True),
    "lcm": _pair("math.lcm({a}, {b})", True),
    "prime": _single(
        "n = {n}\nprint(n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1)))", 999
    ),
    "binary": _single("print(bin({n})[2:])", 999),
    "hexadecimal": _single("print(hex({n})[2:])", 9999),
    "rounded": _round,
    "circle": lambda rng, words: (
        lambda a: ({"a": a}, f"import math\nprint(round(math.pi * {a} ** 2, 6))")
    )(_amount(rng)),
    "rectangle": _pair("{a} * {b}"),
    "speed": _pair("{a} / {b}"),
}
_NAMES = tuple(FAMILIES)
_WEIGHTS = tuple({"arithmetic": 5, "count_letter": 2}.get(name, 1) for name in _NAMES)


def run(code: str) -> str:
    """Run code of this module and return what it printed."""
    printed: list[str] = []
    exec(code, {"print": lambda value: printed.append(str(value))})
    return "\n".join(printed)


def question(rng: random.Random, words: Words, is_chinese: bool) -> tuple[str, str, str]:
    """Draw a question. Returns it, the code that answers it, and what the code prints."""
    while True:
        name = rng.choices(_NAMES, _WEIGHTS)[0]
        fields, code = FAMILIES[name](rng, words)
        if "math.gcd" in code or "math.lcm" in code:
            code = "import math\n" + code
        try:
            printed = run(code)
            break
        except (ArithmeticError, ValueError):
            continue
    if is_chinese:
        text = rng.choice(TEXTS[name]["zh"]).format(**fields)
        return text + rng.choice(("", "", "？", "。", "，谢谢")), code, printed
    core = rng.choice(TEXTS[name]["en"]).format(**fields)
    text = rng.choice(TEXTS["leads"]) + core + rng.choice(TEXTS["tails"])
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return text, code, printed


def python_tool(rng: random.Random) -> tuple[dict[str, Any], str, str]:
    """Draw the tool that runs code, mostly as the server's own. Returns it and its two names."""
    name, argument = "python", "code"
    if rng.random() < 0.4:
        name, argument = rng.choice(TEXTS["names"]), rng.choice(TEXTS["arguments"])
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.7:
        schema["description"] = rng.choice(TEXTS["code_descriptions"])
    function = {
        "name": name,
        "description": rng.choice(TEXTS["descriptions"]),
        "parameters": {"type": "object", "properties": {argument: schema}, "required": [argument]},
    }
    return {"type": "function", "function": function}, name, argument


def _code_turn(
    rng: random.Random, words: Words, name: str, argument: str, is_chinese: bool
) -> list[Message]:
    text, code, printed = question(rng, words, is_chinese)
    call = {"type": "function", "function": {"name": name, "arguments": {argument: code}}}
    messages: list[Message] = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    x = rng.random()
    if x < 0.05:
        error = rng.choice(("ZeroDivisionError: division by zero", "TimeoutError", "MemoryError",
                            "ValueError: " + phrase(rng, words, 2, 5)))  # fmt: skip
        shown = f'Traceback (most recent call last):\n  File "<string>", line 1\n{error}'
        failed = (
            chinese.TEXTS["failed"].format(s=error) if is_chinese else f"{answers.FAILED}{error}."
        )
        return [
            *messages,
            {"role": "tool", "content": shown if rng.random() < 0.7 else error},
            {"role": "assistant", "content": failed},
        ]
    shown = printed + ("\n" if x < 0.6 else "")
    if x > 0.9:
        shown = json.dumps(
            {rng.choice(("stdout", "output", "result")): printed}, ensure_ascii=False
        )
    said = TEXTS["chinese_answers" if is_chinese else "answers"][0].format(x=printed)
    return [
        *messages, {"role": "tool", "content": shown}, {"role": "assistant", "content": said}
    ]  # fmt: skip


def code_dialogue(rng: random.Random, words: Words, max_turns: int = 3) -> Dialogue:
    """Draw a dialogue with a tool that runs Python, mostly, and now and then others beside it."""
    is_chinese = rng.random() < 0.15
    python, name, argument = python_tool(rng)
    others = draw_tools(rng, words, rng.choice((0, 0, 0, 1, 2, 3)))
    offered = not others or rng.random() < 0.85
    messages: list[Message] = []
    for _ in range(rng.randint(1, max_turns)):
        x = rng.random()
        if others and x < 0.25:
            text, calls = call_turn(rng, words, others)
            results = [answers.draw_result(rng, words) for _ in calls]
            messages += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "", "tool_calls": calls},
                *({"role": "tool", "content": r[0]} for r in results),
                {"role": "assistant", "content": "\n".join(r[1] for r in results)},
            ]
            continue
        if not offered:
            text = question(rng, words, is_chinese)[0]
            answer = chinese.TEXTS["refusal"] if is_chinese else answers.REFUSAL
        elif x < 0.31:
            text, answer = (chinese.small_talk if is_chinese else answers.small_talk)(rng)
        elif x < 0.4:
            if is_chinese:
                text, answer = chinese.foreign_request(rng, words, []), chinese.TEXTS["refusal"]
            else:
                text, answer = answers.general_request(rng, words), answers.REFUSAL
                if any(w in text for w in ("times", "many", "code", "spell", "old", "born", "far")):
                    continue
        else:
            messages += _code_turn(rng, words, name, argument, is_chinese)
            continue
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    if not messages:
        return code_dialogue(rng, words, max_turns)
    tools = [to_json_tool(rng, t) for t in others]
    if offered and all(t["function"]["name"] != name for t in tools):
        tools.insert(rng.randint(0, len(tools)), python)
    elif offered:
        return code_dialogue(rng, words, max_turns)
    return Dialogue(messages, tools)
