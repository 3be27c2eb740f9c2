"""Speculative decoding: how many drafts of the MTP layer are accepted, and what that is worth.

Conversations are answered greedily: without speculation, with 1 to 4 drafts always, and as the
engine serves them, deciding for itself. Only steps in which all sequences decode are timed, so that
prompts do not dilute what is compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lingflash.bench.in_engine.ceilings import sample_ceilings, use_threads
from lingflash.bench.in_engine.in_process import step
from lingflash.core.config import MAX_SPECULATIVE_TOKENS, Device, EngineConfig
from lingflash.core.errors import ConfigError
from lingflash.core.hub import resolve_model
from lingflash.core.types import EngineRequest, SamplingParams, TokenEvent
from lingflash.engine.loop import EngineLoop
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.records.record import Record, model_label, require
from lingflash.text.chat_prompt import ModelText
from lingflash.train.data.heldout import heldout_cases

# Speculation that has turned itself off may cost this much of the tokens per second.
_LEAST_WHEN_OFF = 0.98


@dataclass(slots=True)
class Outcome:
    """What one run of all conversations gave.

    Args:
        seconds: of the steps in which all sequences decoded.
        tokens: that they gave.
        reached: times that a first, second, ... draft was verified with all before it accepted.
        accepted: times that it was accepted then.
        answers: token ids, to compare.
    """

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    reached: list[int] = field(default_factory=lambda: [0] * MAX_SPECULATIVE_TOKENS)
    accepted: list[int] = field(default_factory=lambda: [0] * MAX_SPECULATIVE_TOKENS)
    answers: dict[str, list[int]] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Of decoding."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def tokens_per_step(self) -> float:
        """Of one sequence."""
        verified = self.reached[0]
        return 1.0 + sum(self.accepted) / verified if verified else 1.0

    def count(self, event: TokenEvent) -> None:
        """Take in one event."""
        accepted, rejected = event.drafts or (0, 0)
        for i in range(min(accepted + 1, accepted + rejected)):
            self.reached[i] += 1
            self.accepted[i] += i < accepted
        self.answers.setdefault(event.request_id, []).extend(event.token_ids)


def make_loop(
    model: str, device: Device, num_drafts: int, num_seqs: int, *, is_adaptive: bool
) -> EngineLoop:
    """An engine that always speculates, never (0 drafts), or as it decides."""
    config = EngineConfig(
        model=model,
        device=device,
        max_num_seqs=num_seqs,
        num_speculative_tokens=num_drafts,
        prefix_caching=False,  # every run computes the same
        seed=0,
    )
    loop = EngineLoop(config, ModelRunner.from_config(config))
    if loop.speculation is not None:
        loop.speculation.is_adaptive = is_adaptive
    return loop


def play(loop: EngineLoop, prompts: Sequence[list[int]], num_seqs: int, max_tokens: int) -> Outcome:
    """Answer all prompts, num_seqs at a time.

    Raises:
        EngineError: a step failed.
    """
    outcome = Outcome()
    for first in range(0, len(prompts), num_seqs):
        for i, prompt in enumerate(prompts[first : first + num_seqs], first):
            sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=0)
            loop.add(EngineRequest(request_id=f"s{i}", prompt_token_ids=prompt, sampling=sampling))
        while loop.has_work:
            computed = loop.stats().prompt_tokens
            start = time.perf_counter()
            events = step(loop)
            seconds = time.perf_counter() - start
            decoded = loop.stats().prompt_tokens == computed
            for event in events:
                outcome.count(event)
                if decoded:
                    outcome.tokens += len(event.token_ids) + (event.stop_token_id is not None)
            if decoded:
                outcome.seconds += seconds
                outcome.steps += 1
    return outcome


def run_speculation(*, cases: int, seed: int, **options: Any) -> Record:
    """Measure with the held-out conversations that call tools.

    Raises:
        ConfigError: an option is out of range.
    """
    drawn = [case for case in heldout_cases(cases, seed) if "calls" in case["expected"]]
    return measure(cases=drawn, **options)


def measure(
    *,
    cases: Sequence[Mapping[str, Any]],
    model: str,
    device: str,
    num_seqs: int,
    max_tokens: int,
    repeats: int,
    threads: int | None,
    out: Path | None,
    allow_dirty: bool,
) -> Record:
    """Measure acceptance and tokens per second for 0 to 4 drafts.

    Raises:
        ConfigError: an option is out of range.
    """
    require(bool(cases), "--cases", len(cases), "1 or more")
    require(1 <= num_seqs <= 64, "--num-seqs", num_seqs, "1 to 64")
    require(max_tokens >= 2, "--max-tokens", max_tokens, "2 or more")
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    use_threads(threads)
    text = ModelText.from_folder(resolve_model(model))
    if text is None:
        raise ConfigError(f"{model} has no tokenizer.", param="model")
    prompts = [text.encode_chat(case["messages"], tools=case["tools"]) for case in cases]
    record = Record("speculation", out, allow_dirty)
    kinds = {"off": (0, False)}
    kinds |= {_drafts(n): (n, False) for n in range(1, MAX_SPECULATIVE_TOKENS + 1)}
    kinds["adaptive, 2 drafts at most"] = (2, True)
    loops = {
        name: make_loop(model, cast(Device, device), n, num_seqs, is_adaptive=is_adaptive)
        for name, (n, is_adaptive) in kinds.items()
    }
    record.settings = {
        "model": model_label(model),
        "device": loops["off"].info.device,
        "dtype": loops["off"].info.dtype,
        "conversations": len(prompts),
        "num_seqs": num_seqs,
        "max_tokens": max_tokens,
        "temperature": 0.0,
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in loops}
    for name, loop in loops.items():  # not counted: first calls, and the adaptive one decides
        play(loop, prompts[: max(len(prompts) // 4, 4 * num_seqs)], num_seqs, max_tokens)
        for _ in range(2 * name.startswith("adaptive")):
            play(loop, prompts, num_seqs, max_tokens)
    for _ in range(repeats):
        sample_ceilings(record)
        for name, loop in loops.items():
            outcomes[name].append(play(loop, prompts, num_seqs, max_tokens))
    _fill(record, outcomes)
    record.finish()
    return record


def _drafts(count: int) -> str:
    return f"{count} draft{'s' * (count > 1)}"


def _fill(record: Record, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    off = outcomes["off"]
    for name, runs in outcomes.items():
        record.add(f"decode, {name}", "tokens/s", [run.tokens_per_s for run in runs])
        if name == "off":
            continue
        # Side by side in each round, so that a busy machine slows both.
        ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(runs, off, strict=True)]
        ratio = record.add(f"{name} over off", "x", ratios)
        last = runs[-1]
        same = sum(last.answers[key] == tokens for key, tokens in off[-1].answers.items())
        record.derived[f"{name}: answers equal to off"] = f"{same} of {len(off[-1].answers)}"
        if name.startswith("adaptive"):
            target = f"{name}, over off"
            record.promise(target, ratio.median, _LEAST_WHEN_OFF, "at least")
            continue
        rates = [
            round(accepted / reached, 4)
            for accepted, reached in zip(last.accepted, last.reached, strict=True)
            if reached
        ]
        record.derived[f"{name}: accepted, by place"] = rates
        record.derived[f"{name}: tokens per step"] = round(last.tokens_per_step, 4)
    record.notes.append(
        "acceptance by place: of the drafts at this place whose predecessors were all accepted"
    )
