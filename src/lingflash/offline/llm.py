"""A model in this process: prompts in, finished answers out, batched as the server batches them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex, assert_never, cast

from lingflash.core.config import EngineConfig
from lingflash.core.errors import InvalidRequestError
from lingflash.core.hub import resolve_model
from lingflash.core.settings import takes_settings
from lingflash.core.types import (
    EngineInfo,
    EngineRequest,
    FinishReason,
    GrammarSpec,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from lingflash.engine.loop import EngineLoop
from lingflash.engine.process.self_test import run_self_test
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.structured.answer_form import answer_grammar, read_structured_outputs
from lingflash.text.chat_prompt import ModelText
from lingflash.text.output import SequenceOutput

# Sequences that fit the queue at any time; more prompts than this are fed in as others finish.
_MAX_QUEUED = 4096

StructuredOutputs = Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None


@dataclass(slots=True)
class CompletionOutput:
    """One choice of an answer.

    Args:
        index: which of the request's n.
        text: the answer; "" in token-id mode.
        token_ids: its tokens, a final stop token not included.
        finish_reason: "stop", "length" or "error".
        stop_reason: the stop string or stop token that ended it.
        logprobs: one per token, if asked for.
        error: what went wrong, with finish_reason "error".
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
    error: str | None = None


@dataclass(slots=True)
class RequestOutput:
    """The answer to one prompt.

    Args:
        prompt_token_ids: what the model read.
        outputs: n choices.
        prompt_logprobs: one per prompt token, None for the first, if asked for.
    """

    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprob | None] | None = None


class LLM:
    """A model loaded for use from Python.

    >>> llm = LLM()
    >>> llm.chat([{"role": "user", "content": "Hello!"}])[0].outputs[0].text

    Its keywords are the fields of EngineConfig, which are the flags of `ling serve` too: editors
    and `help()` show them, though they are not written here a second time. `max_num_waiting` and
    `max_num_shared_tokens` are missing: prompts wait for their turn in this class, and are of one
    user.

    Raises:
        ConfigError: a keyword is unknown or its value out of range.
        LingflashError: the model cannot be loaded or does not fit.
    """

    @takes_settings(EngineConfig, without=("max_num_waiting", "max_num_shared_tokens"))
    def __init__(self, config: EngineConfig) -> None:
        config = replace(config, max_num_waiting=_MAX_QUEUED)
        self._text = ModelText.from_folder(resolve_model(config.model))
        self._loop = EngineLoop(config, ModelRunner.from_config(config))
        run_self_test(self._loop)
        self._ids = itertools.count()

    @property
    def info(self) -> EngineInfo:
        """Limits and sizes of the loaded model."""
        return self._loop.info

    @property
    def text(self) -> ModelText | None:
        """Tokenizer and chat template; None in token-id mode."""
        return self._text

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        structured_outputs: StructuredOutputs = None,
    ) -> list[RequestOutput]:
        """Complete prompts, given as text or as token ids; all are batched together.

        Args:
            prompts: one text or several.
            sampling_params: for all prompts, or one for each; the defaults if None.
            prompt_token_ids: one prompt of token ids or several, instead of texts.
            structured_outputs: what each answer must look like, {"json": schema}, {"regex": text},
                {"choice": [texts]} or {"grammar": Lark}; one for all or one for each.

        Returns:
            One output per prompt, in their order.

        Raises:
            InvalidRequestError: a prompt or parameter cannot be served; nothing has run then.
        """
        if (prompts is None) == (prompt_token_ids is None):
            raise InvalidRequestError("Give either prompts or prompt_token_ids.", param="prompts")
        if prompts is not None:
            if self._text is None:
                raise InvalidRequestError(
                    "This model has no tokenizer.json; give prompt_token_ids.", param="prompts"
                )
            texts = [prompts] if isinstance(prompts, str) else _as_list("prompts", prompts)
            if not all(isinstance(text, str) for text in texts):
                raise _wrong("prompts", prompts)
            encoded = [self._text.tokenizer.encode(text) for text in texts]
        else:
            encoded = _as_prompts(prompt_token_ids)
        forms = _for_each("structured_outputs", structured_outputs, Mapping, len(encoded))
        grammars = [None if form is None else read_structured_outputs(form) for form in forms]
        return self._run(encoded, sampling_params, grammars)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool = True,
        structured_outputs: StructuredOutputs = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several.

        Args:
            messages: OpenAI chat messages of one conversation, or a list of conversations.
            sampling_params: as in generate().
            tools: OpenAI tool definitions, for all of them.
            tool_choice: OpenAI's, such as "required".
            parallel_tool_calls: False allows one call.
            structured_outputs: as in generate().

        Raises:
            InvalidRequestError: a message or parameter cannot be served; nothing has run then.
        """
        if self._text is None:
            raise InvalidRequestError(
                "This model has no tokenizer.json; use generate(prompt_token_ids=...).",
                param="messages",
            )
        given = _as_list("messages", messages)
        conversations = [given] if not given or isinstance(given[0], Mapping) else given
        encoded = [self._text.encode_chat(m, tools=tools) for m in conversations]
        grammars = [
            answer_grammar(
                tools=tools,
                tool_choice=tool_choice,
                parallel_tool_calls=parallel_tool_calls,
                structured_outputs=form,
            )
            for form in _for_each("structured_outputs", structured_outputs, Mapping, len(encoded))
        ]
        return self._run(encoded, sampling_params, grammars)

    def _run(
        self,
        prompts: list[list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        grammars: Sequence[GrammarSpec | None],
    ) -> list[RequestOutput]:
        params = _for_each("sampling_params", sampling_params, SamplingParams, len(prompts))
        requests = [
            EngineRequest(
                request_id=f"llm-{next(self._ids)}",
                prompt_token_ids=ids,
                sampling=p or SamplingParams(),
                grammar=grammar,
            )
            for ids, p, grammar in zip(prompts, params, grammars, strict=True)
        ]
        for request in requests:
            if request.sampling.stop and self._text is None:
                raise InvalidRequestError(
                    "stop strings need a tokenizer, which this model lacks.", param="stop"
                )
            self._loop.scheduler.validate(request)
            if request.grammar is not None:
                self._loop.grammars.compile(request.grammar)
        running: dict[str, _Running] = {}
        results = []
        waiting = iter(requests)
        try:
            for request in itertools.islice(waiting, _MAX_QUEUED // 128):
                results.append(self._start(request, running))
            while running:
                for event in self._loop.step():
                    state = running[event.request_id]
                    if state.push(event):
                        self._abort_finished(state)
                    if state.is_done:
                        del running[event.request_id]
                        for request in itertools.islice(waiting, 1):
                            results.append(self._start(request, running))
        finally:
            for request_id in running:
                self._loop.abort(request_id)
        return [state.output for state in results]

    def _start(self, request: EngineRequest, running: dict[str, _Running]) -> _Running:
        self._loop.add(request)
        tokenizer = None if self._text is None else self._text.tokenizer
        state = running[request.request_id] = _Running(
            request,
            [SequenceOutput(tokenizer, request.sampling) for _ in range(request.sampling.n)],
        )
        return state

    def _abort_finished(self, state: _Running) -> None:
        """A stop string ended every choice, but the engine does not know it."""
        if state.all_answered and not state.is_done:
            for event in self._loop.abort(state.request.request_id):
                state.push(event)


class _Running:
    """A request under way: its choices' text and which of them the engine has ended."""

    def __init__(self, request: EngineRequest, texts: list[SequenceOutput]) -> None:
        self.request = request
        self._texts = texts
        self._open = set(range(len(texts)))
        self.output = RequestOutput(
            request.prompt_token_ids, [CompletionOutput(i) for i in range(len(texts))]
        )

    @property
    def is_done(self) -> bool:
        return not self._open

    @property
    def all_answered(self) -> bool:
        return all(text.finish_reason is not None for text in self._texts)

    def push(self, event: TokenEvent) -> bool:
        """Take an event in; whether a stop string has just ended its choice."""
        if event.finish_reason is not None:
            self._open.discard(event.choice)
        if event.prompt_logprobs is not None:
            self.output.prompt_logprobs = event.prompt_logprobs
        choice = self.output.outputs[event.choice]
        if choice.finish_reason is not None:
            return False
        delta = self._texts[event.choice].push(event)
        choice.text += delta.text
        choice.token_ids += delta.token_ids
        if delta.logprobs is not None:
            choice.logprobs = (choice.logprobs or []) + delta.logprobs
        if delta.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
            match delta.finish_reason:
                case "error":
                    choice.error = event.error().message
                case "stop" | "length" | "aborted":
                    pass
                case _:
                    assert_never(delta.finish_reason)
        return delta.stopped_by_string


