"""An agent's day: conversations that grow turn by turn, with the prefix cache on, off and starved.

Each turn sends the whole conversation so far plus something new, a user's words or a tool's result,
and waits for the answer. What matters is the time to the first token at turn 30, and that only new
tokens are computed. Turns of different conversations alternate, so that the cache must hold all of
them.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lingflash.bench.in_engine.ceilings import sample_ceilings, use_threads
from lingflash.bench.in_engine.in_process import ask, make_request
from lingflash.core.anchors import ANCHOR
from lingflash.core.config import EngineConfig
from lingflash.core.errors import ConfigError
from lingflash.core.processor import CpuClass, processor
from lingflash.engine.loop import EngineLoop
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.records.record import Record, require

# Tokens of what is new in a turn, and of the answer: (smallest, largest), drawn uniformly.
_SYSTEM = (300, 700)
_USER = (20, 120)
_TOOL_RESULT = (60, 300)
_ANSWER = (20, 80)
_TOOL_SHARE = 0.6
# What a late turn may cost over its new tokens alone, by the processor's class.
_OVER_ALONE: dict[CpuClass, float] = {"amx": 1.5, "avx512": 1.8, "avx2": 2.2}


@dataclass(slots=True)
class Turn:
    """One request of a conversation: what it adds, and how long the answer is."""

    new_tokens: list[int]
    answer_len: int


@dataclass(slots=True)
class Outcome:
    """What one run of all conversations took.

    Args:
        ttft_s: per turn number, one value per conversation that has this turn.
        prefilled: prompt tokens computed.
        new: prompt tokens beyond what this conversation had processed before.
        results: turns by why no more of their prompt was found.
        cache_bytes: what it served at the end, by use.
    """

    ttft_s: dict[int, list[float]] = field(default_factory=dict)
    prefilled: int = 0
    new: int = 0
    prompted: int = 0
    turns: int = 0
    results: Counter[str] = field(default_factory=Counter)
    num_blocks: int = 0
    cache_bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def make_conversations(
    count: int, max_turns: int, max_model_len: int, vocab_size: int, seed: int
) -> list[list[Turn]]:
    """Draw conversations that end after max_turns or where the context is full."""
    rng = random.Random(seed)
    conversations = []
    for _ in range(count):
        turns: list[Turn] = []
        length = 0
        for number in range(max_turns):
            span = _TOOL_RESULT if number and rng.random() < _TOOL_SHARE else _USER
            size = rng.randint(*span) + (rng.randint(*_SYSTEM) if number == 0 else 0)
            answer = rng.randint(*_ANSWER)
            if length + size + answer > max_model_len:
                break
            turns.append(Turn([rng.randrange(vocab_size) for _ in range(size)], answer))
            length += size + answer
        conversations.append(turns)
    return conversations


def read_trace(path: Path, vocab_size: int, seed: int) -> list[list[Turn]]:
    """Read conversations from a file; their words are drawn, only the sizes are the file's.

    Args:
        path: one JSON object a line, in the order in which they were sent: "conversation" (any
            name), "new_tokens" and "answer_tokens".

    Raises:
        ConfigError: the file cannot be read; the message names the line.
    """
    rng = random.Random(seed)
    conversations: dict[str, list[Turn]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--trace {path} cannot be read: {error}.", param="trace") from None
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            name = str(entry["conversation"])
            size, answer = entry["new_tokens"], entry["answer_tokens"]
            if type(size) is not int or type(answer) is not int or size < 1 or answer < 1:
                raise ValueError("sizes are whole numbers from 1")
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"--trace {path}, line {number}: {error!r}; a line is an object with conversation, "
                "new_tokens and answer_tokens.",
                param="trace",
            ) from None
        tokens = [rng.randrange(vocab_size) for _ in range(size)]
        conversations.setdefault(name, []).append(Turn(tokens, answer))
    if not conversations:
        raise ConfigError(f"--trace {path} has no lines.", param="trace")
    return list(conversations.values())


class _Engine:
    """The engine with a cache of a given size, one request at a time."""

    def __init__(
        self,
        config: EngineConfig,
        loaded: ModelRunner,
        *,
        caching: bool = True,
        num_blocks: int | None = None,
    ) -> None:
        plan = loaded.plan
        changes = {"checkpoint_blocks": plan.checkpoint_blocks if caching else 0}
        if num_blocks is not None:
            # No less than one conversation takes, or it could not run at all.
            least = -(-plan.max_model_len // plan.block_size)
            changes["num_blocks"] = max(num_blocks, least)
        runner = ModelRunner(
            loaded.model,
            replace(plan, **changes),
            batch_invariant=False,
            stop_token_ids=loaded.stop_token_ids,
            folder=loaded.folder,
        )
        self.loop = EngineLoop(config, runner)
        self._count = 0

    def ask(self, prompt: list[int], max_tokens: int, salt: str = "") -> tuple[float, list[int]]:
        """Seconds to the first token, and the answer; prompts of another salt are not known."""
        self._count += 1
        request = make_request(f"agent-{self._count}", prompt, max_tokens)
        seconds, _, answer = ask(self.loop, replace(request, cache_salt=salt))
        return seconds, answer


def play(engine: _Engine, conversations: Sequence[Sequence[Turn]]) -> Outcome:
    """Run all conversations, turn by turn in rotation."""
    outcome = Outcome()
    said: list[list[int]] = [[] for _ in conversations]
    before = engine.loop.stats()
    start = time.perf_counter()
    for number in range(max(map(len, conversations))):
        for i, turns in enumerate(conversations):
            if number >= len(turns):
                continue
            turn = turns[number]
            prompt = said[i] + turn.new_tokens
            ttft_s, answer = engine.ask(prompt, turn.answer_len)
            outcome.ttft_s.setdefault(number + 1, []).append(ttft_s)
            # The last token of an answer was sampled but never computed, so it is new too.
            outcome.new += len(turn.new_tokens) + (number > 0)
            outcome.prompted += len(prompt)
            outcome.turns += 1
            said[i] = prompt + answer
    outcome.seconds = time.perf_counter() - start
    after = engine.loop.stats()
    outcome.prefilled = after.prompt_tokens - before.prompt_tokens
    outcome.results = Counter(after.prefix_results)
    outcome.results.subtract(before.prefix_results)
    outcome.num_blocks, outcome.cache_bytes = after.num_blocks, after.cache_bytes
    return outcome


def fresh_ttfts_s(
    engine: _Engine, conversations: Sequence[Sequence[Turn]], number: int
) -> list[float]:
    """Time to the first token of a prompt of just a turn's new tokens, for each that has this turn.

    Asked three times, for the median, of the engine that had the turns, and answered at the same
    length: like them it comes after an answer, and goes into the cache.
    """
    asked = [turns[number - 1] for turns in conversations if len(turns) >= number]
    return [
        statistics.median(
            engine.ask(turn.new_tokens, turn.answer_len, f"fresh-{i}")[0] for i in range(3)
        )
        for turn in asked
    ]


def run_agent(
    *,
    model: str,
    num_conversations: int,
    max_turns: int,
    max_model_len: int,
    repeats: int,
    seed: int,
    trace: Path | None = None,
    threads: int | None,
    out: Path | None,
    allow_dirty: bool,
) -> None:
    """Measure conversations with the cache on, off and a tenth of what they need.

    Raises:
        ConfigError: an option is out of range.
    """
    require(num_conversations >= 1, "--conversations", num_conversations, "1 or more")
    require(max_turns >= 2, "--turns", max_turns, "2 or more")
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    use_threads(threads)
    record = Record("agent", out, allow_dirty)
    record.settings = {
        "model": model,
        "conversations": num_conversations,
        "max_turns": max_turns,
        "max_model_len": max_model_len,
        "seed": seed,
        "trace": None if trace is None else trace.name,
    }
    config = EngineConfig(
        model=model, device="cpu", dtype="float32", max_model_len=max_model_len, max_num_seqs=8
    )
    loaded = ModelRunner.from_config(config)
    vocab_size = loaded.model.config.vocab_size
    if trace is None:
        conversations = make_conversations(
            num_conversations, max_turns, max_model_len, vocab_size, seed
        )
    else:
        conversations = read_trace(trace, vocab_size, seed)
        longest = max(sum(len(t.new_tokens) + t.answer_len for t in c) for c in conversations)
        if longest > max_model_len:
            raise ConfigError(
                f"--trace {trace} has a conversation of {longest} tokens; --max-model-len is "
                f"{max_model_len}.",
                param="trace",
            )
    # Latents of everything that is said, and a checkpoint at the last prompt and answer of each.
    size = loaded.plan.block_size
    said = sum(sum(len(t.new_tokens) + t.answer_len for t in c) for c in conversations)
    working_set = -(-said // size) + 2 * len(conversations) * loaded.plan.checkpoint_blocks
    outcomes: dict[str, list[Outcome]] = {"on": [], "off": [], "starved": []}
    late = min(20, max(len(c) for c in conversations))
    fresh: list[list[float]] = []
    # On, the cache has room for all and the fresh prompts.
    budgets = {
        "on": max(loaded.plan.num_blocks, working_set * 5 // 4),
        "off": None,
        "starved": working_set // 10,
    }
    for _ in range(repeats):  # the three take turns, so that a noisy minute hits all of them
        sample_ceilings(record)
        for name, num_blocks in budgets.items():
            engine = _Engine(config, loaded, caching=name != "off", num_blocks=num_blocks)
            engine.ask([1] * 64, 4)
            outcomes[name].append(play(engine, conversations))
            if name == "on":
                fresh.append(fresh_ttfts_s(engine, conversations, late))
    _fill(record, outcomes, fresh, late, working_set)
    record.finish()


def _fill(
    record: Record,
    outcomes: dict[str, list[Outcome]],
    fresh: list[list[float]],
    late: int,
    working_set: int,
) -> None:
    on, off = outcomes["on"], outcomes["off"]
    for name in ("on", "off"):
        for number in sorted(on[0].ttft_s):
            samples = [t * 1e3 for outcome in outcomes[name] for t in outcome.ttft_s[number]]
            if number in (1, 2, 5, 10, 15, 20, 25, 30, 35, 40):
                record.add(f"cache {name}: TTFT of turn {number}", "ms", samples)
    for name, runs in outcomes.items():
        record.add(f"cache {name}: all turns", "s", [outcome.seconds for outcome in runs])
    alone_s = [t for one in fresh for t in one]
    record.add(
        f"TTFT of a fresh prompt, new tokens of turn {late}", "ms", [t * 1e3 for t in alone_s]
    )
    late_s = [t for outcome in on for t in outcome.ttft_s[late]]
    ratios = [turn / alone for turn, alone in zip(late_s, alone_s, strict=True)]
    over_alone = f"TTFT of turn {late} over that of its new tokens alone"
    ratio = record.add(over_alone, "x", ratios).median
    first, starved = on[0], outcomes["starved"][0]
    record.derived = {
        "turns": first.turns,
        "prompt tokens sent": first.prompted,
        "prompt tokens new": first.new,
        "prompt tokens computed, cache on": first.prefilled,
        "prompt tokens computed, starved": starved.prefilled,
        "prompt tokens computed, cache off": off[0].prefilled,
        "hit rate": 1 - first.prefilled / first.prompted,
        "hit rate, starved": 1 - starved.prefilled / starved.prompted,
        "turns by what was found, cache on": _counts(first.results),
        "turns by what was found, starved": _counts(starved.results),
        "memory MiB, cache on": _mebibytes(first),
        "memory MiB, starved": _mebibytes(starved),
        "blocks, starved, of the working set": f"{starved.num_blocks} of {working_set}",
        "ttft_ms_by_turn_on": _medians(on),
        "ttft_ms_by_turn_off": _medians(off),
    }
    allowed = 1.15 * first.new + ANCHOR * first.turns
    record.promise(
        "prompt tokens computed over 1.15 x new + 16 a turn",
        first.prefilled / allowed,
        1.0,
        "at most",
    )
    promised = _OVER_ALONE.get(processor().used)
    if promised is not None:
        record.promise(over_alone, ratio, promised, "at most")
    cost = statistics.median(
        a.seconds / b.seconds for a, b in zip(outcomes["starved"], off, strict=True)
    )
    # A tenth of few conversations holds not even one of them; the budget is then what one needs.
    part = round(100 * starved.num_blocks / working_set)
    record.promise(f"time with {part} % of the working set over cache off", cost, 1.05, "at most")
    record.notes.append(
        "new: beyond the longest prefix that this conversation has processed; an answer's last "
        "token counts, since it was sampled but not computed"
    )


def _counts(results: Counter[str]) -> str:
    return ", ".join(f"{result} {count}" for result, count in results.most_common() if count)


def _mebibytes(outcome: Outcome) -> str:
    parts = {use: size / 2**20 for use, size in outcome.cache_bytes.items() if use != "free"}
    return ", ".join(f"{use} {size:.1f}" for use, size in parts.items() if size)


def _medians(runs: Sequence[Outcome]) -> list[float]:
    return [
        round(statistics.median(t * 1e3 for run in runs for t in run.ttft_s[number]), 3)
        for number in sorted(runs[0].ttft_s)
    ]
