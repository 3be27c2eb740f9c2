"""Exact-answer rates by teacher forcing: every token is the argmax, as in greedy decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lingflash.train.data.answers import REFUSAL
from lingflash.train.data.heldout import Case
from lingflash.train.data.render import assistant_text, render_segments
from lingflash.train.model import CHUNK, TrainModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def expected_text(case: Case) -> str:
    """Return the answer the model has to give, end token included."""
    expected = case["expected"]
    if "calls" in expected:
        calls = [{"type": "function", "function": c} for c in expected["calls"]]
        return (
            assistant_text({"role": "assistant", "content": "", "tool_calls": calls})
            + "<|role_end|>"
        )
    return str(expected.get("text", REFUSAL)) + "<|role_end|>"


def prompt_text(case: Case) -> str:
    """Return the rendered prompt with the generation prompt."""
    text = "".join(t for t, _ in render_segments(case["messages"], case["tools"]))
    return text + "<role>ASSISTANT</role>"


@torch.no_grad()
def exact(
    model: TrainModel,
    tokenizer: Tokenizer,
    cases: list[Case],
    device: torch.device,
    autocast: bool,
    batch_tokens: int = 32_768,
    details: list[dict[str, Any]] | None = None,
) -> dict[str, tuple[int, int]]:
    """Count cases answered exactly.

    Args:
        model: in evaluation mode afterwards as before.
        cases: with messages, tools, expected and category.
        batch_tokens: padded tokens computed at once.
        details: if given, one entry per case is appended: right or not, and the argmax text.

    Returns:
        Category, and "all", to (right, total).
    """
    was_training = model.training
    model.eval()
    encoded = []
    for case in cases:
        prompt = tokenizer.encode(prompt_text(case), add_special_tokens=False).ids
        answer = tokenizer.encode(expected_text(case), add_special_tokens=False).ids
        encoded.append((prompt, answer))
    order = sorted(range(len(cases)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
    right = [False] * len(cases)
    guesses: list[str] = [""] * len(cases)
    at = 0
    while at < len(order):
        width, group = 0, []
        for i in order[at:]:
            length = len(encoded[i][0]) + len(encoded[i][1])
            padded = max(width, -(-length // CHUNK) * CHUNK)
            if group and padded * (len(group) + 1) > batch_tokens:
                break
            width = padded
            group.append(i)
        at += len(group)
        tokens = torch.ones(len(group), width + 2, dtype=torch.long)
        document = torch.full((len(group), width), -1, dtype=torch.int32)
        positions = []
        for row, i in enumerate(group):
            prompt, answer = encoded[i]
            ids = [*prompt, *answer]
            tokens[row, : len(ids)] = torch.tensor(ids)
            document[row, : len(ids)] = 0
            positions += [row * width + len(prompt) - 1 + k for k in range(len(answer))]
        document = document.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            logits, _ = model(
                tokens.to(device),
                model.context(document),
                torch.tensor(positions, device=device),
                False,
            )
        chosen = logits.argmax(-1).tolist()
        start = 0
        for i in group:
            answer = encoded[i][1]
            guess = chosen[start : start + len(answer)]
            start += len(answer)
            right[i] = guess == answer
            if details is not None:
                guesses[i] = tokenizer.decode(guess, skip_special_tokens=False)
    if details is not None:
        details += [
            {"right": right[i], "guess": guesses[i], "expected": expected_text(cases[i])}
            for i in range(len(cases))
        ]
    scores: dict[str, tuple[int, int]] = {}
    for case, good in zip(cases, right, strict=True):
        for key in ("all", case["category"]):
            hits, total = scores.get(key, (0, 0))
            scores[key] = (hits + good, total + 1)
    if was_training:
        model.train()
    return scores


def score_line(scores: dict[str, tuple[int, int]]) -> str:
    """Format scores on one line."""
    return ", ".join(f"{k} {h}/{n} {h / n:.3f}" for k, (h, n) in sorted(scores.items()))
