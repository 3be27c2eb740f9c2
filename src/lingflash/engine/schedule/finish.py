"""What a step's result makes of a sequence: its new tokens, and whether and why it ends.

finish reason
stop             here: a stop token was drawn, or the grammar allows nothing more
length           here: max_tokens or the context is reached; scheduler: no token was wanted at all
error            scheduler: the model gave no number, the step failed or the deadline passed
aborted          scheduler.abort: the client went away, or the text has met a stop string
"""

from __future__ import annotations

from lingflash.core.errors import LingflashError
from lingflash.core.types import FinishReason, TokenEvent, TokenLogprob
from lingflash.engine.schedule.sequence import Sequence
from lingflash.engine.schedule.step import StepResult


def last_event(
    sequence: Sequence, reason: FinishReason, error: LingflashError | None = None
) -> TokenEvent:
    """The event that ends a sequence without a token."""
    event = _new_event(sequence)
    _end(event, reason, error)
    if error is None:
        event.prompt_logprobs = _first_prompt_logprobs(sequence)
    return event


def progress_event(sequence: Sequence, end: int) -> TokenEvent | None:
    """What tells that the prompt is computed up to `end`, if that is asked for and is news.

    What was preempted while it answered is computed again, and that is no news.
    """
    if not sequence.wants_progress or sequence.output_token_ids:
        return None
    return TokenEvent(
        request_id=sequence.request_id,
        num_cached_tokens=sequence.num_cached_tokens,
        num_prompt_done=end,
    )


def take_result(sequence: Sequence, result: StepResult) -> TokenEvent:
    """Append the sampled tokens up to the one that ends the sequence, if one does.

    An accepted draft counts as computed, too.
    """
    event = _new_event(sequence)
    if result.logprob is not None:
        event.logprobs = []
    _take_token(sequence, result, event)
    for following in result.following:
        if event.finish_reason is not None:
            break
        sequence.num_computed += 1
        _take_token(sequence, following, event)
    if not event.logprobs:
        event.logprobs = None
    if event.error_code is None:
        event.prompt_logprobs = _first_prompt_logprobs(sequence)
    return event


def _take_token(sequence: Sequence, result: StepResult, event: TokenEvent) -> None:
    token = result.token_id
    if result.error is not None:  # after an accepted draft
        return _end(event, "error", result.error)
    if token is None:
        assert result.is_complete
        return _end(event, "stop")
    sequence.output_token_ids.append(token)
    if token in sequence.stop_token_ids:
        event.stop_token_id = token
        return _end(event, "stop")
    event.token_ids.append(token)
    if event.logprobs is not None and result.logprob is not None:
        event.logprobs.append(result.logprob)
    if result.is_complete:
        _end(event, "stop")
    elif sequence.num_tokens >= sequence.max_total_tokens:
        _end(event, "length")


def _new_event(sequence: Sequence) -> TokenEvent:
    return TokenEvent(
        request_id=sequence.request_id,
        choice=sequence.choice,
        num_cached_tokens=sequence.num_cached_tokens,
        cache_report=sequence.take_cache_report(),
    )


def _end(event: TokenEvent, reason: FinishReason, error: LingflashError | None = None) -> None:
    event.finish_reason = reason
    if error is not None:
        event.error_code, event.error_message = error.code, error.message


def _first_prompt_logprobs(sequence: Sequence) -> list[TokenLogprob | None] | None:
    wanted = sequence.sampling.prompt_logprobs is not None and sequence.choice == 0
    if not wanted or len(sequence.output_token_ids) > 1:
        return None
    return [None, *sequence.prompt_logprobs]
