"""From logits to the next token of each sequence, by its own sampling parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import fields
from operator import attrgetter

import torch
from torch import Tensor

from lingflash.core.errors import NonFiniteLogitsError
from lingflash.core.types import SamplingParams, TokenLogprob
from lingflash.engine.schedule.sequence import DraftedSequence, Sequence
from lingflash.engine.schedule.step import StepResult
from lingflash.kernels.sampling import noise_key, sample_tokens, truncate_logits

Sampled = Sequence | DraftedSequence

# Fields of SamplingParams that a token drawn on the device heeds, and those that are heeded before
# or after the draw. Any other, a new one too, leaves the choice to the host when it is set.
DRAWN_FIELDS = frozenset(
    {
        "temperature", "seed", "n", "max_tokens", "min_tokens", "stop", "stop_token_ids",
        "ignore_eos", "prompt_logprobs",
    }
)  # fmt: skip
# Means nothing where the likeliest token is taken.
TRUNCATION_FIELDS = frozenset({"top_p", "top_k", "min_p"})
# Rows of prompt logits that exist at once.
PROMPT_LOGPROB_ROWS = 128


def sample(
    logits: Tensor,
    sequences: Seq[Sampled],
    forbidden: Mapping[int, Tensor] | None = None,
) -> list[StepResult]:
    """Choose one token per row.

    A row with NaN or infinite logits gives an error for its sequence alone.

    Args:
        logits: float32 [R, V].
        sequences: whose rows they are.
        forbidden: bool [V] for some rows, True where a grammar allows no token.
    """
    finite = torch.isfinite(logits.sum(-1)).tolist()
    chosen = choose_tokens(logits, sequences, forbidden)
    results = [StepResult(token_id=token) for token in chosen]
    wanting = [i for i, s in enumerate(sequences) if s.sampling.logprobs is not None and finite[i]]
    if wanting:
        rows = logits if len(wanting) == len(chosen) else logits[wanting]
        most = max(sequences[i].sampling.logprobs or 0 for i in wanting)
        found = token_logprobs(rows, [chosen[i] for i in wanting], most)
        for i, logprob in zip(wanting, found, strict=True):
            results[i] = StepResult(
                token_id=chosen[i], logprob=_shorten(logprob, sequences[i].sampling.logprobs or 0)
            )
    for i, good in enumerate(finite):
        if not good:
            results[i] = not_finite()
    return results


def not_finite() -> StepResult:
    """The result of a row with NaN or infinite logits."""
    return StepResult(
        error=NonFiniteLogitsError(
            "The model gave NaN or infinite logits for this request; it was ended, others are not "
            "affected."
        )
    )


def _has_defaults(names: frozenset[str]) -> Callable[[SamplingParams], bool]:
    read = attrgetter(*names)
    defaults = read(SamplingParams())
    return lambda params: read(params) == defaults


_HOST_FIELDS = frozenset(f.name for f in fields(SamplingParams)) - DRAWN_FIELDS
_draws = _has_defaults(_HOST_FIELDS)
_draws_greedily = _has_defaults(_HOST_FIELDS - TRUNCATION_FIELDS)


def is_plain(sequence: Sequence) -> bool:
    """Whether temperature and seed alone decide its next token, and the token is all it wants.

    Then so it is of every later one: min_tokens only ever ends.
    """
    p = sequence.sampling
    return (
        (_draws_greedily(p) if p.temperature == 0.0 else _draws(p))
        and sequence.matcher is None
        and len(sequence.output_token_ids) >= p.min_tokens
    )


def choose_tokens(
    logits: Tensor, sequences: Seq[Sampled], forbidden: Mapping[int, Tensor] | None = None
) -> list[int]:
    """The token of each row by its sequence's rules and noise; see sample()."""
    changes = any(_changes_logits(s) for s in sequences)
    if not changes and not forbidden and all(s.sampling.temperature == 0.0 for s in sequences):
        return logits.argmax(-1).tolist()
    return _sample_mixed(logits, sequences, forbidden or {}).tolist()


