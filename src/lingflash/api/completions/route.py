"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from lingflash.api.answer.generation import Deltas, Generation
from lingflash.api.answer.logprobs import CompletionLogprobs
from lingflash.api.answer.sampling import (
    build_sampling,
    check_lengths,
    check_text_size,
    check_token_ids,
)
from lingflash.api.answer.stream import AnswerWriter, send_answer
from lingflash.api.chat.route import INLINE_CHARS, checked_grammar
from lingflash.api.state import ServerState, state_of
from lingflash.core.errors import ContextLengthError, InvalidRequestError
from lingflash.core.types import EngineInfo, SamplingParams, TokenLogprob
from lingflash.httpd.auth import cache_salt
from lingflash.httpd.body import read_request
from lingflash.httpd.openapi import json_body
from lingflash.protocol.completions import CompletionRequest, split_prompts
from lingflash.protocol.sse import DONE, ChunkEncoder
from lingflash.text.output import OutputDelta

router = APIRouter()

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 1024


@router.post("/v1/completions", openapi_extra=json_body(CompletionRequest))
async def create_completion(request: Request) -> Response:
    """Continue one or more prompts, whole or as a stream of chunks."""
    state = state_of(request)
    body = await read_request(request, CompletionRequest, state.config.max_body_bytes)
    model = state.require_model(body.model)
    state.require_ready()
    given = split_prompts(body.prompt)
    if len(given) > MAX_PROMPTS:
        raise InvalidRequestError(
            f"prompt holds {len(given)} prompts; at most {MAX_PROMPTS} are allowed.", param="prompt"
        )
    prompts = await _encode(state, body, given)
    sampling = _sampling(state, body, prompts)
    grammar = await checked_grammar(state, request, body)
    generation = Generation(
        state,
        request.state.request_id,
        prompts,
        sampling,
        cache_salt=cache_salt(request, body.cache_salt),
        return_cache_report=bool(body.return_cache_report),
        timeout_s=body.timeout or state.config.request_timeout_s,
        grammar=grammar,
        skip_special_tokens=body.skip_special_tokens is not False,
    )
    answer = _CompletionAnswer(state, body, model, generation, given)
    await generation.start()
    return await send_answer(generation, answer, request, stream=bool(body.stream))


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
    for prompt in prompts:
        check_lengths(len(prompt), body.max_tokens, info, param="prompt")
    max_tokens = body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise InvalidRequestError(
            "max_tokens is 0; allowed: 1 or more, or 0 with echo: true.", param="max_tokens"
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options needs stream: true.", param="stream_options")
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


class _Choice:
    """One choice's answer so far."""

    def __init__(self, index: int, logprobs: CompletionLogprobs | None) -> None:
        self.index = index
        self.logprobs = logprobs
        self.opened = False
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.scored_ids: list[int] = []
        self.scores: list[TokenLogprob | None] = []
        self.finish_reason: str | None = None


class _CompletionAnswer(AnswerWriter):
    def __init__(
        self,
        state: ServerState,
        body: CompletionRequest,
        model: str,
        generation: Generation,
        given: list[str | list[int]],
    ) -> None:
        options = body.stream_options
        self._include_usage = options is not None and bool(options.include_usage)
        self._tokenizer = state.text.tokenizer if state.text else None
        self._generation = generation
        self._echo = bool(body.echo)
        self._is_stream = bool(body.stream)
        self._given = given
        # Without a tokenizer there is no text, so the ids are the answer.
        self._wants_token_ids = bool(body.return_token_ids) or self._tokenizer is None
        self._wants_logprobs = body.logprobs is not None
        self._head = {
            "id": "cmpl-" + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }
        self._choices = [
            _Choice(i, CompletionLogprobs(self._tokenizer) if self._wants_logprobs else None)
            for i in range(generation.num_choices)
        ]
        self._encoder = ChunkEncoder(
            "text_completion",
            answer_id=self._head["id"],
            created=self._head["created"],
            model=model,
            num_choices=generation.num_choices,
            include_usage=self._include_usage,
        )

    def _prompt_of(self, choice: _Choice) -> int:
        return choice.index * len(self._given) // self._generation.num_choices

    def _echo_text(self, prompt: int) -> str:
        given = self._given[prompt]
        if isinstance(given, str):
            return given
        return "" if self._tokenizer is None else self._tokenizer.decode(given)

    def _take(self, choice: _Choice, delta: OutputDelta) -> str:
        """Note a delta; return the text it adds, with the prompt before the first if echoed."""
        text = delta.text
        choice.token_ids += delta.token_ids
        if not choice.opened:
            choice.opened = True
            if self._echo:
                prompt = self._prompt_of(choice)
                text = self._echo_text(prompt) + text
                if self._is_stream:
                    self._add_prompt_scores(choice)
        if self._wants_logprobs and delta.logprobs:
            choice.scored_ids += delta.token_ids
            choice.scores += delta.logprobs
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
        return text

    def _add_prompt_scores(self, choice: _Choice) -> None:
        prompt = self._prompt_of(choice)
        scores = self._generation.prompt_logprobs[prompt]
        if self._wants_logprobs and scores is not None:
            choice.scored_ids = [*self._generation.prompts[prompt], *choice.scored_ids]
            choice.scores = [*scores, *choice.scores]

    def _take_logprobs(self, choice: _Choice) -> dict[str, Any] | None:
        if choice.logprobs is None:
            return None
        built = choice.logprobs.build(choice.scored_ids, choice.scores)
        choice.scored_ids, choice.scores = [], []
        return built

    def write(self, deltas: Deltas) -> bytes:
        chunks: list[bytes] = []
        for index, delta in deltas:
            choice = self._choices[index]
            is_first = not choice.opened
            text = self._take(choice, delta)
            if (
                delta.finish_reason is None
                and not self._wants_logprobs
                and not self._wants_token_ids
            ):
                if text:
                    chunks.append(self._encoder.text(index, text))
                continue
            fields: dict[str, Any] = {
                "index": index,
                "text": text,
                "logprobs": self._take_logprobs(choice) if choice.scores else None,
                "finish_reason": choice.finish_reason,
            }
            if self._wants_token_ids:
                fields["token_ids"] = delta.token_ids
                if is_first:
                    fields["prompt_token_ids"] = self._generation.prompts[self._prompt_of(choice)]
            chunks.append(self._encoder.choice(fields))
        return b"".join(chunks)

    def end(self) -> bytes:
        if not self._include_usage:
            return DONE
        return self._encoder.usage(self._generation.usage()) + DONE

    async def collect(self) -> None:
        """Read the whole answer."""
        async for deltas in self._generation.deltas():
            for index, delta in deltas:
                choice = self._choices[index]
                choice.texts.append(self._take(choice, delta))

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = []
        for choice in self._choices:
            if self._echo:
                self._add_prompt_scores(choice)
            fields: dict[str, Any] = {
                "index": choice.index,
                "text": "".join(choice.texts),
                "logprobs": self._take_logprobs(choice),
                "finish_reason": choice.finish_reason,
            }
            if self._wants_token_ids:
                fields["token_ids"] = choice.token_ids
                fields["prompt_token_ids"] = self._generation.prompts[self._prompt_of(choice)]
            choices.append(fields)
        return {
            **self._head,
            "object": "text_completion",
            "choices": choices,
            "usage": self._generation.usage(),
        }
