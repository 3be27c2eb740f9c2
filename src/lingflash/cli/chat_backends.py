"""Who answers in `ling chat`: an engine started for it, or a server reached over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar, assert_never

import msgspec

from lingflash.cli.options import LoadingBar
from lingflash.core.config import EngineConfig
from lingflash.core.errors import ConfigError, EngineError, InvalidRequestError, LingflashError
from lingflash.core.extras import require_engine
from lingflash.core.hub import resolve_model
from lingflash.core.types import EngineRequest, PromptProgress, SamplingParams
from lingflash.link.http_client import Address, BadAnswer, Deadlines, open_request
from lingflash.link.ipc import IpcEngineClient
from lingflash.link.sse_reader import event_comment, event_data
from lingflash.protocol.sse import PROGRESS
from lingflash.text.chat_prompt import ModelText
from lingflash.text.output import SequenceOutput

T = TypeVar("T")
# A long prompt on a busy server may take minutes to its first word.
_DEADLINES = Deadlines(connect_s=30, first_byte_s=600, idle_s=600)
Messages = Sequence[Mapping[str, Any]]


class ChatBackend(ABC):
    """Answers messages piece by piece; a context manager."""

    name: str = ""

    @abstractmethod
    def stream(self, messages: Messages) -> Iterator[str | PromptProgress]:
        """Yield how far the prompt is read, where that is known, and the answer's text as it comes.

        Raises:
            LingflashError: there will be no (more) answer.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Stop the answer that stream() was giving."""

    def __enter__(self) -> ChatBackend:
        """Get ready."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Release everything."""
        self.cancel()


class EngineBackend(ChatBackend):
    """Runs an engine in a child process, its client on a loop in a thread.

    Args:
        config: of the engine.
        options: fields of SamplingParams.

    Raises:
        LingflashError: the model cannot be used for chat.
    """

    def __init__(self, config: EngineConfig, options: Mapping[str, Any]) -> None:
        require_engine()
        self.name = config.model
        self._sampling = SamplingParams(**options)
        text = ModelText.from_folder(resolve_model(config.model))
        if text is None or text.template is None:
            raise ConfigError(
                f"{config.model} has no tokenizer or no chat template; it cannot chat."
            )
        self._text = text
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._current: str | None = None
        self._engine: IpcEngineClient | None = None

    def __enter__(self) -> EngineBackend:
        """Load the model."""
        self._thread.start()
        with LoadingBar(self.name) as bar:
            engine = IpcEngineClient(self._config, 0, bar.update)
            self._engine = engine
            try:
                self._call(engine.start())
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the engine."""
        if self._engine is not None:
            with contextlib.suppress(LingflashError):
                self._call(self._engine.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stream(self, messages: Messages) -> Iterator[str | PromptProgress]:
        assert self._engine is not None
        engine = self._engine
        token_ids = self._text.encode_chat(messages)
        limit = engine.info.max_model_len
        if len(token_ids) >= limit:
            raise InvalidRequestError(
                f"The conversation has {len(token_ids)} tokens and the context is {limit}; /reset."
            )
        request_id = self._current = secrets.token_hex(8)
        pieces: queue.SimpleQueue[str | PromptProgress | LingflashError | None]
        pieces = queue.SimpleQueue()
        started = time.perf_counter()

        async def run() -> None:
            output = SequenceOutput(self._text.tokenizer, self._sampling)
            try:
                events = await engine.submit(
                    EngineRequest(
                        request_id=request_id,
                        prompt_token_ids=token_ids,
                        sampling=self._sampling,
                        wants_progress=True,
                    )
                )
                async for event in events:
                    if event.num_prompt_done is not None:
                        progress = PromptProgress(
                            total=len(token_ids),
                            cached=event.num_cached_tokens,
                            processed=event.num_prompt_done,
                            time_ms=round((time.perf_counter() - started) * 1000),
                        )
                        pieces.put(progress)
                        continue
                    match event.finish_reason:
                        case "error":
                            raise event.error()
                        case None | "stop" | "length" | "aborted":
                            pieces.put(output.push(event).text)
                        case _:
                            assert_never(event.finish_reason)
            except LingflashError as error:
                pieces.put(error)
            finally:
                pieces.put(None)

        asyncio.run_coroutine_threadsafe(run(), self._loop)
        while (piece := pieces.get()) is not None:
            if isinstance(piece, LingflashError):
                raise piece
            if piece:
                yield piece

    def cancel(self) -> None:
        if self._current is not None and self._engine is not None:
            self._loop.call_soon_threadsafe(self._engine.abort, self._current)


class ServerBackend(ChatBackend):
    """Talks to an OpenAI-compatible server.

    Args:
        url: base URL, with or without /v1.
        api_key: sent as a bearer token.
        model: name to ask for; None leaves the choice to the server.
        options: further fields of the request.

    Raises:
        ConfigError: the URL is no http(s) URL.
    """

    def __init__(
        self, url: str, api_key: str | None, model: str | None, options: Mapping[str, Any]
    ) -> None:
        self.name = url
        self._address = Address.parse_any(url, api_key or None)
        self._options = {**options, **({"model": model} if model else {})}
        # Each piece of an answer is one run, in which Ctrl-C stops the wait for it.
        self._runner = asyncio.Runner()
        self._pieces: AsyncGenerator[str | PromptProgress] | None = None
        self._is_ours: bool | None = None

    def stream(self, messages: Messages) -> Iterator[str | PromptProgress]:
        self._pieces = pieces = self._ask(messages)
        while (piece := self._runner.run(anext(pieces, None))) is not None:
            yield piece

    async def _ask(self, messages: Messages) -> AsyncGenerator[str | PromptProgress]:
        path = "/v1/chat/completions"
        try:
            fields = {"messages": list(messages), "stream": True, **self._options}
            if await self._knows_progress():
                fields["stream_options"] = {"include_progress": True}
            body = json.dumps(fields).encode()
            async with open_request(
                self._address, "POST", path, body, deadlines=_DEADLINES
            ) as answer:
                if answer.status != 200:
                    raise _error_of(answer.status, await answer.read())
                async for raw in answer.raw_events():
                    if (told := event_comment(raw, PROGRESS)) is not None:
                        yield msgspec.json.decode(told, type=PromptProgress)
                    data = event_data(raw)
                    if data is None:
                        continue
                    if data == "[DONE]":
                        return
                    event = json.loads(data)
                    if "error" in event:
                        raise EngineError(str(event["error"].get("message")))
                    for choice in event["choices"]:
                        if text := choice["delta"].get("content"):
                            yield text
        except (OSError, BadAnswer, msgspec.DecodeError) as error:
            raise EngineError(f"{self.name} cannot be reached or broke off: {error}.") from None

    async def _knows_progress(self) -> bool:
        """Whether the server is one of ours; another may refuse a field that it does not know."""
        if self._is_ours is None:
            async with open_request(self._address, "GET", "/", deadlines=_DEADLINES) as answer:
                said = await answer.read()
            self._is_ours = answer.status == 200 and b'"name":"lingflash"' in said
        return self._is_ours

    def cancel(self) -> None:
        if self._pieces is not None:
            self._runner.run(self._pieces.aclose())

    def __exit__(self, *exc: object) -> None:
        """Close the connection."""
        self.cancel()
        self._runner.close()


def _error_of(status: int, body: bytes) -> LingflashError:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The server answered with status {status}."
    return InvalidRequestError(message) if status < 500 else EngineError(message)
