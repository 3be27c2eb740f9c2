"""The answer to a text completion: chunks of a stream, or one body."""

from __future__ import annotations

from typing import Any

from lingflash.api.answer.chunks import CompletionWriter, openai_finish_reason
from lingflash.api.answer.generation import Deltas, Generation
from lingflash.api.answer.logprobs import CompletionLogprobs
from lingflash.api.state import ServerState
from lingflash.core.types import FinishReason, TokenLogprob
from lingflash.protocol.completions import CompletionRequest
from lingflash.text.output import OutputDelta


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
        self.finish_reason: FinishReason | None = None


class CompletionAnswer(CompletionWriter):
    """Writes an answer while it is generated, or collects it."""

    def __init__(
        self,
        state: ServerState,
        body: CompletionRequest,
        model: str,
        generation: Generation,
        given: list[str | list[int]],
    ) -> None:
        super().__init__(
            generation,
            model,
            body.stream_options,
            id_prefix="cmpl-",
            chunk_kind="text_completion",
            kind="text_completion",
        )
        self._tokenizer = state.text.tokenizer if state.text else None
        self._echo = bool(body.echo)
        self._is_stream = bool(body.stream)
        self._given = given
        # Without a tokenizer there is no text, so the ids are the answer.
        self._wants_token_ids = bool(body.return_token_ids) or self._tokenizer is None
        self._wants_logprobs = body.logprobs is not None
        self._choices = [
            _Choice(i, CompletionLogprobs(self._tokenizer) if self._wants_logprobs else None)
            for i in range(generation.num_choices)
        ]

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
                "finish_reason": openai_finish_reason(choice.finish_reason),
            }
            if self._wants_token_ids:
                fields["token_ids"] = delta.token_ids
                if is_first:
                    fields["prompt_token_ids"] = self._generation.prompts[self._prompt_of(choice)]
            chunks.append(self._encoder.choice(fields))
        return b"".join(chunks)

    async def collect(self) -> None:
        """Read the whole answer."""
        async for deltas in self._generation.deltas():
            for index, delta in deltas:
                choice = self._choices[index]
                choice.texts.append(self._take(choice, delta))

    def whole_choices(self) -> list[dict[str, Any]]:
        choices = []
        for choice in self._choices:
            if self._echo:
                self._add_prompt_scores(choice)
            fields: dict[str, Any] = {
                "index": choice.index,
                "text": "".join(choice.texts),
                "logprobs": self._take_logprobs(choice),
                "finish_reason": openai_finish_reason(choice.finish_reason),
            }
            if self._wants_token_ids:
                fields["token_ids"] = choice.token_ids
                fields["prompt_token_ids"] = self._generation.prompts[self._prompt_of(choice)]
            choices.append(fields)
        return choices
