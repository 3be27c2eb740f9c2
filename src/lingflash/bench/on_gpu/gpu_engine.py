"""The engine around the GPU's graphs: what a step costs with scheduler, sampling and events."""

from __future__ import annotations

import time

import torch

from lingflash.bench.in_engine.in_process import ask, make_request
from lingflash.core.anchors import ANCHOR
from lingflash.core.config import EngineConfig
from lingflash.core.errors import EngineError
from lingflash.engine.loop import EngineLoop
from lingflash.engine.memory.plan import MemoryPlan, SequenceBytes
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.records.record import Record

# Counted steps, steps before them, and tokens of an answer: the first sequence is still at work
# when the last, whose prompt was computed some steps later, has been counted.
_STEPS, _WARMUPS = 8 * ANCHOR, ANCHOR
_ANSWER = 16 * ANCHOR
_BLOCK = 64
_CHECKPOINTS = 16
# Sequences that decode while a prompt is read.
_STREAMS = 32


def _new_loop(
    model: BailingHybrid, num_seqs: int, length: int, *, block_size: int, caches: bool = False
) -> EngineLoop:
    """An engine for so many sequences of at most `length` tokens; graphs are captured.

    Args:
        caches: keep prefixes, with room for a few checkpoints.
    """
    blocks = -(-length // block_size)
    if caches:
        each = SequenceBytes.of(model.config, model.num_latent_layers, model.dtype)
        blocks += _CHECKPOINTS * each.kept_blocks(block_size)[0]
    plan = MemoryPlan.for_sizes(
        model,
        num_blocks=num_seqs * blocks,
        block_size=block_size,
        num_seqs=num_seqs,
        max_model_len=length,
        prefix_caching=caches,
    )
    config = EngineConfig(
        model="dummy", max_num_seqs=num_seqs, block_size=block_size, prefix_caching=caches, seed=0
    )
    runner = ModelRunner(model, plan, batch_invariant=False, stop_token_ids=[])
    return EngineLoop(config, runner)


def time_engine(
    record: Record, model: BailingHybrid, num_seqs: int, context: int, repeats: int
) -> None:
    """Add the time of a decode step of the whole engine, with and without overlapping.

    Args:
        record: gets "engine bN cM overlapped" and "... plain".
        num_seqs: sequences that decode together, at temperature 1.
        context: random tokens that each starts with.
        repeats: rounds of each, alternating.
    """
    loop = _new_loop(model, num_seqs, context + _ANSWER, block_size=_BLOCK)
    samples: dict[str, list[float]] = {"overlapped": [], "plain": []}
    generator = torch.Generator().manual_seed(context)
    for _ in range(repeats):
        for name, times in samples.items():
            loop.overlaps = name == "overlapped"
            for i in range(num_seqs):
                tokens = torch.randint(loop.info.vocab_size, (context,), generator=generator)
                loop.add(make_request(f"r{i}", tokens.tolist(), _ANSWER, temperature=1.0, seed=i))
            begun: set[str] = set()
            while len(begun) < num_seqs:
                begun |= {event.request_id for event in loop.step() if event.token_ids}
            for _ in range(_WARMUPS):
                loop.step()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(_STEPS):
                loop.step()
            times.append((time.perf_counter() - start) / _STEPS * 1e3)
            while loop.has_work:
                loop.step()
    for name, times in samples.items():
        case = f"engine b{num_seqs} c{context} {name}"
        ms = record.add(case, "ms", times).median
        record.derived[case] = {"tokens_per_s": round(num_seqs / ms * 1e3, 1)}
        print(case, f"{ms:.3f} ms", record.derived[case], flush=True)


def time_turns(
    record: Record, model: BailingHybrid, context: int, num_new: int, repeats: int
) -> None:
    """Add the time to the first token of a turn in a conversation that the prefix cache holds.

    Args:
        record: gets "turn of N after C", and "engine prompt C" of reading what was said before.
        context: random tokens that were said before, at least.
        num_new: random tokens of a turn.
        repeats: turns that count; one before them does not.
    """
    turns = repeats + 1
    length = context + turns * (num_new + ANCHOR) + ANCHOR
    answer: list[int] = []
    config = EngineConfig(model="dummy")
    loop = _new_loop(model, 4, length, block_size=config.block_size, caches=True)
    generator = torch.Generator().manual_seed(context)

    def draw(count: int) -> list[int]:
        return torch.randint(loop.info.vocab_size, (count,), generator=generator).tolist()

    def say(name: str) -> tuple[float, int, list[int]]:
        torch.cuda.synchronize()
        return ask(loop, make_request(name, said, ANCHOR, temperature=1.0))

    said, rates, samples = [], list[float](), list[float]()
    for prompt in range(2):  # the first only to have been read once
        said = draw(context)
        seconds, _, answer = say(f"context {prompt}")
        rates.append(context / seconds)
    said += answer
    case = f"engine prompt {context}"
    rate = record.add(case, "tokens/s", rates[1:]).median
    record.derived[case] = {"tokens_of_a_step": config.max_num_batched_tokens}
    print(case, f"{rate:.0f} tokens/s", flush=True)
    for turn in range(turns):
        said += draw(num_new)
        seconds, found, answer = say(f"turn {turn}")
        if len(said) - found > num_new + 1:
            raise EngineError(f"only {found} of {len(said)} tokens were found")
        said += answer
        if turn:
            samples.append(seconds * 1e3)
    case = f"turn of {num_new} after {context}"
    print(case, f"{record.add(case, 'ms', samples).median:.1f} ms", flush=True)


def time_pauses(record: Record, model: BailingHybrid, num_tokens: int, repeats: int) -> None:
    """Add the longest time between two tokens of sequences that decode while a prompt is read.

    Args:
        record: gets "pause beside a prompt of N" in ms, and "prompt of N beside 32" in tokens/s.
        num_tokens: random tokens of the prompt.
        repeats: prompts that count; one before them does not.
    """
    config = EngineConfig(model="dummy")
    loop = _new_loop(model, _STREAMS + 1, num_tokens + ANCHOR, block_size=config.block_size)
    generator = torch.Generator().manual_seed(num_tokens)

    def begin(name: str, length: int, answer: int) -> None:
        tokens = torch.randint(loop.info.vocab_size, (length,), generator=generator).tolist()
        loop.add(make_request(name, tokens, answer, temperature=1.0, seed=1))

    for i in range(_STREAMS):
        begin(f"stream {i}", _BLOCK, num_tokens - _BLOCK)
    begun: set[str] = set()
    while len(begun) < _STREAMS:
        begun |= {event.request_id for event in loop.step() if event.token_ids}
    pauses, rates = list[float](), list[float]()
    for prompt in range(repeats + 1):
        for _ in range(_WARMUPS):
            loop.step()
        begin("prompt", num_tokens, 1)
        start = last = time.perf_counter()
        longest, is_read = 0.0, False
        while not is_read:
            is_read = any(event.request_id == "prompt" for event in loop.step())
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        if prompt:
            pauses.append(longest * 1e3)
            rates.append(num_tokens / (last - start))
    ms = record.add(f"pause beside a prompt of {num_tokens}", "ms", pauses).median
    rate = record.add(f"prompt of {num_tokens} beside {_STREAMS}", "tokens/s", rates).median
    print(f"prompt of {num_tokens}: {ms:.1f} ms, {rate:.0f} tokens/s", flush=True)
