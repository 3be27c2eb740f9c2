"""Containers: where the code of one conversation runs and its files lie, each a sandbox of its own.

A container is its owner's alone. Its sandbox is made when it is first used, and lives for as long
after its last use as the container: if this server dies, the sandbox server still ends it in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from typing import Any

from lingflash.core.errors import CapacityError, LingflashError, NotFoundError, QueueFullError
from lingflash.core.log import log_event
from lingflash.link.sandbox_server import Sandbox, SandboxServer

logger = logging.getLogger("lingflash.api")

IDLE_S = 20 * 60.0
"""How long a container lives after its last use, if its maker says nothing; as OpenAI's."""
# A sandbox outlives its container by the run that may just have begun.
_LONGER_S = 60.0
_END_S = 1.0
_LOOKS, _LOOK_EVERY_S = 20, 0.5


@dataclass(slots=True, kw_only=True, eq=False)
class Container:
    """One container.

    Args:
        is_auto: a response made it by itself, so it goes first where there is no room.
        sandbox: None until it is first used.
        uploaded: paths of files that its owner put there.
        making: held while its sandbox is made.
        busy: held while its code runs: one piece after the other.
        listing: held while its files are listed: of thousands each list takes the server's time.
        num_users: requests that hold it now.
    """

    owner: str
    name: str
    is_auto: bool
    idle_s: float = IDLE_S
    id: str = field(default_factory=lambda: "cntr_" + secrets.token_hex(24))
    created_at: float = field(default_factory=time.time)
    last_active_at: float = field(default_factory=time.time)
    sandbox: Sandbox | None = None
    uploaded: set[str] = field(default_factory=set[str])
    making: asyncio.Lock = field(default_factory=asyncio.Lock)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    listing: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0

    @property
    def is_over(self) -> bool:
        """Whether it was not used for longer than it lives."""
        return not self.num_users and time.time() - self.last_active_at > self.idle_s


class Containers:
    """All containers of a server.

    Args:
        sandboxes: where they run.
        max_per_owner: of one API key; one more takes the place of the automatic one that was not
            used for longest.
        run_s: the longest run of one piece of code.
    """

    def __init__(self, sandboxes: SandboxServer, *, max_per_owner: int, run_s: float) -> None:
        self.sandboxes = sandboxes
        self.run_s = run_s
        self._max_per_owner = max_per_owner
        self._by_id: dict[str, Container] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def add(self, owner: str, *, name: str, is_auto: bool, idle_s: float = IDLE_S) -> Container:
        """Make a container, whose sandbox is not made yet.

        Raises:
            QueueFullError: this owner has as many as one may, and none can go.
        """
        self._drop_old()
        mine = [each for each in self._by_id.values() if each.owner == owner]
        if len(mine) >= self._max_per_owner and not self._make_room(mine, owner):
            raise QueueFullError(
                f"This API key has {len(mine)} containers, which is all that one may have; delete "
                "one, or raise --max-containers-per-key."
            )
        container = Container(owner=owner, name=name, is_auto=is_auto, idle_s=idle_s)
        self._by_id[container.id] = container
        return container

    def get(self, owner: str, container_id: str, param: str = "container_id") -> Container:
        """The container of an id, if it is the caller's.

        Raises:
            NotFoundError: there is none, it is another's, or it has expired.
        """
        self._drop_old()
        container = self._by_id.get(container_id)
        if container is None or container.owner != owner:
            raise NotFoundError(
                f"There is no container {container_id[:80]!r} here; it never was, was deleted, or "
                "has expired.",
                param=param,
            )
        return container

    def all_of(self, owner: str) -> list[Container]:
        """Somebody's containers, the oldest first."""
        self._drop_old()
        return [each for each in self._by_id.values() if each.owner == owner]

    def forget(self, container: Container) -> None:
        """End a container, and soon its sandbox."""
        self._by_id.pop(container.id, None)
        sandbox, container.sandbox = container.sandbox, None
        if sandbox is not None:
            self._run_beside(self._kill(sandbox))

    @contextlib.asynccontextmanager
    async def open(self, container: Container) -> AsyncGenerator[Sandbox, None]:
        """The sandbox of a container, which does not expire for as long as the block is open.

        Raises:
            NotFoundError: it has ended; the container with it.
            CapacityError, SandboxGoneError: none can be made.
        """
        container.num_users += 1
        try:
            life_s = container.idle_s + self.run_s + _LONGER_S
            async with container.making:
                if container.sandbox is None:
                    await self._make(container, life_s)
                else:
                    await self._keep(container, life_s)
                sandbox = container.sandbox
            assert sandbox is not None
            yield sandbox
        finally:
            container.num_users -= 1
            container.last_active_at = time.time()

    async def look(self) -> None:
        """Log it if after a while there is still no sandbox server; it may start later than we."""
        why = ""
        for _ in range(_LOOKS):
            try:
                return await self.sandboxes.check()
            except LingflashError as error:
                why = error.message
                await asyncio.sleep(_LOOK_EVERY_S)
        fields = {"url": self.sandboxes.url, "message": why}
        log_event(logger, "no_sandbox_server", fields, level=logging.ERROR)

    async def close(self) -> None:
        """End them all; what the sandbox server does not end in a second ends with its lease."""
        for container in list(self._by_id.values()):
            self.forget(container)
        if self._ending:
            await asyncio.wait(self._ending, timeout=_END_S)

    async def _make(self, container: Container, life_s: float) -> None:
        while True:
            making = asyncio.create_task(self.sandboxes.create(life_s))
            try:
                made = await asyncio.shield(making)
                break
            except asyncio.CancelledError:
                # It may be made by now, or soon: nobody else knows of it.
                self._run_beside(self._kill_made(making))
                raise
            except CapacityError:
                others = [each for each in self._by_id.values() if each.sandbox is not None]
                if not self._make_room(others, container.owner):
                    raise
                await asyncio.wait(self._ending)
        container.sandbox = made
        # What starts its kernel, so that the time of a run is the code's own.
        async for _ in self.sandboxes.execute(made, ""):
            pass
        if container.id not in self._by_id:  # deleted meanwhile
            self.forget(container)
            raise NotFoundError(f"The container {container.id} was deleted.")

    async def _keep(self, container: Container, life_s: float) -> None:
        assert container.sandbox is not None
        try:
            await self.sandboxes.keep(container.sandbox, life_s)
        except NotFoundError:
            self.forget(container)
            raise NotFoundError(f"The container {container.id} has ended.") from None

    def _make_room(self, among: list[Container], owner: str) -> bool:
        """End the automatic container that was not used for longest, rather one of the owner's."""
        idle = [each for each in among if each.is_auto and not each.num_users]
        if not idle:
            return False
        self.forget(min(idle, key=lambda each: (each.owner != owner, each.last_active_at)))
        return True

    def _drop_old(self) -> None:
        for container in [each for each in self._by_id.values() if each.is_over]:
            self.forget(container)

    def _run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _kill(self, sandbox: Sandbox) -> None:
        with contextlib.suppress(LingflashError):  # then its lease ends it
            await self.sandboxes.kill(sandbox)

    async def _kill_made(self, making: asyncio.Task[Sandbox]) -> None:
        with contextlib.suppress(LingflashError):
            await self._kill(await making)
