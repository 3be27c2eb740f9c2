"""A sequence in the engine: what it has, how far it is computed, and what it asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from lingflash.cache.lease import Lease
from lingflash.cache.prefix_tree import block_keys, root_key
from lingflash.core.errors import InvalidRequestError
from lingflash.core.limits import check_lengths, check_token_ids
from lingflash.core.types import CacheReport, EngineRequest, SamplingParams, TokenLogprob
from lingflash.structured.masks import TokenMatcher


@dataclass(slots=True, eq=False)
class Sequence:
    """One sampled continuation of a request.

    Args:
        choice: its index among the request's n.
        prompt_token_ids: shared by the choices; not changed.
        stop_token_ids: tokens that end it, the model's own included unless they are ignored.
        max_total_tokens: prompt and answer together end here.
        deadline_s: clock time at which it ends with an error, or None.
        num_computed: tokens whose keys, values and states are in the cache.
        num_in_flight: tokens in steps that were scheduled and are not committed.
        has_ended: its last event was made.
        ended_soundly: that was no error, which would put in doubt what it computed.
        lease: its memory while it runs, and after its end while a step that uses it is under way.
        prompt_logprobs: collected while the prompt is computed, if asked for.
        num_preemptions: how often its memory was taken away.
        root: key that its chain of block keys starts from.
        keys: of its first full blocks, as far as they were needed.
        num_cached_tokens: prompt tokens that were found computed when it was first admitted.
        cache_report: why no more than that, until an event has told of it.
        last_checkpoint: position of its newest state checkpoint, 0 if there is none.
        owner: whose share of the engine it uses.
        matcher: what its output must follow; it has taken all output tokens.
        anchor: position that its state is folded to; drafts are never folded.
        draft_tokens: guesses at the next tokens, for the next step.
        may_draft: False once a step with drafts gave logits that were not finite.
        mtp_first, mtp_end: positions of the MTP layer's rows that its blocks hold; mtp_end is -1
            from admission until the first step that speculates.
        wants_progress: chunks of its prompt are told of.
    """

    request_id: str
    choice: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    stop_token_ids: frozenset[int]
    max_total_tokens: int
    deadline_s: float | None
    output_token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_in_flight: int = 0
    has_ended: bool = False
    ended_soundly: bool = False
    lease: Lease | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    num_preemptions: int = 0
    root: bytes = b""
    keys: list[bytes] = field(default_factory=list)
    num_cached_tokens: int = 0
    cache_report: CacheReport | None = None
    last_checkpoint: int = 0
    owner: str = ""
    matcher: TokenMatcher | None = None
    anchor: int = 0
    draft_tokens: list[int] = field(default_factory=list)
    may_draft: bool = True
    mtp_first: int = 0
    mtp_end: int = -1
    wants_progress: bool = False

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def is_decoding(self) -> bool:
        """Whether all but its last token are computed."""
        return self.lease is not None and self.num_tokens - self.num_computed == 1

    @property
    def waits_for_mask(self) -> bool:
        """Whether the mask of its next token is being made, outside of steps."""
        return self.matcher is not None and self.matcher.is_busy

    def take_cache_report(self) -> CacheReport | None:
        """The report for the next event; once."""
        report, self.cache_report = self.cache_report, None
        return report

    def keys_to(self, num_tokens: int, block_size: int) -> list[bytes]:
        """Keys of the full blocks of the first `num_tokens` tokens."""
        have, wanted = len(self.keys), num_tokens // block_size
        if wanted > have:
            parent = self.keys[-1] if have else self.root
            tokens = self.tokens(have * block_size, (wanted - have) * block_size)
            self.keys += block_keys(parent, tokens, block_size)
        return self.keys if wanted == len(self.keys) else self.keys[:wanted]

    def tokens(self, start: int, count: int) -> list[int]:
        """Token ids at positions start .. start + count - 1."""
        prompt_len = len(self.prompt_token_ids)
        if start >= prompt_len:
            return self.output_token_ids[start - prompt_len : start - prompt_len + count]
        head = self.prompt_token_ids[start : start + count]
        return head + self.output_token_ids[: max(start + count - prompt_len, 0)]


class DraftedSequence:
    """A sequence as it will be if its first drafts are accepted: what choosing a token reads.

    Args:
        more: tokens that follow what it has.
    """

    __slots__ = (
        "choice",
        "num_tokens",
        "output_token_ids",
        "prompt_token_ids",
        "request_id",
        "sampling",
        "stop_token_ids",
    )

    def __init__(self, sequence: Sequence, more: list[int]) -> None:
        self.request_id, self.choice = sequence.request_id, sequence.choice
        self.prompt_token_ids = sequence.prompt_token_ids
        self.sampling, self.stop_token_ids = sequence.sampling, sequence.stop_token_ids
        self.output_token_ids = sequence.output_token_ids + more
        self.num_tokens = sequence.num_tokens + len(more)


def check_limits(request: EngineRequest, vocab_size: int, max_model_len: int) -> None:
    """Refuse what no engine of these sizes can ever serve.

    Raises:
        InvalidRequestError: with the field at fault.
    """
    ids, sampling = request.prompt_token_ids, request.sampling
    check_lengths(len(ids), sampling.max_tokens, max_model_len, param="prompt")
    check_token_ids(ids, vocab_size, "prompt")
    check_token_ids(sampling.stop_token_ids, vocab_size, "stop_token_ids")
    check_token_ids(sampling.logit_bias or (), vocab_size, "logit_bias")
    if request.timeout_s is not None and request.timeout_s <= 0:
        raise InvalidRequestError(
            f"timeout is {request.timeout_s}; it must be above 0 seconds.", param="timeout"
        )


def sequences_of(
    request: EngineRequest,
    model_stop_ids: frozenset[int],
    max_model_len: int,
    now_s: float,
    matcher: TokenMatcher | None = None,
) -> list[Sequence]:
    """Make a request's n sequences; the request is valid, `matcher` is at its start."""
    sampling = request.sampling
    stops = frozenset(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stops |= model_stop_ids
    limit = max_model_len
    if sampling.max_tokens is not None:
        limit = min(limit, len(request.prompt_token_ids) + sampling.max_tokens)
    deadline_s = None if request.timeout_s is None else now_s + request.timeout_s
    root = root_key(request.cache_salt)
    return [
        Sequence(
            request_id=request.request_id,
            choice=choice,
            prompt_token_ids=request.prompt_token_ids,
            sampling=sampling,
            stop_token_ids=stops,
            max_total_tokens=limit,
            deadline_s=deadline_s,
            root=root,
            owner=request.owner,
            matcher=None if matcher is None else matcher.copy(),
            wants_progress=request.wants_progress and choice == 0,
        )
        for choice in range(sampling.n)
    ]
