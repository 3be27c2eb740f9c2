"""What every directory is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lingflash.protocol.replicas import Replica


class DirectoryError(Exception):
    """A directory could not be asked, or its answer is none; the message says why."""


class Directory(Protocol):
    """Knows servers of one model."""

    async def replicas(self) -> Sequence[Replica]:
        """All that there are now, those that are not ready or drain among them; no URL twice.

        A server that cannot be reached is one that is not ready: that is no error.

        Raises:
            DirectoryError: who knows could not be asked.
        """
        ...
