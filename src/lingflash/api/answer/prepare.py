"""From a checked body to a generation that is not started yet."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request

from lingflash.api.answer.accept import check_stream_options
from lingflash.api.answer.generation import Generation, until_client_gone
from lingflash.api.answer.sampling import build_sampling, check_text_size
from lingflash.api.state import ServerState
from lingflash.core.errors import InvalidRequestError
from lingflash.core.limits import check_lengths
from lingflash.core.types import MAX_LOGPROBS, GrammarSpec, SamplingParams
from lingflash.httpd.auth import caller_of
from lingflash.protocol.chat import ChatCompletionRequest, SamplingFields
from lingflash.structured.answer_form import answer_grammar, form_field
from lingflash.text.chat_prompt import History
from lingflash.text.messages import normalize_tools

# Rendering and encoding longer conversations would hold up the other streams.
INLINE_CHARS = 4000


async def prepare_chat(
    state: ServerState,
    request: Request,
    body: ChatCompletionRequest,
    *,
    fit_max_tokens: bool = False,
) -> Generation:
    """Turn a checked conversation into a generation that is not started yet.

    Every endpoint that answers conversations goes through here.

    Args:
        body: the conversation, perhaps translated from another endpoint's form.
        fit_max_tokens: more tokens than the context leaves are cut down to that, not refused.

    Raises:
        InvalidRequestError: something in it cannot be served; `param` is in chat's terms.
    """
    limit_name, max_tokens = _max_tokens(body)
    caller = caller_of(request)
    salt = cache_salt(caller, body.cache_salt)
    try:
        grammar = await _grammar(state, request, body)
        token_ids = await _encode(state, body, state.calls.history(caller), salt)
    except RecursionError:
        raise InvalidRequestError(
            "messages holds something that is nested too deeply.", param="messages"
        ) from None
    max_model_len = state.engine.info.max_model_len
    if fit_max_tokens and max_tokens is not None and max_tokens > max_model_len - len(token_ids):
        max_tokens = None
    check_lengths(
        len(token_ids), max_tokens, max_model_len, param="messages", max_tokens_param=limit_name
    )
    sampling = _sampling(state, body, max_tokens)
    request_id = request.state.request_id
    return Generation(state, request_id, body, [token_ids], sampling, grammar, salt)


def cache_salt(caller: str, wanted: str | None) -> str:
    """Salt of a request's place in the prefix cache: its API key's own, and what the client adds.

    Two keys never share computed prefixes, so that neither times nor counts tell what another sent.
    """
    return f"{caller}:{wanted or ''}"


async def checked_grammar(
    state: ServerState, request: Request, body: SamplingFields, **tools: Any
) -> GrammarSpec | None:
    """What the answer must look like, known to compile; None leaves the model free.

    Its `dropped` names what was asked for and is left to the model.

    Raises:
        InvalidRequestError: it cannot be enforced.
        ClientGone: the client left meanwhile; the work has ended.
    """
    form, outputs = body.response_format, body.structured_outputs
    grammar = answer_grammar(response_format=form, structured_outputs=outputs, **tools)
    if grammar is None:
        return None
    owner = cache_salt(caller_of(request), body.cache_salt)
    known = state.grammars.known(grammar, owner)
    if known is not None:
        return known
    checking = state.grammars.check(grammar, form_field(form, outputs), owner=owner)
    return await until_client_gone(checking, request.receive)


def _max_tokens(body: ChatCompletionRequest) -> tuple[str, int | None]:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequestError(
            f"max_tokens is {old} but max_completion_tokens is {new}; give one of them.",
            param="max_completion_tokens",
        )
    name, value = ("max_tokens", old) if new is None else ("max_completion_tokens", new)
    if value is not None and value < 1:
        raise InvalidRequestError(f"{name} is {value}; allowed: 1 or more.", param=name)
    return name, value


def _sampling(
    state: ServerState, body: ChatCompletionRequest, max_tokens: int | None
) -> SamplingParams:
    top = body.top_logprobs
    if top is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise InvalidRequestError(
            f"top_logprobs is {top}; allowed: 0 to {MAX_LOGPROBS}.", param="top_logprobs"
        )
    check_stream_options(body.stream_options, body.stream)
    return build_sampling(
        body,
        state.sampling_defaults,
        state.engine.info,
        max_tokens=max_tokens,
        logprobs=(top or 0) if body.logprobs else None,
        prompt_logprobs=None,
        has_text=True,
    )


async def _grammar(
    state: ServerState, request: Request, body: ChatCompletionRequest
) -> GrammarSpec | None:
    normalize_tools(body.tools)
    effort = body.reasoning_effort
    kwargs = body.chat_template_kwargs or {}
    thinks = effort != "none" if effort is not None else kwargs.get("thinking_option") == "on"
    return await checked_grammar(
        state,
        request,
        body,
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning=thinks,
    )


async def _encode(
    state: ServerState, body: ChatCompletionRequest, history: History, owner: str
) -> list[int]:
    text = state.text
    if text is None:
        raise InvalidRequestError(
            "This model has no tokenizer, so it takes token ids only; use /v1/completions.",
            param="messages",
        )

    def work() -> list[int]:
        return text.encode_chat(
            body.messages,
            # With tool_choice none the tools stay in the prompt, so that its prefix stays the same.
            tools=body.tools,
            template_kwargs=text.thinking_kwargs(body.reasoning_effort, body.chat_template_kwargs),
            history=history,
            encode_run=lambda run: state.runs.encode(owner, run, text.tokenizer.encode_run),
        )

    size = sum(len(str(message.get("content") or "")) for message in body.messages)
    longest = text.tokenizer.longest_token_bytes
    for message in body.messages:
        content = message.get("content")
        # Not of assistant messages, whose reasoning a template may drop.
        if isinstance(content, str) and message.get("role") != "assistant":
            check_text_size(len(content), longest, state.engine.info, param="messages")
    if size > INLINE_CHARS or len(body.messages) > 32 or body.tools:
        return await asyncio.to_thread(work)
    return work()
