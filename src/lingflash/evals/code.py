"""Benchmarks that run a model's programs: only in a sandbox, never here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from lingflash.core.errors import ConfigError
from lingflash.evals.task import Ask, Verdict


class CodeRunner(Protocol):
    """Asks for a program and runs it against its tests, away from this machine's files."""

    async def attempt(self, problem: Mapping[str, Any], ask: Ask) -> Verdict:
        """Solved if every test passes in time."""
        ...


def require_code_runner(what: str) -> CodeRunner:
    """The sandbox.

    Raises:
        ConfigError: this version has none.
    """
    raise ConfigError(
        f"{what} runs programs that a model wrote, which needs a sandbox, and this version of "
        "lingflash has none; nothing is run without one.",
        param="task",
    )
