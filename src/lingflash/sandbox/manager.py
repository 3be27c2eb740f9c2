"""All sandboxes of a server: who has which, until when, and those that wait for somebody."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import logging
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lingflash.core.errors import (
    CapacityError,
    ConfigError,
    InvalidRequestError,
    LingflashError,
    NotFoundError,
    QueueFullError,
    RateLimitError,
)
from lingflash.core.log import log_event
from lingflash.sandbox import cgroup
from lingflash.sandbox.box import Box, JailKind
from lingflash.sandbox.config import SandboxConfig
from lingflash.sandbox.contexts import LANGUAGES, Contexts
from lingflash.sandbox.jail.argv import Interpreter
from lingflash.sandbox.journal import Journal
from lingflash.sandbox.metrics import SandboxMetrics
from lingflash.sandbox.probe import PROBE_LIMITS, find_bwrap, probe
from lingflash.sandbox.process import Process
from lingflash.sandbox.quotas import HOUR_S, Quotas

logger = logging.getLogger("lingflash.sandbox")

_TICK_S = 0.1
_MAX_METADATA_BYTES = 16_384
_REFILL_PAUSE_S = 1.0
State = Literal["running", "paused"]


@dataclass(slots=True, kw_only=True)
class Watcher:
    """Changes that are fetched now and then instead of streamed."""

    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, kw_only=True)
class Sandbox:
    """A box that somebody has.

    Args:
        owner: who made it (`httpd.auth.caller_of`); nobody else lists or ends it.
        ends_at: of `time.time()`.
        pauses: at its end it is paused instead of killed.
        paused_for: the limit of its key for which it was paused, if it was.
        charged_cpu_s: of its CPU seconds those that its key was charged for, or nobody ever is.
        charged_bytes: the same of its output.
    """

    id: str
    token: str
    box: Box
    contexts: Contexts
    owner: str = ""
    template: str = "base"
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    env: dict[str, str] = field(default_factory=dict[str, str])
    started_at: float = field(default_factory=time.time)
    ends_at: float = 0.0
    pauses: bool = False
    state: State = "running"
    paused_for: str | None = None
    charged_cpu_s: float = 0.0
    charged_bytes: int = 0
    watchers: dict[str, Watcher] = field(default_factory=dict[str, Watcher])
    tags: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    journal: Journal = field(default_factory=Journal)

    def process(self, pid: int | None, tag: str | None) -> Process:
        """One that was started from outside and still runs.

        Raises:
            NotFoundError: there is none of that number or tag.
        """
        for process in self.box.processes.values():
            told = self.tags.get(process.number)
            if told is not None and (
                process.pid == pid or (tag is not None and told["tag"] == tag)
            ):
                return process
        raise NotFoundError(
            f"process with {f'pid {pid}' if tag is None else f'tag {tag}'} not found"
        )


class Manager:
    """Makes, finds and ends sandboxes; the service behind the HTTP server.

    Args:
        groups: where their cgroups are made, if anywhere.
    """

    name = "sandboxes"

    def __init__(
        self,
        config: SandboxConfig,
        interpreter: Interpreter,
        metrics: SandboxMetrics,
        groups: cgroup.Cgroups | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics
        self._interpreter = interpreter
        self._groups = groups
        self._quotas = Quotas(config)
        self._kind: JailKind | None = None
        self._by_id: dict[str, Sandbox] = {}
        self._by_token: dict[bytes, Sandbox] = {}
        self._warm: list[Sandbox] = []
        self._making: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending: set[asyncio.Task[Any]] = set()
        self._wake_pool = asyncio.Event()
        self._is_stopping = False
        self.is_ready = False
        metrics.state.set_function(lambda: self._count("running"))
        metrics.paused.set_function(lambda: self._count("paused"))
        metrics.warm.set_function(lambda: len(self._warm))
        languages = {"python", "bash"} | ({"javascript"} if shutil.which("node") else set())
        self.languages = frozenset(languages & set(LANGUAGES))

    def _count(self, state: State) -> int:
        return sum(each.state == state for each in self._by_id.values())

    # --- the service -------------------------------------------------------------------------

    async def start(self) -> None:
        """Try the walls, then fill the pool."""
        self._kind = JailKind(
            bwrap=find_bwrap(),
            interpreter=self._interpreter,
            limits=self.config.limits,
            network=self.config.internet == "allow",
            counts_memory=self._groups is not None,
        )
        await self._probe(self._kind)
        fields = {"memory": f"cgroup v{self._groups.version}" if self._groups else "watchdog"}
        log_event(logger, "walls_hold", fields)
        while len(self._warm) < self.config.warm:
            self._warm.append(await self._make_warm())
        for work in (self._keep_time(), self._keep_warm()):
            self._tasks.add(asyncio.create_task(work))
        self.is_ready = True

    async def _probe(self, kind: JailKind) -> None:
        if self._groups is None:
            await probe(kind)
            return
        try:
            folders = self._groups.make("probe", PROBE_LIMITS)
        except OSError as error:
            raise ConfigError(f"No cgroup can be made ({error}); see --cgroups.") from None
        try:
            await probe(kind, tuple(str(folder / "cgroup.procs") for folder in folders))
        finally:
            self._groups.remove("probe")

    async def wait_dead(self) -> LingflashError:
        """It does not die by itself."""
        await asyncio.Event().wait()
        raise AssertionError("never set")

    def drain(self) -> None:
        """Nothing new is warmed."""
        self._is_stopping = True

    async def stop(self) -> None:
        """End all sandboxes."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sandbox in list(self._by_id.values()):
            self._forget(sandbox, "server_stopped")
        for sandbox in self._warm:
            self._end_soon(sandbox)
        self._warm.clear()
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._groups is not None:
            self._groups.close()

    # --- making ------------------------------------------------------------------------------

    async def create(
        self,
        owner: str,
        *,
        timeout_s: float | None = None,
        template: str = "base",
        metadata: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        pauses: bool = False,
    ) -> Sandbox:
        """Give somebody a sandbox.

        Raises:
            QueueFullError: this owner has as many as one may.
            RateLimitError: its sandboxes use as much as they may.
            CapacityError: there are as many as there may be.
            InvalidRequestError: the time is out of range.
            SandboxGoneError: none can be started.
        """
        metadata, env = dict(metadata or {}), dict(env or {})
        timeout_s = self._checked_timeout(timeout_s)
        _check_texts(metadata, "metadata")
        _check_texts(env, "envVars")
        self._check_room(owner)
        self._making[owner] += 1
        began = time.perf_counter()
        try:
            sandbox = self._from_pool()
            source = "cold" if sandbox is None else "pool"
            if sandbox is None:
                sandbox = await self._new()
        finally:
            self._making[owner] -= 1
        self.metrics.start_s.observe(time.perf_counter() - began)
        self.metrics.created.labels(source).inc()
        sandbox.owner, sandbox.template = owner, template
        sandbox.metadata, sandbox.env, sandbox.pauses = metadata, env, pauses
        sandbox.contexts.env = env
        sandbox.started_at = time.time()
        sandbox.ends_at = sandbox.started_at + timeout_s
        sandbox.charged_cpu_s = self._cpu_s(sandbox)
        sandbox.charged_bytes = sandbox.box.output_bytes
        self._by_id[sandbox.id] = sandbox
        self._by_token[_digest(sandbox.token)] = sandbox
        return sandbox

    def _check_room(self, owner: str) -> None:
        making = self._making[owner]
        mine = sum(each.owner == owner for each in self._by_id.values()) + making
        if mine >= self.config.max_sandboxes_per_key:
            self.metrics.refused.labels("count").inc()
            raise QueueFullError(
                f"This API key has {mine} sandboxes, which is all that one may have; "
                "kill one, or raise --max-sandboxes-per-key."
            )
        self._check_usage(owner, mine)
        if len(self._by_id) + self._making.total() >= self.config.max_sandboxes:
            raise CapacityError(
                f"All {self.config.max_sandboxes} sandboxes are taken; try again, or raise "
                "--max-sandboxes."
            )

    def _check_usage(self, owner: str, has: int | None = None) -> None:
        try:
            self._quotas.check(owner, has)
        except RateLimitError as error:
            self.metrics.refused.labels(error.param or "").inc()
            raise

    def _from_pool(self) -> Sandbox | None:
        while self._warm:
            sandbox = self._warm.pop(0)
            self._wake_pool.set()
            if not sandbox.box.gone.is_set():
                return sandbox
            self._end_soon(sandbox)
        return None

    async def _new(self) -> Sandbox:
        assert self._kind is not None
        sandbox_id = "i" + secrets.token_hex(16)
        files: tuple[str, ...] = ()
        if self._groups is not None:
            folders = self._groups.make(sandbox_id, self._kind.limits)
            files = tuple(str(folder / "cgroup.procs") for folder in folders)
        try:
            box = await Box.start(self._kind, files)
        except BaseException:
            if self._groups is not None:
                self._groups.remove(sandbox_id)
            raise
        contexts = Contexts(box, self._interpreter.path, self.languages, self.config.output_bytes)
        return Sandbox(id=sandbox_id, token=secrets.token_urlsafe(32), box=box, contexts=contexts)

    async def _keep_warm(self) -> None:
        """Have as many waiting as the settings say, each with its Python running."""
        while not self._is_stopping:
            self._wake_pool.clear()
            try:
                while len(self._warm) < self.config.warm and not self._is_stopping:
                    self._warm.append(await self._make_warm())
                await self._wake_pool.wait()
            except LingflashError as error:
                fields = {"message": error.message}
                log_event(logger, "sandbox_not_warmed", fields, level=logging.ERROR)
                await asyncio.sleep(_REFILL_PAUSE_S)

    async def _make_warm(self) -> Sandbox:
        sandbox = await self._new()
        try:
            await sandbox.contexts.default("python")
        except BaseException:
            self._end_soon(sandbox)
            raise
        return sandbox

    # --- finding -----------------------------------------------------------------------------

    def get(self, sandbox_id: str, owner: str) -> Sandbox:
        """The sandbox of an id, if it is the caller's.

        Raises:
            NotFoundError: there is none, or it is another's.
        """
        sandbox = self._by_id.get(sandbox_id)
        if sandbox is None or sandbox.owner != owner:
            raise NotFoundError(f"The sandbox {sandbox_id[:60]!r} was not found.")
        return sandbox

    def by_token(self, token: str) -> Sandbox | None:
        """The sandbox that a token opens."""
        return self._by_token.get(_digest(token))

    def by_id(self, sandbox_id: str) -> Sandbox | None:
        """The sandbox of an id, whosever it is: its 128 random bits are known to who made it."""
        return self._by_id.get(sandbox_id)

    def all_of(self, owner: str) -> list[Sandbox]:
        """Somebody's sandboxes, the oldest first."""
        return sorted(
            (each for each in self._by_id.values() if each.owner == owner),
            key=lambda each: each.started_at,
        )

    # --- time --------------------------------------------------------------------------------

    def set_timeout(self, sandbox: Sandbox, timeout_s: float | None) -> None:
        """Let it live so long from now, be that more or less than before."""
        sandbox.ends_at = time.time() + self._checked_timeout(timeout_s)

    def connect(self, sandbox: Sandbox, timeout_s: float | None) -> None:
        """Let it run, and live so long from now at least.

        Raises:
            RateLimitError: it was paused, and its key has used up what it may.
        """
        ends_at = time.time() + self._checked_timeout(timeout_s)
        was_paused = sandbox.state == "paused"
        if was_paused:
            self._check_usage(sandbox.owner)
        sandbox.state, sandbox.paused_for = "running", None
        sandbox.ends_at = ends_at if was_paused else max(sandbox.ends_at, ends_at)

    async def pause(self, sandbox: Sandbox) -> None:
        """End its processes and keep its files."""
        sandbox.state = "paused"
        await self._end_processes(sandbox)

    async def _end_processes(self, sandbox: Sandbox) -> None:
        sandbox.watchers.clear()
        await sandbox.contexts.close()
        await sandbox.box.kill_all()

    def _pause_soon(self, sandbox: Sandbox) -> None:
        async def end_processes() -> None:
            with contextlib.suppress(LingflashError):
                await self._end_processes(sandbox)

        sandbox.state = "paused"
        task = asyncio.create_task(end_processes())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def kill(self, sandbox: Sandbox, reason: str = "killed") -> None:
        """End it; returns when nothing of it is left."""
        await self._forget(sandbox, reason)

    def _forget(self, sandbox: Sandbox, reason: str) -> asyncio.Task[None]:
        if self._by_id.pop(sandbox.id, None) is not None:
            self._by_token.pop(_digest(sandbox.token), None)
            self.metrics.ended.labels(reason).inc()
            self.metrics.seconds.inc(max(0.0, time.time() - sandbox.started_at))
        return self._end_soon(sandbox)

    def _end_soon(self, sandbox: Sandbox) -> asyncio.Task[None]:
        task = asyncio.create_task(self._end(sandbox))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _end(self, sandbox: Sandbox) -> None:
        for watcher in sandbox.watchers.values():
            if watcher.task is not None:
                watcher.task.cancel()
        await sandbox.contexts.close()
        await sandbox.box.end()
        if sandbox.ends_at:  # somebody had it
            self._charge(sandbox)
        if self._groups is not None:
            await asyncio.to_thread(self._groups.remove, sandbox.id)

    def _charge(self, sandbox: Sandbox) -> None:
        """Count what a sandbox has used since the last time as its key's."""
        cpu_s = max(0.0, self._cpu_s(sandbox) - sandbox.charged_cpu_s)
        output = sandbox.box.output_bytes - sandbox.charged_bytes
        sandbox.charged_cpu_s += cpu_s
        sandbox.charged_bytes += output
        self.metrics.cpu_s.inc(cpu_s)
        self.metrics.output.inc(output)
        self._quotas.charge(sandbox.owner, cpu_s=cpu_s, output_bytes=output)

    def _cpu_s(self, sandbox: Sandbox) -> float:
        return 0.0 if self._groups is None else self._groups.cpu_s(sandbox.id)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.time()
            for sandbox in list(self._by_id.values()):
                self._charge(sandbox)
                if sandbox.state == "running" and (limit := self._quotas.spent(sandbox.owner)):
                    self.metrics.stopped.labels(limit).inc()
                    sandbox.paused_for = limit
                    # Until there is room again and its owner can have come back for it.
                    back_s = now + HOUR_S + self.config.default_timeout_s
                    sandbox.ends_at = max(sandbox.ends_at, back_s)
                    self._pause_soon(sandbox)
                if sandbox.box.gone.is_set():
                    self._forget(sandbox, "died")
                elif sandbox.ends_at <= now:
                    if not sandbox.pauses and (sandbox.state == "running" or sandbox.paused_for):
                        self._forget(sandbox, "expired")
                    elif sandbox.state == "running":
                        self._pause_soon(sandbox)  # one that does not answer holds up nobody

    def _checked_timeout(self, timeout_s: float | None) -> float:
        if timeout_s is None:
            return self.config.default_timeout_s
        if not 0 <= timeout_s <= self.config.max_timeout_s:
            raise InvalidRequestError(
                f"timeout is {timeout_s} s; allowed: 0 to {self.config.max_timeout_s:g}.",
                param="timeout",
            )
        return timeout_s


def when(seconds: float) -> str:
    """A time as the API writes it."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _check_texts(given: Mapping[str, str], name: str) -> None:
    size = sum(len(key) + len(value) for key, value in given.items())
    if size > _MAX_METADATA_BYTES:
        raise InvalidRequestError(
            f"{name} has {size} characters; allowed: {_MAX_METADATA_BYTES}.", param=name
        )
    if any("\0" in key + value or "=" in key for key, value in given.items()):
        raise InvalidRequestError(f"{name} holds a name with = or a zero byte.", param=name)
