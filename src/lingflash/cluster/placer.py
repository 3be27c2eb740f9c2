"""What the controller asks of whoever places replicas on machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lingflash.cluster.members import Generation, Report


class ReplicaGone(Exception):
    """A replica is no more; the message says what is known of why."""


class Placer(Protocol):
    """Places replicas, and carries questions to them."""

    keeps_replicas: bool
    """Whether they go on when this process ends, to be found again by `adopt`."""

    def adopt(self) -> Sequence[str]:
        """Ids of the replicas that run already."""
        ...

    def place(self, replica: str, generation: Generation) -> None:
        """Begin to start one; it may wait for a machine that has room."""
        ...

    async def report(self, replica: str) -> Report:
        """What one says of itself; waits for as long as it is being placed.

        Raises:
            ReplicaGone: it, its process or its machine is gone.
        """
        ...

    async def drain(self, replica: str) -> None:
        """Let one finish what runs, and end it; returns when its server has ended.

        Raises:
            ReplicaGone: it has gone.
        """
        ...

    def kill(self, replica: str) -> None:
        """End one at once, wherever it is in its life; its resources are free then."""
        ...

    def nodes(self) -> Sequence[dict[str, Any]]:
        """Machines: address, resources, whether each is alive."""
        ...
