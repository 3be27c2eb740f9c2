"""Variables that Ray reads once, when it is imported; so they are set before."""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping

from lingflash.cluster.config import ClusterConfig


def prepare(config: ClusterConfig, environ: MutableMapping[str, str]) -> None:
    """Say what Ray is to leave alone, and who may ask a cluster that is started here.

    Of one that runs already its operator said so: this process needs its RAY_AUTH_TOKEN, if any.
    """
    environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to its makers
    # Ray is to hide GPUs from none but those who asked for some; without this it warns of that.
    environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if config.ray.address == "local":
        # Its ports answer nobody without this; whoever could ask them could run code.
        environ["RAY_AUTH_MODE"] = "token"
        environ["RAY_AUTH_TOKEN"] = hashlib.sha256(f"ray:{config.token}".encode()).hexdigest()