def _changes_logits(sequence: Sampled) -> bool:
    """Whether penalties, biases or a minimum length alter the raw logits."""
    p = sequence.sampling
    return bool(
        p.presence_penalty
        or p.frequency_penalty
        or p.repetition_penalty != 1.0
        or p.logit_bias
        or len(sequence.output_token_ids) < p.min_tokens
    )


def _sample_mixed(
    logits: Tensor, sequences: Seq[Sampled], forbidden: Mapping[int, Tensor]
) -> Tensor:
    """Rows with different rules: change what each asks for, truncate, draw."""
    vocab_size, device = logits.shape[-1], logits.device
    params = [s.sampling for s in sequences]
    if forbidden or any(_changes_logits(s) for s in sequences):
        logits = logits.clone()
        for row, sequence in enumerate(sequences):
            if _changes_logits(sequence):
                _change_logits(logits[row], sequence)
        for row, mask in forbidden.items():
            logits[row].masked_fill_(mask, float("-inf"))
    temperature = torch.tensor([p.temperature for p in params], device=device)
    scaled = logits / torch.where(temperature == 0, 1.0, temperature)[:, None]
    if any(_truncates(p) for p in params):
        top_k = [p.top_k or vocab_size for p in params]
        scaled = truncate_logits(
            scaled,
            torch.tensor(top_k, device=device),
            torch.tensor([p.top_p for p in params], device=device),
            torch.tensor([p.min_p for p in params], device=device),
        )
    keys = [
        noise_key(s.sampling.seed or 0, s.choice, s.num_tokens) if s.sampling.temperature else 0
        for s in sequences
    ]
    return sample_tokens(scaled, temperature, keys)


def _truncates(p: SamplingParams) -> bool:
    return p.temperature > 0 and (p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0)


def _change_logits(row: Tensor, sequence: Sampled) -> None:
    """Apply penalties, biases and min_tokens to one row, in place."""
    p = sequence.sampling
    if p.repetition_penalty != 1.0:
        seen = torch.tensor(
            sorted({*sequence.prompt_token_ids, *sequence.output_token_ids}), device=row.device
        )
        values = row[seen]
        row[seen] = torch.where(
            values > 0, values / p.repetition_penalty, values * p.repetition_penalty
        )
    if (p.presence_penalty or p.frequency_penalty) and sequence.output_token_ids:
        generated = torch.tensor(sequence.output_token_ids, device=row.device)
        counts = torch.bincount(generated, minlength=row.shape[0]).to(row.dtype)
        row -= p.frequency_penalty * counts + p.presence_penalty * (counts > 0)
    if p.logit_bias:
        row[torch.tensor(list(p.logit_bias), device=row.device)] += torch.tensor(
            list(p.logit_bias.values()), device=row.device, dtype=row.dtype
        )
    if len(sequence.output_token_ids) < p.min_tokens and sequence.stop_token_ids:
        row[torch.tensor(sorted(sequence.stop_token_ids), device=row.device)] = float("-inf")


def token_logprobs(logits: Tensor, token_ids: Seq[int], num_top: int) -> list[TokenLogprob]:
    """Log probability, rank and the most likely alternatives of one token per row.

    Args:
        logits: float32 [R, V], raw.
    """
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
    ranks = ((logprobs > chosen).sum(-1) + 1).tolist()
    if num_top:
        top = logprobs.topk(num_top, -1)
        values, indices = top.values.tolist(), top.indices.tolist()
    else:
        values = indices = [[] for _ in token_ids]
    return [
        TokenLogprob(token, logprob, rank, list(zip(ids, vals, strict=True)))
        for token, logprob, rank, ids, vals in zip(
            token_ids, chosen[:, 0].tolist(), ranks, indices, values, strict=True
        )
    ]


def _shorten(logprob: TokenLogprob, num_top: int) -> TokenLogprob:
    if len(logprob.top) == num_top:
        return logprob
    return TokenLogprob(logprob.token_id, logprob.logprob, logprob.rank, logprob.top[:num_top])
