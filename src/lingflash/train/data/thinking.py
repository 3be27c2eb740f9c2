"""Dialogues whose system message asks for thinking: a short plan stands before each answer."""

from __future__ import annotations

import json
import re
from typing import Any

from lingflash.train.data import answers, chinese
from lingflash.train.data.render import Dialogue, Message

_EN = {
    "call": "This needs {n}", "with": " with {a}", "calls": "This needs {c} calls: {n}",
    "next": "Next is {n}", "answer": "The result answers this.", "failed": "That failed.",
    "refusal": "None of the tools does that.", "missing": "Something that is needed is missing.",
    "talk": "No tool is needed.", "end": ".", "glue": ", ",
}  # fmt: skip
_ZH = {
    "call": "需要调用{n}", "with": "，{a}", "calls": "需要{c}次调用：{n}", "next": "接下来调用{n}",
    "answer": "结果已经回答了问题。", "failed": "操作失败了。", "refusal": "没有合适的工具。",
    "missing": "缺少需要的信息。", "talk": "不需要工具。", "end": "。", "glue": "，",
}  # fmt: skip


def _arguments(arguments: dict[str, Any], glue: str) -> str:
    """Name those that are short."""
    parts = []
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) <= 40 and "\n" not in text and len(parts) < 4:
            parts.append(f"{key} {text}")
    return glue.join(parts)


def plan(message: Message, before: Message, is_chinese: bool) -> str:
    """Word the plan for an assistant message.

    Args:
        before: the message it follows.
    """
    texts = _ZH if is_chinese else _EN
    calls = [c["function"] for c in message.get("tool_calls") or ()]
    if len(calls) > 1:
        names = texts["glue"].join(c["name"] for c in calls)
        return texts["calls"].format(c=len(calls), n=names) + texts["end"]
    if calls:
        text = texts["next" if before["role"] == "tool" else "call"].format(n=calls[0]["name"])
        told = _arguments(calls[0]["arguments"], texts["glue"])
        return text + (texts["with"].format(a=told) if told else "") + texts["end"]
    said = message["content"]
    if before["role"] == "tool":
        is_failed = said.startswith((answers.FAILED, chinese.TEXTS["failed"][:4]))
        return texts["failed" if is_failed else "answer"]
    if said in (answers.REFUSAL, chinese.TEXTS["refusal"]):
        return texts["refusal"]
    is_question = said.startswith(("Please tell me", chinese.TEXTS["missing"][:3]))
    return texts["missing" if is_question else "talk"]


def with_thinking(dialogue: Dialogue) -> Dialogue:
    """Return the dialogue with plans after its last user message that has an answer."""
    messages = [dict(m) for m in dialogue.messages]
    while messages and messages[-1]["role"] == "user":
        messages.pop()
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    is_chinese = bool(re.search(r"[\u4e00-\u9fff]{2}", messages[last]["content"]))
    for i in range(last + 1, len(messages)):
        if messages[i]["role"] == "assistant":
            messages[i]["reasoning_content"] = plan(messages[i], messages[i - 1], is_chinese)
    return Dialogue(messages, dialogue.tools, thinking=True)
