"""From a request's fields and the checkpoint's defaults to SamplingParams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lingflash.core.errors import ContextLengthError, InvalidRequestError
from lingflash.core.limits import check_token_ids
from lingflash.core.types import EngineInfo, SamplingParams
from lingflash.protocol.chat import SamplingFields

T = TypeVar("T")


def build_sampling(
    fields: SamplingFields,
    defaults: Mapping[str, Any],
    info: EngineInfo,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    has_text: bool,
) -> SamplingParams:
    """Merge what was asked for with the defaults.

    Args:
        defaults: generation_config.json's sampling entries.
        has_text: False in token-id mode, where stop strings cannot be found.

    Raises:
        InvalidRequestError: a value is out of range; `param` names it.
    """
    stop = fields.stop
    if stop and not has_text:
        raise InvalidRequestError(
            "stop needs text, but this model has no tokenizer; use stop_token_ids.", param="stop"
        )

    def pick(name: str, otherwise: T) -> T:
        value = getattr(fields, name)
        if value is None:
            value = defaults.get(name)
        return otherwise if value is None else value

    stop_token_ids = tuple(fields.stop_token_ids or ())
    check_token_ids(stop_token_ids, info.vocab_size, "stop_token_ids")
    top_k = pick("top_k", 0)
    return SamplingParams(
        temperature=float(pick("temperature", 1.0)),
        top_p=float(pick("top_p", 1.0)),
        top_k=0 if top_k == -1 else top_k,
        min_p=float(pick("min_p", 0.0)),
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        repetition_penalty=float(pick("repetition_penalty", 1.0)),
        logit_bias=_logit_bias(fields.logit_bias, info.vocab_size),
        seed=fields.seed,
        n=1 if fields.n is None else fields.n,
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens or 0,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        stop_token_ids=stop_token_ids,
        ignore_eos=bool(fields.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def check_text_size(num_chars: int, longest_token: int, info: EngineInfo, *, param: str) -> None:
    """Refuse a text that must be too long, before time is spent on encoding it.

    Args:
        longest_token: bytes of the tokenizer's longest token.

    Raises:
        ContextLengthError: it cannot fit.
    """
    at_least = num_chars // longest_token
    if at_least > info.max_model_len:
        raise ContextLengthError(
            f"This model's maximum context length is {info.max_model_len} tokens, but the prompt "
            f"has over {at_least}; shorten it.",
            param=param,
            num_tokens=at_least,
            limit=info.max_model_len,
        )


def _logit_bias(bias: Mapping[str, float] | None, vocab_size: int) -> dict[int, float] | None:
    if not bias:
        return None
    result: dict[int, float] = {}
    for key, value in bias.items():
        is_id = len(key) < 10 and key.isascii() and key.isdigit()
        if not (is_id and int(key) < vocab_size):
            raise InvalidRequestError(
                f"logit_bias has the key {key!r}; allowed: token ids from 0 to {vocab_size - 1}.",
                param="logit_bias",
            )
        result[int(key)] = value
    return result
