"""Every table and key of cluster.toml. docs/cluster.md is checked against these fields."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field
from pathlib import Path

import msgspec

from lingflash.core.log import LEVELS
from lingflash.core.settings import above, at_least, between, one_of, setting
from lingflash.core.toml_tables import TableReader, read_toml

_EVERYWHERE = ("0.0.0.0", "::")
# What the cluster says itself to each `ling serve`.
_OWN_FLAGS = ("--host", "--port", "--api-key", "--api-key-file", "--drain-timeout-s", "--ui")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTable:
    """`[cluster]`: where gateways and `ling cluster status` ask, and the token that they need."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8200, "Port to listen on; 0 takes a free one.", bound=between(0, 65535))
    token_variable: str | None = setting(
        None, "Variable with the cluster's token, which is the key of the replicas, too."
    )
    token_file: Path | None = setting(None, "The same in a file.")
    log_level: str = setting("info", "debug, info, warning or error.", bound=one_of(LEVELS))


@dataclass(frozen=True, slots=True, kw_only=True)
class RayTable:
    """`[ray]`: the cluster of Ray that places the replicas."""

    address: str = setting(
        "local",
        "`local` starts one on this machine, which ends with `up`; `auto` or HOST:PORT takes one "
        "that runs, in which replicas go on when `up` ends.",
    )
    namespace: str = setting("lingflash", "Two clusters in one Ray differ in this.")
    num_cpus: int | None = setting(
        None, "Of `local`: CPUs to give out; all if empty.", bound=at_least(1)
    )
    num_gpus: int | None = setting(
        None, "Of `local`: GPUs to give out; all if empty.", bound=at_least(0)
    )
    object_store_mb: int = setting(
        100, "Of `local`: Ray's object store, which nothing here uses.", bound=at_least(75)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTable:
    """`[replica]`: one `ling serve`, and what it takes of its machine."""

    model: str = setting(MISSING, "As `ling serve` takes it; every machine must have it.")
    flags: tuple[str, ...] = setting((), "Further flags of `ling serve`.")
    host: str | None = setting(
        None,
        "Address that each listens on; if empty its machine's as Ray knows it, or 127.0.0.1 where "
        "Ray is `local`.",
    )
    num_gpus: int = setting(0, "GPUs of each; Ray says which.", bound=at_least(0))
    num_cpus: float = setting(
        1.0, "CPUs of each, by which Ray counts; nothing is held to them.", bound=above(0)
    )
    start_timeout_s: float = setting(
        600.0, "From its start until it is ready, and how long it may be not ready.", bound=above(0)
    )
    notice_s: float = setting(
        2.0,
        "How long it is told of as draining before it refuses requests: longer than gateways ask.",
        bound=at_least(0),
    )
    drain_timeout_s: float = setting(
        120.0, "How long running requests may take when it is drained.", bound=at_least(0)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleTable:
    """`[scale]`: how many replicas."""

    min: int = setting(1, "Fewest replicas.", bound=between(1, 10_000))
    max: int | None = setting(None, "Most replicas; `min` if empty.", bound=between(1, 10_000))
    first_token_s: float = setting(
        2.0, "Predicted time to first token above which replicas are added.", bound=above(0)
    )
    cooldown_s: float = setting(
        120.0,
        "How long fewer would have done, and nothing was changed, before one is taken away.",
        bound=at_least(0),
    )
    surge: int = setting(
        1,
        "Replicas beyond that number while old ones are replaced. 0 where no GPU is free: then one "
        "is drained first.",
        bound=between(0, 100),
    )

    @property
    def most(self) -> int:
        """Most replicas."""
        return self.min if self.max is None else self.max


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The top of the file."""

    cluster: ClusterTable = field(default_factory=ClusterTable)
    ray: RayTable = field(default_factory=RayTable)
    replica: ReplicaTable
    scale: ScaleTable = field(default_factory=ScaleTable)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """What a file says, ready to be used."""

    file: str
    cluster: ClusterTable
    ray: RayTable
    replica: ReplicaTable
    scale: ScaleTable
    token: str = field(repr=False)

    @property
    def digest(self) -> str:
        """Changes when replicas that run are not what the file says any more."""
        told = msgspec.json.encode((asdict(self.replica), self.token))
        return hashlib.sha256(told).hexdigest()[:12]


def load_cluster(path: Path, environ: Mapping[str, str]) -> ClusterConfig:
    """Read cluster.toml.

    Raises:
        ConfigError: it cannot be used; one sentence with the file and the key.
    """
    reader = TableReader(str(path), path.parent, environ)
    given = read_toml(path)
    if "replica" not in given:
        raise reader.refuse("replica", "is missing; write [replica] with a model.")
    tables = reader.read(_File, given, "")
    scale, flags = tables.scale, tables.replica.flags
    if scale.most < scale.min:
        raise reader.refuse("scale.max", f"is {scale.max}, below scale.min, which is {scale.min}.")
    if tables.replica.host in _EVERYWHERE:
        raise reader.refuse(
            "replica.host",
            f"is {tables.replica.host!r}, every address of a machine; gateways need one of them. "
            "Left out, it is the one by which Ray knows the machine.",
        )
    for flag in (each.partition("=")[0] for each in flags):
        if flag in _OWN_FLAGS:
            raise reader.refuse("replica.flags", f"holds {flag}, which the cluster sets itself.")
    token = reader.secret("cluster.token", tables.cluster.token_variable, tables.cluster.token_file)
    if token is None:
        raise reader.refuse(
            "cluster", "has no token; name one by token_variable or token_file: whoever has it may "
            "use the replicas and end them."
        )  # fmt: skip
    return ClusterConfig(
        file=str(path),
        cluster=tables.cluster,
        ray=tables.ray,
        replica=tables.replica,
        scale=scale,
        token=token,
    )
