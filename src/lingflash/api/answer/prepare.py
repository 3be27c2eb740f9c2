"""From a conversation to a generation that is not started yet."""

from __future__ import annotations

import asyncio

from fastapi import Request

from lingflash.api.answer.conversation import Conversation
from lingflash.api.answer.generation import Generation
from lingflash.api.answer.sampling import build_sampling, check_text_size
from lingflash.api.state import ServerState
from lingflash.core.errors import InvalidRequestError
from lingflash.core.limits import check_countable, check_lengths
from lingflash.core.types import MAX_LOGPROBS, GrammarSpec, SamplingParams
from lingflash.httpd.auth import caller_of
from lingflash.httpd.client_gone import until_client_gone
from lingflash.protocol.chat import ChatOptions
from lingflash.protocol.history_fields import LEFT_TO_MODEL

# Rendering and encoding longer conversations would hold up the other streams.
INLINE_CHARS = 4000


async def prepare_chat(
    state: ServerState, request: Request, options: ChatOptions, conversation: Conversation
) -> Generation:
    """Turn a conversation into a generation that is not started yet.

    Every endpoint that answers conversations goes through here.

    Raises:
        InvalidRequestError: something in it cannot be served; `param` is in chat's terms.
    """
    max_tokens = _max_tokens(options)
    salt = cache_salt(caller_of(request), options.cache_salt)
    grammar = await checked_grammar(
        state, request, conversation.grammar, conversation.grammar_param, salt
    )
    for path in grammar.dropped if grammar is not None else ():
        conversation.dropped.add(path, LEFT_TO_MODEL)
    token_ids = await encode_conversation(state, request, conversation, salt)
    max_model_len = state.engine.info.max_model_len
    check_lengths(len(token_ids), None, max_model_len, param="messages")
    if max_tokens is not None:
        max_tokens = min(max_tokens, max_model_len - len(token_ids))
    sampling = _sampling(state, options, max_tokens)
    request_id = request.state.request_id
    return Generation(state, request_id, options, [token_ids], sampling, grammar, salt)


def cache_salt(caller: str, wanted: str | None) -> str:
    """Salt of a request's place in the prefix cache: its API key's own, and what the client adds.

    Two keys never share computed prefixes, so that neither times nor counts tell what another sent.
    """
    return f"{caller}:{wanted or ''}"


async def checked_grammar(
    state: ServerState,
    request: Request,
    grammar: GrammarSpec | None,
    param: str | None,
    owner: str,
) -> GrammarSpec | None:
    """A grammar that is known to compile; its `dropped` names what is left to the model.

    Args:
        param: the request field that it came in, for messages.
        owner: whose it is, a cache_salt.

    Raises:
        InvalidRequestError: it cannot be enforced.
        ClientGone: the client left meanwhile; the work has ended.
    """
    if grammar is None:
        return None
    known = state.grammars.known(grammar, owner, param)
    if known is not None:
        return known
    checking = state.grammars.check(grammar, param, owner=owner)
    return await until_client_gone(checking, request.receive)


async def encode_conversation(
    state: ServerState,
    request: Request,
    conversation: Conversation,
    salt: str,
    *,
    only_counts: bool = False,
) -> list[int]:
    """The prompt of a conversation.

    Args:
        salt: whose it is; see cache_salt.
        only_counts: it may be of any length, and nothing need be left to answer.

    Raises:
        InvalidRequestError: the template refuses it, or it is much too long.
    """
    text = state.text
    if text is None:
        raise InvalidRequestError(
            "This model has no tokenizer, so it takes token ids only; use /v1/completions.",
            param="messages",
        )
    messages = conversation.messages
    history = state.calls.history(caller_of(request))

    def work() -> list[int]:
        pieces = text.render(
            messages,
            # With tool_choice none the tools stay in the prompt, so that its prefix stays the same.
            tools=conversation.tools.definitions,
            add_generation_prompt=not (only_counts and conversation.is_answered),
            template_kwargs=conversation.thinking.variables,
            history=history,
        )
        return text.encode_pieces(
            pieces, lambda run: state.runs.encode(salt, run, text.tokenizer.encode_run)
        )

    size = sum(len(message["content"]) for message in messages)
    if only_counts:
        check_countable(size, state.engine.info.max_model_len, param="messages")
    else:
        longest = text.tokenizer.longest_token_bytes
        for message in messages:
            # Not of assistant messages, whose reasoning a template may drop.
            if message["role"] != "assistant":
                check_text_size(
                    len(message["content"]), longest, state.engine.info, param="messages"
                )
    try:
        if size > INLINE_CHARS or len(messages) > 32 or len(conversation.tools):
            return await asyncio.to_thread(work)
        return work()
    except RecursionError:
        raise InvalidRequestError(
            "messages holds something that is nested too deeply.", param="messages"
        ) from None


def _max_tokens(options: ChatOptions) -> int | None:
    old, new = options.max_tokens, options.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequestError(
            f"max_tokens is {old} but max_completion_tokens is {new}; give one of them.",
            param="max_completion_tokens",
        )
    name, value = ("max_tokens", old) if new is None else ("max_completion_tokens", new)
    if value is not None and value < 1:
        raise InvalidRequestError(f"{name} is {value}; allowed: 1 or more.", param=name)
    return value


def _sampling(state: ServerState, options: ChatOptions, max_tokens: int | None) -> SamplingParams:
    top = options.top_logprobs
    if top is not None and not options.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise InvalidRequestError(
            f"top_logprobs is {top}; allowed: 0 to {MAX_LOGPROBS}.", param="top_logprobs"
        )
    return build_sampling(
        options,
        state.sampling_defaults,
        state.engine.info,
        max_tokens=max_tokens,
        logprobs=(top or 0) if options.logprobs else None,
        prompt_logprobs=None,
        has_text=True,
    )
