"""What the base install leaves out, and the one sentence that says how to get it.

Nothing asks for these packages before it needs them: a plain `import torch` fails inside of
`naming_extras`, which the command line and `lingflash.LLM` are run in.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from lingflash.core.errors import ConfigError

EXTRAS = {
    "torch": "engine",
    "safetensors": "engine",
    "triton": "cuda",
    "asyncpg": "postgres",
    "redis": "redis",
    "opentelemetry": "otel",
    "ray": "cluster",
}
"""The packages that only an extra of ours brings."""


@contextlib.contextmanager
def naming_extras() -> Iterator[None]:
    """Turn a failed import of a package in EXTRAS into an error that names the extra.

    Raises:
        ConfigError: instead of that ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (package := (error.name or "").partition(".")[0]) not in EXTRAS:
            raise
        raise _missing(package) from None


def require_engine() -> None:
    """For a process that does not import torch itself, but starts one that does.

    Raises:
        ConfigError: the engine is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise _missing("torch")


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"This needs {package}, which is not installed: pip install 'lingflash[{EXTRAS[package]}]'."
    )
