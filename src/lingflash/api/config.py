"""Settings of the HTTP server, apart from those of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lingflash.core.log import LEVELS
from lingflash.core.settings import (
    Bound,
    above,
    at_least,
    between,
    check_settings,
    one_of,
    require,
    setting,
)
from lingflash.httpd.keys import KEY, has_page, is_loopback

_MIB = 2**20


def _is_origin(text: str) -> bool:
    parts = urlsplit(text)
    return text == "*" or (
        parts.scheme in ("http", "https")
        and bool(parts.netloc)
        and f"{parts.scheme}://{parts.netloc}" == text
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server listens and what it allows; its fields are flags of `ling serve`.

    Args:
        model_folder: where tokenizer, template and generation_config.json lie; None has none of
            them.

    Raises:
        ConfigError: a value is out of range.
    """

    model_folder: Path | None = None
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8000, "0 takes a free one.", bound=between(0, 65535))
    # The first is the one in answers.
    served_model_names: tuple[str, ...] = setting(
        ("ling-nano",),
        "Name that requests use; repeat it for several.",
        flag="--served-model-name",
        bound=Bound(bool, "non-empty names"),
    )
    # Without one the server is open.
    api_keys: tuple[str, ...] = setting(
        (), "Accepted key; repeat it for several.", flag="--api-key", bound=KEY, is_secret=True
    )
    # Unlike a flag, a file is not shown by `ps` to everybody on the machine.
    api_key_file: Path | None = setting(None, "File with accepted keys, one a line.")
    admin_api_key: str | None = setting(
        None, "Key of /reset_prefix_cache, which is off without.", bound=KEY, is_secret=True
    )
    # Pauses between them grow from half a second to half a minute.
    engine_restarts: int = setting(
        10, "How often in an hour a dead engine is started again.", bound=at_least(0)
    )
    # Well above the longest step of a large prompt on a slow machine.
    engine_hang_timeout_s: float = setting(
        120.0,
        "An engine at one step, or silent, for so long counts as hung and is killed.",
        bound=at_least(5),
    )
    cors_origins: tuple[str, ...] = setting(
        (),
        "Origin whose pages may use the server from a browser, or *; repeat it for several.",
        flag="--cors-origin",
        bound=Bound(_is_origin, "* or an origin such as https://example.org, without a path"),
    )
    ui: bool | None = setting(None, "The page at /ui; on by default on loopback, off elsewhere.")
    evidence: Path | None = setting(
        None, "Folder of records such as benchmarks/, for the page's screen of claims."
    )
    max_connections: int = setting(
        10_000,
        "Open connections; beyond, or at the limit on open files, idle ones are closed.",
        bound=at_least(1),
    )
    keep_alive_s: float = setting(
        75.0, "How long a connection is kept between two requests.", bound=between(1, 86400)
    )
    drain_timeout_s: float = setting(
        30.0,
        "From SIGTERM to the end; running requests have five sixths of it.",
        bound=between(0, 86400),
    )
    request_timeout_s: float | None = setting(
        None, "Deadline of requests that give none.", bound=above(0)
    )
    max_body_bytes: int = setting(
        32 * _MIB,
        "Largest request body, in MiB.",
        flag="--max-body-mb",
        unit=_MIB,
        bound=Bound(lambda size: size >= 1024, "0.001 or more"),
    )
    responses_db: Path | None = setting(
        None, "File that keeps stored responses; in memory if left out."
    )
    responses_max_bytes: int = setting(
        64 * _MIB,
        "Limit on stored responses, in MiB; 0 stores none.",
        flag="--responses-max-mb",
        unit=_MIB,
        bound=at_least(0, "store nothing"),
    )
    responses_max_age_s: float = setting(
        30 * 86400.0, "Stored responses that are older are dropped.", bound=above(0)
    )
    sandbox: str | None = setting(
        None,
        "URL of `ling sandbox`, in which code_interpreter of /v1/responses runs.",
        metavar="URL",
    )
    sandbox_key: str | None = setting(
        None, "Key of that server, if it wants one.", bound=KEY, is_secret=True
    )
    sandbox_key_file: Path | None = setting(None, "File with that key, in one line.")
    code_timeout_s: float = setting(
        60.0, "The longest run of one piece of code.", bound=between(1, 86400)
    )
    max_containers_per_key: int = setting(
        16, "Containers of one API key; the oldest automatic one makes room.", bound=at_least(1)
    )
    unreadable_parts: str = setting(
        "refuse",
        "A picture, sound or PDF in the user's newest message: refuse, or note in its place.",
        bound=one_of(("refuse", "note")),
    )
    log_level: str = setting("info", "debug, info, warning or error.", bound=one_of(LEVELS))

    def __post_init__(self) -> None:
        check_settings(self)
        require(self, bool(self.served_model_names), "served_model_names", "at least one")
        require(
            self,
            self.admin_api_key not in self.api_keys,
            "admin_api_key",
            "a key that is no --api-key",
        )
        for name in ("sandbox_key", "sandbox_key_file"):
            is_used = self.sandbox is not None or getattr(self, name) is None
            require(self, is_used, name, "beside --sandbox")

    @property
    def is_open(self) -> bool:
        """Whether others than this machine's users may reach the server without a key."""
        return not self.api_keys and not is_loopback(self.host)

    @property
    def has_page(self) -> bool:
        """Whether /ui is served."""
        return has_page(self.ui, self.host)
