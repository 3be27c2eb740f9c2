"""From a request's fields and the checkpoint's defaults to SamplingParams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lingflash.core.errors import ContextLengthError, InvalidRequestError
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
        fields: the request.
        defaults: generation_config.json's sampling entries.
        info: bounds token ids.
        max_tokens: most tokens to generate.
        logprobs: likeliest tokens to report at each generated position.
        prompt_logprobs: the same for the prompt.
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


def check_token_ids(token_ids: tuple[int, ...] | list[int], vocab_size: int, param: str) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        InvalidRequestError: one is.
    """
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        bad = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise InvalidRequestError(
            f"{param} holds {bad}; allowed: token ids from 0 to {vocab_size - 1}.", param=param
        )


def check_lengths(
    num_prompt_tokens: int,
    max_tokens: int | None,
    info: EngineInfo,
    *,
    param: str,
    max_tokens_param: str = "max_tokens",
) -> None:
    """Refuse what the context cannot hold.

    Args:
        num_prompt_tokens: of one prompt.
        max_tokens: asked for; None takes what is left.
        info: has the limit.
        param: the field that holds the prompt.
        max_tokens_param: the field that max_tokens came from.

    Raises:
        ContextLengthError: the prompt, or prompt and answer, are too long.
        InvalidRequestError: the prompt is empty.
    """
    limit = info.max_model_len
    if num_prompt_tokens == 0:
        raise InvalidRequestError(f"{param} has no tokens; at least one is needed.", param=param)
    room = limit - num_prompt_tokens
    if room < (0 if max_tokens == 0 else 1):
        raise ContextLengthError(
            f"The prompt has {num_prompt_tokens} tokens and the context is {limit}; shorten it.",
            param=param,
        )
    if max_tokens is not None and max_tokens > room:
        raise ContextLengthError(
            f"The prompt has {num_prompt_tokens} tokens and {max_tokens_param} is {max_tokens}, "
            f"together over the context of {limit}; it can be at most {room}.",
            param=max_tokens_param,
        )


def check_text_size(num_chars: int, longest_token: int, info: EngineInfo, *, param: str) -> None:
    """Refuse a text that must be too long, before time is spent on encoding it.

    Args:
        num_chars: of the text.
        longest_token: bytes of the tokenizer's longest token.
        info: has the limit.
        param: the field that holds the text.

    Raises:
        ContextLengthError: it cannot fit.
    """
    at_least = num_chars // longest_token
    if at_least > info.max_model_len:
        raise ContextLengthError(
            f"The prompt has over {at_least} tokens and the context is {info.max_model_len}; "
            "shorten it.",
            param=param,
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
