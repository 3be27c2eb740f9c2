"""Settings of the sandbox server."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

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
from lingflash.sandbox.jail.limits import Limits

_MIB = 2**20
_REMOTE = Bound(
    lambda value: re.fullmatch(r"https?://[^/\s]+/?|[a-z0-9-]+(\.[a-z0-9-]+)+", value) is not None,
    "a domain such as e2b.app, or a URL such as http://127.0.0.1:8049",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """How the server listens, what a sandbox may use and how many there may be.

    Raises:
        ConfigError: a value is out of range.
    """

    VARIABLE_PREFIX: ClassVar[str] = "LINGFLASH_SANDBOX_"

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8049, "0 takes a free one.", bound=between(0, 65535))
    more_ports: tuple[int, ...] = setting(
        (),
        "Another port with the same answers, for clients that insist on theirs; repeat it.",
        flag="--also-port",
        bound=between(1, 65535),
    )
    api_keys: tuple[str, ...] = setting(
        (), "Accepted key; repeat it for several.", flag="--api-key", bound=KEY, is_secret=True
    )
    api_key_file: Path | None = setting(None, "File with accepted keys, one a line.")
    user: str | None = setting(None, "Become this user; needed where root starts the server.")
    backend: Literal["bwrap", "remote"] = setting(
        "bwrap",
        "bwrap: jails on this machine; remote: another server of E2B's API.",
        bound=one_of(("bwrap", "remote")),
    )
    remote: str = setting(
        "e2b.app",
        "Where --backend remote has its sandboxes: a vendor's domain, or a server's URL.",
        bound=_REMOTE,
    )
    remote_api_key: str | None = setting(
        None, "Key of an account there.", bound=KEY, is_secret=True
    )
    python: Path | None = setting(
        None, "Interpreter of sandboxes, with ipykernel for run_code; this one if left out."
    )
    internet: Literal["deny", "strict", "allow"] = setting(
        "deny",
        "deny: no network, asked for or not; strict: refuse who asks; allow: the host's network.",
        bound=one_of(("deny", "strict", "allow")),
    )
    cgroups: Literal["auto", "require", "off"] = setting(
        "auto",
        "Memory and process counts by cgroup: where there are some, always, or never.",
        bound=one_of(("auto", "require", "off")),
    )
    max_sandboxes: int = setting(64, "In all.", bound=at_least(1))
    max_sandboxes_per_key: int = setting(64, "Of one API key.", bound=at_least(1))
    memory_bytes_per_key: int | None = setting(
        None,
        "Memory and files that the sandboxes of one API key may use together, in MiB.",
        flag="--memory-mb-per-key",
        unit=_MIB,
        bound=at_least(1),
    )
    cpu_s_per_key: float | None = setting(
        None,
        "CPU seconds in an hour of the sandboxes of one API key; needs cgroups.",
        bound=above(0),
    )
    output_bytes_per_key: int | None = setting(
        None,
        "Output in an hour of the sandboxes of one API key, in MiB.",
        flag="--output-mb-per-key",
        unit=_MIB,
        bound=at_least(1),
    )
    warm: int = setting(1, "Started and waiting, each with a Python kernel.", bound=between(0, 64))
    default_timeout_s: float = setting(
        300.0, "Life of a sandbox whose creator gives none.", bound=between(1, 86400)
    )
    max_timeout_s: float = setting(
        86400.0, "Longest life, counted from each renewal.", bound=between(1, 30 * 86400)
    )
    memory_bytes: int = setting(
        1024 * _MIB,
        "Of the processes of a sandbox, in MiB.",
        flag="--memory-mb",
        unit=_MIB,
        bound=replace(at_least(64 * _MIB), text="64 or more"),
    )
    disk_bytes: int = setting(
        512 * _MIB,
        "Of the files of a sandbox, in MiB; they lie in memory.",
        flag="--disk-mb",
        unit=_MIB,
        bound=replace(at_least(_MIB), text="1 or more"),
    )
    disk_inodes: int = setting(50_000, "Files and folders of a sandbox.", bound=at_least(100))
    processes: int = setting(128, "Processes and threads of a sandbox.", bound=at_least(8))
    cpu_s: int = setting(600, "CPU seconds of one process.", bound=at_least(1))
    output_bytes: int = setting(
        16 * _MIB,
        "Of one command or execution, in MiB; what comes beyond is thrown away.",
        flag="--output-mb",
        unit=_MIB,
        bound=at_least(1),
    )
    max_upload_bytes: int = setting(
        512 * _MIB,
        "Largest upload, in MiB.",
        flag="--max-upload-mb",
        unit=_MIB,
        bound=at_least(1),
    )
    ui: bool | None = setting(None, "The page at /ui; on by default on loopback, off elsewhere.")
    drain_timeout_s: float = setting(
        10.0, "Time for running requests after SIGTERM.", bound=between(0, 86400)
    )
    log_level: str = setting("info", "debug, info, warning or error.", bound=one_of(LEVELS))

    def __post_init__(self) -> None:
        check_settings(self)
        require(
            self,
            self.max_timeout_s >= self.default_timeout_s,
            "max_timeout_s",
            "no less than --default-timeout-s",
        )
        require(
            self,
            self.memory_bytes_per_key is None
            or self.memory_bytes_per_key >= self.memory_bytes + self.disk_bytes,
            "memory_bytes_per_key",
            "no less than --memory-mb and --disk-mb together, which is one sandbox",
        )
        if self.backend == "remote":
            self._check_remote()
        require(
            self,
            self.cpu_s_per_key is None or self.cgroups != "off",
            "cpu_s_per_key",
            "nothing with --cgroups off, since they measure it",
        )

    def _check_remote(self) -> None:
        require(
            self,
            self.remote_api_key is not None,
            "remote_api_key",
            "a key of the account that --backend remote uses",
        )
        for name in ("memory_bytes_per_key", "cpu_s_per_key"):
            is_unset = getattr(self, name) is None
            require(self, is_unset, name, "nothing with --backend remote, which cannot measure it")

    @property
    def is_open(self) -> bool:
        """Whether others than this machine's users may reach the server without a key."""
        return not self.api_keys and not is_loopback(self.host)

    @property
    def has_page(self) -> bool:
        """Whether /ui is served."""
        return has_page(self.ui, self.host)

    @property
    def limits(self) -> Limits:
        """Of each sandbox."""
        return Limits(
            memory_bytes=self.memory_bytes,
            disk_bytes=self.disk_bytes,
            disk_inodes=self.disk_inodes,
            processes=self.processes,
            cpu_s=self.cpu_s,
            output_bytes=self.output_bytes,
        )


def cpu_count() -> int:
    """CPUs that a sandbox sees."""
    return len(os.sched_getaffinity(0))
