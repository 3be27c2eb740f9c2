"""Ray as what places replicas; nothing else of the package imports it. After `ray_environment`.

Ray starts an actor where the GPUs are that it was asked for, sets `CUDA_VISIBLE_DEVICES`, and says
when the actor or its machine is gone. An actor's only work is its `ling serve`, a child process.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from lingflash.cluster.child import ServeChild
from lingflash.cluster.config import ClusterConfig, RayTable, ReplicaTable
from lingflash.cluster.members import Generation, Report
from lingflash.cluster.placer import ReplicaGone
from lingflash.core.errors import ConfigError

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class _Spec:
    """What an actor is started with."""

    replica: ReplicaTable
    host: str | None
    generation: Generation
    token: str = field(repr=False)


class EngineReplica:
    """The actor."""

    def __init__(self, spec: _Spec) -> None:
        self._generation = spec.generation
        self._node = ray.util.get_node_ip_address()
        # Ray's main thread makes this, and the child ends with it: that is, with the actor.
        self._child = ServeChild(spec.replica, spec.host or self._node, spec.token)

    async def report(self) -> Report:
        """See Placer."""
        return Report(
            generation=self._generation,
            node=self._node,
            url=self._child.url,
            health=await self._child.health(),
            end=self._child.why_ended(),
        )

    async def drain(self) -> None:
        """See Placer."""
        await self._child.drain()


class RayPlacer:
    """Places replicas in one cluster of Ray. Made by `connect`."""

    def __init__(self, config: ClusterConfig) -> None:
        self.keeps_replicas = config.ray.address != "local"
        self._config = config
        self._actors: dict[str, Any] = {}

    @classmethod
    def connect(cls, config: ClusterConfig) -> RayPlacer:
        """Join the cluster that the file names, or start one; takes seconds.

        Raises:
            ConfigError: there is none, or it refuses.
        """
        options = {
            "namespace": config.ray.namespace,
            "log_to_driver": False,
            "logging_level": logging.WARNING,
        }
        if config.ray.address == "local":
            options |= _local_options(config.ray)
        try:
            ray.init(address=config.ray.address, **options)
        except (RayError, OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{config.file}: ray.address is {config.ray.address!r}, which cannot be joined: "
                f"{_on_one_line(error).rstrip('.')}. Start Ray on this machine by `ray start`, "
                "set RAY_AUTH_TOKEN if it wants one, or write local.",
                param="ray.address",
            ) from None
        return cls(config)

    def adopt(self) -> list[str]:
        """See Placer."""
        if self.keeps_replicas:
            for name in ray.util.list_named_actors():
                with contextlib.suppress(ValueError):  # it has ended meanwhile
                    self._actors[name] = ray.get_actor(name)
        return sorted(self._actors)

    def place(self, replica: str, generation: Generation) -> None:
        """See Placer."""
        table = self._config.replica
        actor = ray.remote(EngineReplica).options(
            name=replica,
            lifetime="detached" if self.keeps_replicas else None,
            num_cpus=table.num_cpus,
            num_gpus=table.num_gpus,
            scheduling_strategy="SPREAD",
            max_restarts=0,  # the controller starts another, which is another
        )
        host = table.host or (None if self.keeps_replicas else "127.0.0.1")
        self._actors[replica] = actor.remote(_Spec(table, host, generation, self._config.token))

    async def report(self, replica: str) -> Report:
        """See Placer."""
        return await self._call(replica, "report")

    async def drain(self, replica: str) -> None:
        """See Placer."""
        await self._call(replica, "drain")

    async def _call(self, replica: str, method: str) -> Any:
        actor = self._actors.get(replica)
        if actor is None:
            raise ReplicaGone("it was ended")
        try:
            return await getattr(actor, method).remote()
        except RayError as error:
            raise ReplicaGone(_on_one_line(error)) from None

    def kill(self, replica: str) -> None:
        """See Placer."""
        actor = self._actors.pop(replica, None)
        if actor is not None:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(actor)

    def nodes(self) -> Sequence[dict[str, Any]]:
        """See Placer."""
        return [
            {
                "address": each["NodeManagerAddress"],
                "alive": each["Alive"],
                "cpus": each["Resources"].get("CPU", 0),
                "gpus": each["Resources"].get("GPU", 0),
            }
            for each in ray.nodes()
        ]

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        ray.shutdown()


def _local_options(table: RayTable) -> dict[str, Any]:
    """A cluster that is this machine's alone."""
    return {
        "num_cpus": table.num_cpus,
        "num_gpus": table.num_gpus,
        "object_store_memory": table.object_store_mb * _MIB,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
    }


def _on_one_line(error: Exception) -> str:
    """What Ray says, and not too much of it."""
    return " ".join(str(error).split())[:400]
