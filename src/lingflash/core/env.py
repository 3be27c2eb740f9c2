"""Environment variables: each stands for one flag of `ling serve`, and no other is accepted.

A flag wins over its variable. A variable that begins with LINGFLASH_ but is not in the table is an
error, since a misspelt setting that does nothing is worse than a refused start.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from lingflash.core.errors import ConfigError

PREFIX = "LINGFLASH_"

# Flag to variable. Several API keys or model names in one variable are separated by spaces.
SERVE_VARIABLES: dict[str, str] = {
    "MODEL": "LINGFLASH_MODEL",
    "--host": "LINGFLASH_HOST",
    "--port": "LINGFLASH_PORT",
    "--device": "LINGFLASH_DEVICE",
    "--dtype": "LINGFLASH_DTYPE",
    "--max-model-len": "LINGFLASH_MAX_MODEL_LEN",
    "--rope-scaling": "LINGFLASH_ROPE_SCALING",
    "--max-num-seqs": "LINGFLASH_MAX_NUM_SEQS",
    "--max-num-batched-tokens": "LINGFLASH_MAX_NUM_BATCHED_TOKENS",
    "--max-num-waiting": "LINGFLASH_MAX_NUM_WAITING",
    "--memory-fraction": "LINGFLASH_MEMORY_FRACTION",
    "--block-size": "LINGFLASH_BLOCK_SIZE",
    "--tensor-parallel-size": "LINGFLASH_TENSOR_PARALLEL_SIZE",
    "--num-speculative-tokens": "LINGFLASH_NUM_SPECULATIVE_TOKENS",
    "--batch-invariant": "LINGFLASH_BATCH_INVARIANT",
    "--prefix-caching": "LINGFLASH_PREFIX_CACHING",
    "--cache-self-test": "LINGFLASH_CACHE_SELF_TEST",
    "--host-cache-gib": "LINGFLASH_HOST_CACHE_GIB",
    "--seed": "LINGFLASH_SEED",
    "--served-model-name": "LINGFLASH_SERVED_MODEL_NAME",
    "--api-key": "LINGFLASH_API_KEY",
    "--admin-api-key": "LINGFLASH_ADMIN_API_KEY",
    "--engine-restarts": "LINGFLASH_ENGINE_RESTARTS",
    "--drain-timeout-s": "LINGFLASH_DRAIN_TIMEOUT_S",
    "--request-timeout-s": "LINGFLASH_REQUEST_TIMEOUT_S",
    "--max-body-mb": "LINGFLASH_MAX_BODY_MB",
    "--responses-db": "LINGFLASH_RESPONSES_DB",
    "--responses-max-mb": "LINGFLASH_RESPONSES_MAX_MB",
    "--responses-max-age-s": "LINGFLASH_RESPONSES_MAX_AGE_S",
    "--log-level": "LINGFLASH_LOG_LEVEL",
}


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse variables that begin with LINGFLASH_ and mean nothing.

    Args:
        environ: such as os.environ.

    Raises:
        ConfigError: one is unknown; the message names it and the closest known one.
    """
    known = set(SERVE_VARIABLES.values())
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ConfigError(
                f"The environment variable {name} is not known{hint} "
                "Unset it, or see `ling serve --help` for those that are.",
                param=name,
            )