def _for_each(name: str, given: Any, one: type, count: int) -> Sequence[Any]:
    """What an argument, given as one for all prompts or one for each, is for each of them."""
    if given is None or isinstance(given, one):
        return [given] * count
    values = _as_list(name, given)
    if len(values) != count:
        raise InvalidRequestError(
            f"{len(values)} {name} for {count} prompts; give one for all or one for each.",
            param=name,
        )
    if not all(value is None or isinstance(value, one) for value in values):
        raise _wrong(name, given)
    return values


def _as_prompts(given: Any) -> list[list[int]]:
    """Token ids of one prompt, or of each of several."""
    prompts = _as_list("prompt_token_ids", given)
    if prompts and all(isinstance(each, SupportsIndex) for each in prompts):
        prompts = [prompts]
    try:
        return [[operator.index(token) for token in prompt] for prompt in prompts]
    except TypeError:
        raise _wrong("prompt_token_ids", given) from None


def _as_list(name: str, given: Any) -> list[Any]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise _wrong(name, given)
    return list(cast("Iterable[Any]", given))


_ALLOWED = {
    "prompts": "a text, or a list of texts; token ids are prompt_token_ids",
    "prompt_token_ids": "a list of integers, or a list of such lists",
    "messages": "a list of messages, or a list of such lists",
    "sampling_params": "one SamplingParams, or a list of them",
    "structured_outputs": 'one object such as {"choice": ["yes", "no"]}, or a list of them',
}


def _wrong(name: str, given: Any) -> InvalidRequestError:
    return InvalidRequestError(f"{name} is {given!r:.80}; allowed: {_ALLOWED[name]}.", param=name)
