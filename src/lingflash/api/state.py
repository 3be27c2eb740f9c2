"""What the routes of one application share."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol

from fastapi import Request

from lingflash.api.answer.call_store import CallStore
from lingflash.api.answer.grammar_check import GrammarChecker
from lingflash.api.config import ServerConfig
from lingflash.api.responses.store import ResponseStore
from lingflash.core.errors import CapacityError, ModelLoadError, NotFoundError
from lingflash.core.metrics import ServerMetrics
from lingflash.link.client import EngineClient
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


class ServerState:
    """Engine, settings, text and counters of one application.

    Args:
        engine: started by whoever made it.
        config: of the server.

    Raises:
        ModelLoadError: tokenizer, template or generation_config.json cannot be read.
        ConfigError: the file of stored responses cannot be used.
    """

    def __init__(self, engine: EngineClient, config: ServerConfig) -> None:
        self.engine = engine
        self.config = config
        folder = config.model_folder
        self.text = ModelText.from_folder(folder) if folder is not None else None
        self.sampling_defaults = _sampling_defaults(folder) if folder is not None else {}
        self.calls = CallStore()
        self.runs = RunMemo()
        self.grammars = GrammarChecker()
        self.responses = ResponseStore(
            config.responses_db,
            max_bytes=config.responses_max_bytes,
            max_age_s=config.responses_max_age_s,
        )
        # Responses that are being generated, by id.
        self.live_responses: dict[str, LiveResponse] = {}
        self.created = int(time.time())
        self.is_draining = False
        # Engine request ids in flight, for the drain's end.
        self.in_flight: set[str] = set()
        self.metrics = ServerMetrics(lambda: self.engine.stats, lambda: self.not_ready is None)

    @property
    def not_ready(self) -> str | None:
        """Why no request can be served now, or None."""
        if self.is_draining:
            return "The server is shutting down."
        if not self.engine.is_ready:
            return f"The engine is not running. {self.engine.trouble}"
        return None

    def require_ready(self) -> None:
        """Refuse work that could not be served.

        Raises:
            CapacityError: the engine is not ready, or the server drains.
        """
        reason = self.not_ready
        if reason is not None:
            raise CapacityError(f"{reason} Try again.")

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
    return request.app.state.server


_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def _sampling_defaults(folder: Path) -> dict[str, Any]:
    """What generation_config.json says about sampling."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        defaults = {key: config[key] for key in _SAMPLING_KEYS if config.get(key) is not None}
        if config.get("do_sample") is False:
            defaults["temperature"] = 0.0
    except (OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.") from None
    return defaults
