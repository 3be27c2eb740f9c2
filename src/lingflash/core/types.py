"""Plain data that crosses rooms and processes: what is asked of the engine and what it answers.

Standard-library dataclasses, so that they load anywhere; `link/ipc.py` encodes them for the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lingflash.core.errors import InvalidRequestError, LingflashError, from_code

FinishReason = Literal["stop", "length", "error", "aborted"]

MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_COUNT = 2**31 - 1
"""Bound of every count in a request: it fits what tensors and wire hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a sequence ends.

    Args:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        min_p: drop tokens below min_p times the largest probability; 0 drops none.
        presence_penalty: subtracted once from the logit of each token already generated.
        frequency_penalty: subtracted per occurrence among the generated tokens.
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt
            or the answer; 1 is off.
        logit_bias: added to the logits, token id to bias.
        seed: noise is keyed by (seed, choice, position); None draws one per request.
        n: number of independent choices.
        max_tokens: most tokens to generate; None is up to the context. 0 generates none (with
            prompt_logprobs).
        min_tokens: no stop token and no stop string ends the sequence before this many tokens.
        stop: strings that end the answer; they are found in the text by the text room, not the
            engine.
        stop_token_ids: tokens that end the answer, besides the model's own.
        ignore_eos: the model's own stop tokens do not end the answer.
        logprobs: None for none, else how many most likely tokens to report beside each sampled one.
        prompt_logprobs: the same for the prompt's tokens.

    Raises:
        InvalidRequestError: a value is out of range; `param` names it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                given = _shortened(getattr(self, name))
                raise InvalidRequestError(f"{name} is {given}; allowed: {allowed}.", param=name)

        def number(name: str, lowest: float, highest: float, allowed: str) -> None:
            check(_is_within(getattr(self, name), lowest, highest), name, allowed)

        def count(name: str, lowest: int, highest: int, allowed: str, *, optional: bool) -> None:
            value = getattr(self, name)
            is_none = optional and value is None
            check(is_none or _is_count(value, lowest, highest), name, allowed)

        number("temperature", 0.0, 100.0, "0 to 100")
        number("top_p", _LEAST, 1.0, "above 0, at most 1")
        number("min_p", 0.0, 1.0, "0 to 1")
        number("presence_penalty", -2.0, 2.0, "-2 to 2")
        number("frequency_penalty", -2.0, 2.0, "-2 to 2")
        number("repetition_penalty", _LEAST, 100.0, "above 0, at most 100")
        count("top_k", 0, MAX_COUNT, f"0 (off) to {MAX_COUNT}", optional=False)
        count("n", 1, MAX_CHOICES, f"1 to {MAX_CHOICES}", optional=False)
        count("max_tokens", 0, MAX_COUNT, f"0 to {MAX_COUNT}", optional=True)
        count("min_tokens", 0, MAX_COUNT, f"0 to {MAX_COUNT}", optional=False)
        check(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            "at most max_tokens",
        )
        count("seed", -(2**63), 2**63 - 1, "a signed 64-bit integer", optional=True)
        count("logprobs", 0, MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}", optional=True)
        count("prompt_logprobs", 0, MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}", optional=True)
        check(
            isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop),
            "stop",
            "non-empty strings",
        )
        check(
            isinstance(self.stop_token_ids, tuple) and all(map(_is_token_id, self.stop_token_ids)),
            "stop_token_ids",
            "token ids",
        )
        check(isinstance(self.ignore_eos, bool), "ignore_eos", "true or false")
        bias = {} if self.logit_bias is None else self.logit_bias
        check(
            isinstance(bias, dict)
            and all(
                _is_token_id(token) and _is_within(value, -100.0, 100.0)
                for token, value in bias.items()
            ),
            "logit_bias",
            "token ids with a bias from -100 to 100",
        )


_LEAST = 1e-38  # the least positive number that is normal in float32


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_within(value: Any, lowest: float, highest: float) -> bool:
    return (isinstance(value, float) or _is_int(value)) and lowest <= value <= highest


def _is_count(value: Any, lowest: int, highest: int) -> bool:
    return _is_int(value) and lowest <= value <= highest


