"""One sequence's way from token events to text: detokenizer, stop strings, finish reason.

The server and the offline LLM both read answers through this class, so that they agree to the
character.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lingflash.core.types import FinishReason, SamplingParams, TokenEvent, TokenLogprob
from lingflash.text.detokenizer import Detokenizer
from lingflash.text.stop_strings import StopStringMatcher
from lingflash.text.tokenizer import Tokenizer


@dataclass(slots=True)
class OutputDelta:
    """What one event added to the answer.

    Args:
        text: characters that may be shown now.
        token_ids: tokens that belong to the answer; a stop token does not.
        finish_reason: set once, on the last delta.
        stop_reason: the stop string or the id of the stop token that ended it.
        stopped_by_string: a stop string ended it, so the engine still runs and should be told.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    stopped_by_string: bool = False


class SequenceOutput:
    """Collects one choice of a request.

    Args:
        tokenizer: None in token-id mode: no text, and stop strings cannot be found.
        sampling: `stop` and `min_tokens` count here.
        skip_special_tokens: leave special tokens out of the text, apart from tool and reasoning
            tags.
    """

    __slots__ = (
        "_detokenizer",
        "_may_stop_from",
        "_stops",
        "finish_reason",
        "num_generated_tokens",
    )

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        sampling: SamplingParams,
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._detokenizer: Detokenizer | None = None
        if tokenizer is not None:
            hidden = tokenizer.hidden_ids if skip_special_tokens else frozenset()
            self._detokenizer = Detokenizer(tokenizer, hidden_ids=hidden)
        self._stops = StopStringMatcher(sampling.stop) if sampling.stop else None
        self._may_stop_from = sampling.min_tokens
        self.finish_reason: FinishReason | None = None
        self.num_generated_tokens = 0

    def push(self, event: TokenEvent) -> OutputDelta:
        """Take one event of this choice; return what it adds.

        Events that come after the end (the engine ran on past a stop string) add nothing.
        """
        if self.finish_reason is not None:
            return OutputDelta()
        detokenizer, stops = self._detokenizer, self._stops
        if stops is None:
            self.num_generated_tokens += len(event.token_ids)
            if detokenizer is None:
                text = ""
            elif len(event.token_ids) == 1:
                text = detokenizer.push(event.token_ids[0])
            else:
                text = "".join([detokenizer.push(token_id) for token_id in event.token_ids])
            delta = OutputDelta(text, event.token_ids, event.logprobs)
        else:
            delta = self._push_with_stops(event, stops)
            if delta.stopped_by_string:
                return delta
        if event.finish_reason is not None:
            self._finish(event, delta)
        return delta

    def _push_with_stops(self, event: TokenEvent, stops: StopStringMatcher) -> OutputDelta:
        shown: list[str] = []
        for index, token_id in enumerate(event.token_ids):
            self.num_generated_tokens += 1
            text = self._detokenizer.push(token_id) if self._detokenizer else ""
            may_stop = self.num_generated_tokens >= self._may_stop_from
            text, match = stops.push(text, may_stop=may_stop)
            shown.append(text)
            if match is not None:
                self.finish_reason = "stop"
                return OutputDelta(
                    "".join(shown),
                    event.token_ids[: index + 1],
                    None if event.logprobs is None else event.logprobs[: index + 1],
                    finish_reason="stop",
                    stop_reason=match,
                    stopped_by_string=True,
                )
        return OutputDelta("".join(shown), event.token_ids, event.logprobs)

    def _finish(self, event: TokenEvent, delta: OutputDelta) -> None:
        self.finish_reason = delta.finish_reason = event.finish_reason
        delta.stop_reason = event.stop_token_id
        if event.stop_token_id is not None:
            self.num_generated_tokens += 1
        if self._detokenizer is None:
            return
        tail = self._detokenizer.finish()
        if self._stops is not None:
            # The tail is at most one U+FFFD; a stop string may end with that, but nobody means it.
            tail = self._stops.finish() + tail
        delta.text += tail
