"""What the routes of one application share."""

from __future__ import annotations

import time
from typing import Any, Protocol

from fastapi import Request

from lingflash.api.answer.call_store import CallStore
from lingflash.api.answer.grammar_check import GrammarChecker
from lingflash.api.code.containers import Containers
from lingflash.api.config import ServerConfig
from lingflash.api.responses.store import ResponseStore
from lingflash.core.checkpoint_files import GenerationConfig, read_generation_config
from lingflash.core.errors import NotFoundError
from lingflash.core.metrics import ServerMetrics
from lingflash.httpd.context import HttpContext, context_of
from lingflash.httpd.limits import ConnectionLimits
from lingflash.link.client import EngineClient
from lingflash.link.sandbox_server import SandboxServer
from lingflash.protocol.endpoint_fields import MESSAGES
from lingflash.protocol.errors import OPENAI_ERRORS, ErrorDialect
from lingflash.protocol.messages import ANTHROPIC_ERRORS
from lingflash.text.chat_prompt import ModelText
from lingflash.text.run_memo import RunMemo


class LiveResponse(Protocol):
    """A response that is being generated: it can be read and cancelled."""

    @property
    def owner(self) -> str:
        """Hash of the key that it was asked for with."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """The response object as it is now."""
        ...

    def cancel(self) -> None:
        """End it within one step."""
        ...


class ServerState(HttpContext):
    """What `httpd` shares, and engine, settings and text of one application.

    Raises:
        ModelLoadError: tokenizer, template or generation_config.json cannot be read.
        ConfigError: the file of stored responses cannot be used.
    """

    def __init__(self, engine: EngineClient, config: ServerConfig) -> None:
        self.metrics = ServerMetrics(
            lambda: engine.stats,
            lambda: self.not_ready is None,
            lambda: engine.info.memory_plan if engine.is_ready else {},
        )
        super().__init__(
            self.metrics,
            api_keys=config.api_keys,
            admin_api_key=config.admin_api_key,
            max_body_bytes=config.max_body_bytes,
            drain_timeout_s=config.drain_timeout_s,
            cors_origins=config.cors_origins,
            connections=ConnectionLimits(
                max_connections=config.max_connections, keep_alive_s=config.keep_alive_s
            ),
            dialect_of=_dialect_of,
        )
        self.engine = engine
        self.config = config
        folder = config.model_folder
        self.text = ModelText.from_folder(folder) if folder is not None else None
        generation = GenerationConfig() if folder is None else read_generation_config(folder)
        self.sampling_defaults = generation.sampling
        self.calls = CallStore()
        self.runs = RunMemo()
        self.grammars = GrammarChecker(self.text.tokenizer if self.text is not None else None)
        self.responses = ResponseStore(
            config.responses_db,
            max_bytes=config.responses_max_bytes,
            max_age_s=config.responses_max_age_s,
            on_error=self.metrics.responses_store_errors.inc,
        )
        # Responses that are being generated, by id.
        self.live_responses: dict[str, LiveResponse] = {}
        # Where code that a model calls is run, if it is anywhere.
        self.containers: Containers | None = None
        if config.sandbox is not None:
            self.containers = Containers(
                SandboxServer(config.sandbox, config.sandbox_key),
                max_per_owner=config.max_containers_per_key,
                run_s=config.code_timeout_s,
            )
        self.created = int(time.time())

    @property
    def not_ready(self) -> str | None:
        """Why no request can be served now, or None."""
        if not self.is_draining and not self.engine.is_ready:
            return f"The engine is not running. {self.engine.trouble}"
        return super().not_ready

    def live_response(self, owner: str, response_id: str) -> LiveResponse | None:
        """A response that is being generated for this owner."""
        live = self.live_responses.get(response_id)
        return live if live is not None and live.owner == owner else None

    def require_model(self, name: str | None) -> str:
        """Check a request's model; return the name for its answer.

        Raises:
            NotFoundError: it is not served here.
        """
        names = self.config.served_model_names
        if name is None:
            return names[0]
        if name not in names:
            raise NotFoundError(
                f"The model {name!r} is not served here; served: {', '.join(names)}.",
                param="model",
            )
        return name


def state_of(request: Request) -> ServerState:
    """The state of the application that a request came to."""
    state = context_of(request)
    assert isinstance(state, ServerState)
    return state


def _dialect_of(path: str) -> ErrorDialect:
    is_anthropics = path == MESSAGES.path or path.startswith(MESSAGES.path + "/")
    return ANTHROPIC_ERRORS if is_anthropics else OPENAI_ERRORS
