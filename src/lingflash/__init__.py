"""lingflash runs Ling-2.6-flash and its family for agents.

    from lingflash import LLM, SamplingParams

Importing the package loads no torch; `LLM` does when it is first used, and needs lingflash[engine].
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lingflash.core.errors import LingflashError
    from lingflash.core.types import SamplingParams
    from lingflash.offline.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "LingflashError", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "lingflash.offline.llm",
    "LingflashError": "lingflash.core.errors",
    "SamplingParams": "lingflash.core.types",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from lingflash.core.extras import naming_extras

        with naming_extras():
            return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lingflash' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