def _is_token_id(value: Any) -> bool:
    return _is_count(value, 0, MAX_COUNT)


def _shortened(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits, which Python does not write
        return "too large a number"
    return text if len(text) <= 200 else text[:200] + "..."


CacheResult = Literal[
    "found",
    "new_tokens",
    "differs",
    "no_prefix",
    "no_checkpoint",
    "checkpoint_evicted",
    "blocks_evicted",
    "too_short",
    "prompt_logprobs",
    "caching_off",
]


@dataclass(frozen=True, slots=True)
class CacheReport:
    """Why the prefix cache did not give more of a prompt than it did.

    Nothing in it depends on what requests of another salt said.

    Args:
        result: "found": all of the prompt's full blocks (its last token is always computed);
            "new_tokens": everything known was found, the rest is new; "differs": what is known goes
            on with another token at `position`; "no_prefix": nothing known begins like this;
            "no_checkpoint", "checkpoint_evicted": the blocks up to `position` are known, but the
            recurrent states there were never kept or are gone; "blocks_evicted": the block at
            `position` was known and is gone; "too_short": no full block before the last token;
            "prompt_logprobs": those need every token computed; "caching_off".
        position: see there, else None.
    """

    result: CacheResult
    position: int | None = None


GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark", "answer"]


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an answer must look like, as plain data; `structured/grammar.py` compiles it.

    Args:
        kind: of the text.
        text: JSON of a schema; nothing for json_object; a regular expression; JSON of a list of
            strings; a Lark grammar; or JSON of a whole answer with tool calls
            (`structured/tool_grammar.py`).
        dropped: paths of keywords that were asked for without being promised and are left to the
            model, such as "tools[0].function.parameters.properties.a.uniqueItems".
    """

    kind: GrammarKind
    text: str = ""
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One request as the engine sees it: tokens in, `sampling.n` sequences of tokens out.

    Args:
        request_id: unique among the requests in flight.
        prompt_token_ids: at least one token.
        sampling: how to choose tokens; where it has no seed, `EngineLoop.add` draws one.
        timeout_s: the request ends with a deadline error this long after it was accepted.
        cache_salt: requests share computed prefixes only with those of the same salt.
        grammar: what each answer must look like.
        wants_progress: events tell how far the prompt is computed, see TokenEvent.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    timeout_s: float | None = None
    cache_salt: str = ""
    grammar: GrammarSpec | None = None
    wants_progress: bool = False

    @property
    def owner(self) -> str:
        """Whose share of the engine it uses, see key_of."""
        return key_of(self.cache_salt)


def key_of(cache_salt: str) -> str:
    """The part of a salt that a client cannot choose: the digest of its key, before the colon."""
    return cache_salt.partition(":")[0]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token under the model's raw distribution, before any sampling rule.

    Args:
        token_id: the token.
        logprob: its natural logarithm of probability.
        rank: 1 for the most likely token of the vocabulary.
        top: the most likely (token_id, logprob), best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


# Not frozen: one is made per sequence and step, and a frozen one takes three times as long.
@dataclass(slots=True, kw_only=True)
class TokenEvent:
    """What one step did to one sequence of a request.

    A sequence's events come in order and end with exactly one that has a finish_reason; a request
    ends when all its choices have. A stop token that ended the sequence is not in `token_ids` but
    counts as generated, and is named in `stop_token_id`.

    Args:
        request_id: whose it is.
        choice: index of the sequence among the request's n.
        token_ids: newly generated tokens, may be empty.
        logprobs: one per token id, if asked for.
        finish_reason: set on the last event of the choice.
        stop_token_id: the token that ended it, if one did.
        error_code: `code` of the error class, with finish_reason "error".
        error_message: its message.
        num_cached_tokens: prompt tokens that were not computed anew; on the first event of a
            choice.
        prompt_logprobs: on the first event of choice 0, if asked for; None for the first token.
        drafts: guesses that this step accepted, and those that were wrong or came after the end;
            None if there were none.
        cache_report: on the first event of a choice that was admitted.
        num_prompt_done: prompt tokens that are computed or were found. Only on events that come
            before the first token of choice 0, if asked for; besides num_cached_tokens they say
            nothing else.
    """

    request_id: str
    choice: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprob | None] | None = None
    drafts: tuple[int, int] | None = None
    cache_report: CacheReport | None = None
    num_prompt_done: int | None = None

    def error(self) -> LingflashError:
        """What the finish_reason "error" stands for."""
        message = self.error_message or "The engine failed while serving this request."
        return from_code(self.error_code, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptProgress:
    """How far the prompts of one call are computed.

    Args:
        total: their tokens.
        cached: those of them that were found computed.
        processed: those that are computed by now, cached ones included.
        time_ms: since the call was accepted.
    """

    total: int
    cached: int
    processed: int
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeUsage:
    """What the code took that a server ran for an answer.

    Args:
        calls: that were run.
        seconds: that it ran, in all calls together.
        output_bytes: of text and images that it gave.
    """

    calls: int
    seconds: float
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one answer; its writer puts them into the words of its dialect.

    Args:
        prompt_tokens: of all prompts.
        cached_tokens: of those, the ones that were not computed anew.
        completion_tokens: generated, in all choices.
        reasoning_tokens: of those, thinking; None where it is not looked for.
        drafts: guesses that were accepted and rejected; None from an engine that makes none.
        cache_reports: per prompt the tokens found in the cache and why not more, if asked for.
        cache_write_tokens: of the prompts', those that a vendor wrote to a cache and bills so.
        code: what was run for it; None where nothing could be.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int | None = None
    drafts: tuple[int, int] | None = None
    cache_reports: tuple[tuple[int, CacheReport], ...] | None = None
    cache_write_tokens: int = 0
    code: CodeUsage | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What a client needs to know of a running engine; constant while it lives.

    Args:
        model: folder the weights came from.
        max_model_len: most tokens of prompt and answer together.
        vocab_size: token ids are below it.
        stop_token_ids: the model's own, from generation_config.json and config.json together.
        max_num_seqs: sequences that run at once.
        max_num_waiting: requests that may wait.
        num_blocks: blocks of the paged cache.
        block_size: tokens in a block.
        device: such as "cpu" or "cuda:0".
        dtype: such as "float32".
        batch_invariant: whether logits are bitwise independent of the company.
        num_speculative_tokens: most drafts of a sequence and step; 0 if it never speculates.
        memory_plan: label to bytes, as printed at start-up.
        prefix_cache: "off"; "live" if the self-test at start-up found a prompt again and got equal
            answers; "untested"; or "failed: " and why, and then it is off.
    """

    model: str
    max_model_len: int
    vocab_size: int
    stop_token_ids: list[int]
    max_num_seqs: int
    max_num_waiting: int
    num_blocks: int
    block_size: int
    device: str
    dtype: str
    batch_invariant: bool = False
    num_speculative_tokens: int = 0
    memory_plan: dict[str, int] = field(default_factory=dict)
    prefix_cache: str = "untested"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Gauges and counters of the engine, sent with its events at most a few times a second.

    prefix_cache_live says what the self-test at start-up found, see EngineInfo.prefix_cache.
    Counters only grow. Gauges: running, waiting, tokens_in_flight (of sequences that run or wait),
    queued_prompt_tokens (those of them that have to be computed or found, as if none were cached),
    free_blocks (what the prefix cache keeps counts as
    free), free_state_slots, cached_blocks, state_checkpoints, cache_bytes (by what they are used
    for; all but "host" add up to the cache's budget).
    """

    num_running: int = 0
    num_waiting: int = 0
    tokens_in_flight: int = 0
    queued_prompt_tokens: int = 0
    free_blocks: int = 0
    num_blocks: int = 0
    free_state_slots: int = 0
    num_state_slots: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_blocks: int = 0
    state_checkpoints: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    prefix_cache_live: bool = False
    prefix_resets: int = 0
    prefix_results: dict[str, int] = field(default_factory=dict)
    cache_bytes: dict[str, int] = field(default_factory=dict)
