"""Score a checkpoint on the final set, through `ling serve` with the openai client.

python tests/train/program_final.py [MODEL] [--cases N] [--long N] [--only CATEGORY ...] [--show N]

Greedy. A call is right if all calls' names and arguments are; a text if it is exact; code is run
in a process of its own and what it prints compared; a loop if every turn is right, each after the
right ones before it. Prints one line for each category, and the wrong answers asked for.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai

sys.path.insert(0, str(Path(__file__).parents[1]))
import final_set

from api_support import serve_ling_nano

SEED = 1
CODE_TIMEOUT_S = 10


def ask(client: openai.OpenAI, case: final_set.Case, messages: list[Any]) -> Any:
    """One greedy answer's message."""
    extra: dict[str, Any] = {}
    if case.get("thinking"):
        extra["reasoning_effort"] = "low"
    answer = client.chat.completions.create(
        model="ling-nano",
        messages=messages,
        tools=case["tools"],
        temperature=0,
        max_tokens=512,
        **extra,
    )
    return answer.choices[0].message


def calls_of(message: Any) -> list[dict[str, Any]]:
    """The calls as name and parsed arguments."""
    found = []
    for call in message.tool_calls or ():
        try:
            arguments = json.loads(call.function.arguments)
        except ValueError:
            arguments = call.function.arguments
        found.append({"name": call.function.name, "arguments": arguments})
    return found


def is_same(printed: str, expected: str) -> bool:
    """Equal texts, or numbers that agree to six digits after the point."""
    if printed.strip() == expected.strip():
        return True
    try:
        return math.isclose(float(printed), float(expected), rel_tol=1e-9, abs_tol=1e-6)
    except ValueError:
        return False


def code_is_right(client: openai.OpenAI, case: final_set.Case) -> tuple[bool, Any]:
    """Run the code that comes; the answer after its result has to tell it."""
    message = ask(client, case, case["messages"])
    calls = calls_of(message)
    if len(calls) != 1 or calls[0]["name"] != "python":
        return False, message.content or calls
    code = calls[0]["arguments"].get("code", "")
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=CODE_TIMEOUT_S
    )
    if not is_same(done.stdout, case["expected"]["printed"]):
        return False, (code, done.stdout, done.stderr[-80:])
    result = {
        "role": "tool", "tool_call_id": message.tool_calls[0].id, "content": done.stdout
    }  # fmt: skip
    second = ask(client, case, [*case["messages"], message, result])
    said = second.content or ""
    return done.stdout.strip() in said, (code, said)


def loop_is_right(client: openai.OpenAI, case: final_set.Case) -> tuple[bool, Any]:
    """Ask for every turn of the model's."""
    messages: list[Any] = []
    for turn in case["turns"]:
        if isinstance(turn, str):
            messages.append({"role": "user", "content": turn})
        elif turn[0] == "result":
            content = json.dumps(turn[1], ensure_ascii=False)
            messages.append({"role": "tool", "tool_call_id": "c0", "content": content})
        elif turn[0] == "says":
            said = ask(client, case, messages).content or ""
            if not all(part in said for part in turn[1]):
                return False, (messages[-1], said)
            messages.append({"role": "assistant", "content": said})
        else:
            calls = calls_of(message := ask(client, case, messages))
            if calls != turn:
                return False, (messages[-1], calls or message.content)
            made = [
                {
                    "id": f"c{i}",
                    "type": "function",
                    "function": {"name": c["name"], "arguments": json.dumps(c["arguments"])},
                }
                for i, c in enumerate(turn)
            ]
            messages.append({"role": "assistant", "content": None, "tool_calls": made})
    return True, None


def is_right(client: openai.OpenAI, case: final_set.Case) -> tuple[bool, Any]:
    """Whether the model's answer is the expected one, and what it said."""
    if case["category"] == "loop":
        return loop_is_right(client, case)
    expected = case["expected"]
    if "printed" in expected:
        return code_is_right(client, case)
    message = ask(client, case, case["messages"])
    calls = calls_of(message)
    if case.get("thinking") and not getattr(message, "reasoning_content", None):
        return False, "no thinking"
    if "calls" in expected:
        return calls == expected["calls"], calls or message.content
    return not calls and message.content == expected["text"], calls or message.content


def cases(n: int, long: int) -> list[final_set.Case]:
    """The whole set: n single calls, fewer of the other kinds, `long` of each long kind."""
    docs = sorted(Path(__file__).parents[2].glob("docs/*.md"))
    prose = "\n".join(path.read_text(encoding="utf-8") for path in docs)
    half = n // 2
    return [
        *final_set.calls(n, SEED),
        *final_set.parallel(half, SEED),
        *final_set.refusals(half, SEED),
        *final_set.loops(half, SEED),
        *final_set.questions(half, SEED),
        *final_set.chinese(half, SEED),
        *final_set.thinking(half // 2, SEED),
        *final_set.long_prompts(long, SEED, 18_000, "8K tokens", prose),
        *final_set.long_prompts(long, SEED, 36_000, "16K tokens", prose),
    ]


def main() -> None:
    """Serve, ask, count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="ling-nano")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--long", type=int, default=20)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="the last: the server's"
    )
    given = parser.parse_args()
    flags = ["--served-model-name", "ling-nano", *given.flags]
    if given.model != "ling-nano":
        flags = [given.model, *flags]
    wanted = [
        c for c in cases(given.cases, given.long) if not given.only or c["category"] in given.only
    ]
    with (
        serve_ling_nano(*flags) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda case: is_right(client, case), wanted))
    right, total, shown = Counter[str](), Counter[str](), Counter[str]()
    for case, (good, said) in zip(wanted, answers, strict=True):
        total[case["category"]] += 1
        right[case["category"]] += good
        if not good and shown[case["category"]] < given.show:
            shown[case["category"]] += 1
            asked = case["messages"][-1]["content"] if "messages" in case else case["turns"][0]
            print(f"{case['category']}: {asked}\n  expected {case.get('expected')}\n  said {said}")
    for category in total:
        share = right[category] / total[category]
        print(f"{category}: {right[category]}/{total[category]} {100 * share:.1f} %")


if __name__ == "__main__":
    main()
