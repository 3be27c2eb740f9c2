"""A text completion's prompts and sampling."""

from __future__ import annotations

import asyncio

from fastapi import Request

from lingflash.api.answer.conversation import read_form
from lingflash.api.answer.generation import Generation
from lingflash.api.answer.prepare import INLINE_CHARS, cache_salt, checked_grammar
from lingflash.api.answer.sampling import build_sampling, check_text_size
from lingflash.api.state import ServerState
from lingflash.core.errors import ContextLengthError, InvalidRequestError
from lingflash.core.limits import check_lengths, check_token_ids
from lingflash.core.types import EngineInfo, SamplingParams
from lingflash.httpd.auth import caller_of
from lingflash.protocol.completions import CompletionRequest

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 1024


async def prepare_completion(
    state: ServerState, request: Request, body: CompletionRequest, given: list[str | list[int]]
) -> Generation:
    """Turn a checked body into a generation that is not started yet.

    Raises:
        InvalidRequestError: something in it cannot be served; `param` names the field.
    """
    if len(given) > MAX_PROMPTS:
        raise InvalidRequestError(
            f"prompt holds {len(given)} prompts; at most {MAX_PROMPTS} are allowed.", param="prompt"
        )
    prompts = await _encode(state, body, given)
    sampling = _sampling(state, body, prompts)
    salt = cache_salt(caller_of(request), body.cache_salt)
    grammar = await checked_grammar(state, request, *read_form(body), salt)
    request_id = request.state.request_id
    return Generation(state, request_id, body, prompts, sampling, grammar, salt)


async def _encode(
    state: ServerState, body: CompletionRequest, given: list[str | list[int]]
) -> list[list[int]]:
    tokenizer = state.text.tokenizer if state.text is not None else None
    info = state.engine.info
    add_special_tokens = body.add_special_tokens is not False

    def work() -> list[list[int]]:
        result = []
        for prompt in given:
            if isinstance(prompt, list):
                if len(prompt) <= info.max_model_len:  # else refused for its length below
                    check_token_ids(prompt, info.vocab_size, "prompt")
                result.append(prompt)
            elif tokenizer is None:
                raise InvalidRequestError(
                    "This model has no tokenizer; give the prompt as token ids.", param="prompt"
                )
            else:
                longest = tokenizer.longest_token_bytes
                check_text_size(len(prompt), longest, info, param="prompt")
                result.append(tokenizer.encode(prompt, add_special_tokens=add_special_tokens))
        return result

    if sum(map(len, given)) > INLINE_CHARS:
        return await asyncio.to_thread(work)
    return work()


def _sampling(
    state: ServerState, body: CompletionRequest, prompts: list[list[int]]
) -> SamplingParams:
    info = state.engine.info
    max_tokens = body.max_tokens
    for prompt in prompts:
        # More than is left is cut down to that for each prompt.
        least = 0 if max_tokens == 0 else None
        check_lengths(len(prompt), least, info.max_model_len, param="prompt")
    if max_tokens == 0 and not body.echo:
        raise InvalidRequestError(
            "max_tokens is 0; allowed: 1 or more, or 0 with echo: true.", param="max_tokens"
        )
    if max_tokens is None:
        max_tokens = _default_max_tokens(body, info, prompts)
    return build_sampling(
        body,
        state.sampling_defaults,
        info,
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        # Asked for with max_tokens 0 too, so that the engine has something to answer.
        prompt_logprobs=(body.logprobs or 0) if body.echo and _scores(body, max_tokens) else None,
        has_text=state.text is not None,
    )


def _scores(body: CompletionRequest, max_tokens: int) -> bool:
    return body.logprobs is not None or max_tokens == 0


def _default_max_tokens(body: CompletionRequest, info: EngineInfo, prompts: list[list[int]]) -> int:
    room = info.max_model_len - max(map(len, prompts))
    if (body.min_tokens or 0) > room:
        raise ContextLengthError(
            f"min_tokens is {body.min_tokens}, but the prompt leaves {room} tokens of the context.",
            param="min_tokens",
        )
    return min(room, max(DEFAULT_MAX_TOKENS, body.min_tokens or 0))
