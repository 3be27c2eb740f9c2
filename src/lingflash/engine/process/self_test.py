"""Shows at start-up that the prefix cache is live: a prompt twice, found again, answered alike.

A cache that is silently inert costs an agent its whole speed, and one that is wrong costs it the
answer, so both are looked for before the first request. A few prompts of three blocks: milliseconds
on a small model, two or three small steps on a large one.
"""

from __future__ import annotations

import logging
import random
import time

from lingflash.core.errors import ModelLoadError, NonFiniteLogitsError
from lingflash.core.types import EngineRequest, SamplingParams, TokenEvent, TokenLogprob
from lingflash.engine.loop import EngineLoop

log = logging.getLogger(__name__)

_NUM_BLOCKS = 2
_NUM_TOKENS = 4
_NUM_TOP = 5
# An expert that gives NaN is not asked for all of so many tokens.
_SINGLE_TOKENS = 8
# In the fast modes the two runs differ in the order of sums, and a prompt of random tokens may
# meet a tie between experts, which moves log probabilities far; not every one of these does.
_PROMPTS = 3
_TOLERANCE = 0.1


def run_self_test(loop: EngineLoop) -> None:
    """Show on an idle engine that its prefix cache is live; one that fails is switched off.

    EngineInfo.prefix_cache says what came of it; nothing of it stays or is counted. It is left out
    where there is no cache or config.cache_self_test is off.

    Raises:
        ModelLoadError: the model gives NaN or infinity for whatever it is asked.
    """
    start = time.perf_counter()
    speculation, loop.speculation = loop.speculation, None  # its times are not to be judged
    _require_numbers(loop)
    outcome = loop.info.prefix_cache
    is_tested = loop.scheduler.cache.keeps_prefixes and loop.config.cache_self_test
    if is_tested:
        outcome = _outcome(loop)
    loop.speculation = speculation
    if not is_tested:
        return loop.start_afresh(outcome)
    seconds = time.perf_counter() - start
    if outcome.startswith("failed"):
        log.error("prefix cache self-test %s. The cache is switched off.", outcome)
    else:
        log.info("prefix cache self-test: %s (%.3f s)", outcome, seconds)
    loop.start_afresh(outcome)


def _require_numbers(loop: EngineLoop) -> None:
    """Ask for the logits of single tokens until one's are numbers.

    Raises:
        ModelLoadError: none's are. Where some are, an expert is broken, and others are served.
    """
    size = loop.info.vocab_size
    if loop.info.max_model_len < 2:
        return
    for number in range(_SINGLE_TOKENS):
        events = _run(loop, f"self-test-token-{number}", [number * size // _SINGLE_TOKENS], 1)
        if all(event.error_code != NonFiniteLogitsError.code for event in events):
            return
    raise ModelLoadError(
        f"The model of {loop.config.model} gives NaN or infinite logits for whatever it is asked: "
        "its weights are damaged, or a number in its config.json is wrong. Compare both with where "
        "they come from."
    )


def _outcome(loop: EngineLoop) -> str:
    """ "live", "untested" where the context is too short, or "failed: " and why."""
    size = loop.info.block_size
    length = _NUM_BLOCKS * size + 1
    if length + _NUM_TOKENS > loop.info.max_model_len:
        return "untested"
    tops = []
    for number in range(_PROMPTS):
        rng = random.Random(number)
        prompt = [rng.randrange(loop.info.vocab_size) for _ in range(length)]
        runs = [_run(loop, f"self-test-{number}-{i}", prompt) for i in range(2)]
        for events in runs:
            error = next((e.error_message for e in events if e.error_code), None)
            if error is not None:
                return f"failed: a test prompt ended with an error: {error}"
        found = runs[1][0].num_cached_tokens
        if found != _NUM_BLOCKS * size:
            report = runs[1][0].cache_report
            why = "" if report is None else f" ({report.result})"
            return f"failed: a repeated prompt of {length} tokens found {found} of them{why}"
        cold, warm = (_logprobs(events) for events in runs)
        if loop.info.batch_invariant:
            if cold != warm:
                return "failed: a repeated prompt was answered with other log probabilities"
            return "live"
        tops.append(_difference(cold[0], warm[0]))
        if tops[-1] <= _TOLERANCE:
            return "live"
    return f"failed: log probabilities of a repeated prompt differ by {min(tops):.2g}"


def _run(
    loop: EngineLoop, request_id: str, prompt: list[int], num_tokens: int = _NUM_TOKENS
) -> list[TokenEvent]:
    sampling = SamplingParams(
        temperature=0.0, max_tokens=num_tokens, ignore_eos=True, logprobs=_NUM_TOP, seed=0
    )
    loop.add(EngineRequest(request_id=request_id, prompt_token_ids=prompt, sampling=sampling))
    events: list[TokenEvent] = []
    while loop.has_work:
        events += loop.step()
    return events


def _logprobs(events: list[TokenEvent]) -> list[TokenLogprob]:
    return [logprob for event in events for logprob in event.logprobs or ()]


def _difference(a: TokenLogprob, b: TokenLogprob) -> float:
    """Largest difference between the log probabilities of tokens that both name."""
    first, second = dict(a.top), dict(b.top)
    shared = first.keys() & second.keys()
    return max((abs(first[token] - second[token]) for token in shared), default=float("inf"))
