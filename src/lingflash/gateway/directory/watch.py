"""The newest answer of a directory, for whoever cannot wait for it."""

from __future__ import annotations

import asyncio
import logging

from lingflash.core.log import log_event
from lingflash.gateway.directory.directory import Directory, DirectoryError
from lingflash.protocol.replicas import Replica

logger = logging.getLogger("lingflash.gateway")


class Watch:
    """Asks one directory again and again, while `run` runs.

    A directory that is silent changes nothing: its replicas are as they were, and requests find out
    by themselves who has gone.

    Args:
        every_s: from one answer to the next question.
    """

    def __init__(self, name: str, directory: Directory, every_s: float = 1.0) -> None:
        self.name = name
        self.replicas: tuple[Replica, ...] = ()
        self.problem: str | None = "it was not asked yet"
        self._directory = directory
        self._every_s = every_s

    async def refresh(self) -> None:
        """Ask once."""
        try:
            self.replicas = tuple(await self._directory.replicas())
        except DirectoryError as error:
            problem = str(error)
        except Exception as error:
            # A fault of ours; that nobody asks any more would be another, and not seen.
            problem = f"the directory failed: {error!r}"
        else:
            problem = None
        if problem != self.problem:
            self._tell(problem)
        self.problem = problem

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._every_s)

    def _tell(self, problem: str | None) -> None:
        fields = {"directory": self.name, "replicas": len(self.replicas), "error": problem}
        if problem is None:
            log_event(logger, "directory_answers", fields)
        else:
            log_event(logger, "directory_silent", fields, level=logging.WARNING)
