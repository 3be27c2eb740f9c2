"""Settings of the HTTP server, apart from those of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lingflash.core.errors import ConfigError
from lingflash.core.log import LEVELS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server listens and what it allows. Names match the command's flags.

    Args:
        model_folder: where tokenizer, template and generation_config.json lie; None has none of
            them.
        served_model_names: names that requests may use; the first is the one in answers.
        host: address to listen on.
        port: 0 takes a free one.
        api_keys: any of them is accepted; none leaves the server open.
        admin_api_key: key of the endpoints that act on the server; None switches them off.
        drain_timeout_s: how long running requests may go on after SIGTERM.
        request_timeout_s: deadline of a request that gives none; None has no deadline.
        max_body_bytes: larger request bodies are refused.
        responses_db: file of the stored responses; None keeps them in memory.
        responses_max_bytes: limit on the stored responses; 0 stores none.
        responses_max_age_s: stored responses that are older are dropped.
        log_level: one of debug, info, warning, error.

    Raises:
        ConfigError: a value is out of range.
    """

    model_folder: Path | None = None
    served_model_names: tuple[str, ...] = ("ling-nano",)
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    admin_api_key: str | None = None
    drain_timeout_s: float = 30.0
    request_timeout_s: float | None = None
    max_body_bytes: int = 32 * 2**20
    responses_db: Path | None = None
    responses_max_bytes: int = 64 * 2**20
    responses_max_age_s: float = 30 * 86400.0
    log_level: str = "info"

    def __post_init__(self) -> None:
        def check(ok: bool, flag: str, allowed: str, given: object) -> None:
            if not ok:
                name = flag.removeprefix("--").replace("-", "_")
                raise ConfigError(f"{flag} is {given!r}; allowed: {allowed}.", param=name)

        check(0 <= self.port <= 65535, "--port", "0 to 65535", self.port)
        check(bool(self.served_model_names), "--served-model-name", "at least one", ())
        check(all(self.served_model_names), "--served-model-name", "non-empty names", "")
        # The message must not hold the keys.
        printable = all(key and key.isascii() and key.isprintable() for key in self.api_keys)
        check(printable, "--api-key", "non-empty printable ASCII", "...")
        admin = self.admin_api_key
        printable = admin is None or bool(admin and admin.isascii() and admin.isprintable())
        check(printable, "--admin-api-key", "non-empty printable ASCII", "...")
        check(admin not in self.api_keys, "--admin-api-key", "a key that is no --api-key", "...")
        drain = self.drain_timeout_s
        check(0 <= drain <= 86400, "--drain-timeout-s", "0 to 86400", drain)
        timeout = self.request_timeout_s
        check(timeout is None or timeout > 0, "--request-timeout-s", "above 0", timeout)
        size = self.max_body_bytes
        check(size >= 1024, "--max-body-mb", "0.001 or more", size / 2**20)
        stored = self.responses_max_bytes
        check(stored >= 0, "--responses-max-mb", "0 (store nothing) or more", stored / 2**20)
        age = self.responses_max_age_s
        check(age > 0, "--responses-max-age-s", "above 0", age)
        check(self.log_level in LEVELS, "--log-level", ", ".join(LEVELS), self.log_level)
