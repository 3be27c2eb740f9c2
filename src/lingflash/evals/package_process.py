"""A program in an environment of its own, asked by lines of JSON: one question, one answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from typing import Any

from lingflash.core.errors import LingflashError
from lingflash.evals.environment import PACKAGES, environment_python

_MAX_LINE_BYTES = 1 << 28


class PackageProcess:
    """`packages/run_NAME.py`, run by the environment's interpreter; it sees none of our modules.

    It works in an empty folder that goes with it, without network settings or keys of ours.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._folder = tempfile.TemporaryDirectory(
            prefix="lingflash-eval-", ignore_cleanup_errors=True
        )

    async def start(self) -> None:
        """Begin.

        Raises:
            LingflashError: its packages cannot be had.
        """
        python = await environment_python(self._name)
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
        # The order of sets must not change what a package gives.
        kept |= {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "TQDM_DISABLE": "1"}
        self._process = await asyncio.create_subprocess_exec(
            str(python), "-s", str(PACKAGES / f"run_{self._name}.py"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            cwd=self._folder.name, env=kept, limit=_MAX_LINE_BYTES,
        )  # fmt: skip

    async def call(self, function: str, **values: Any) -> Any:
        """What one of its functions returns.

        Raises:
            LingflashError: it failed, or is gone.
        """
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        async with self._turn:
            # A cancelled call leaves an answer behind, so it ends the process with it.
            try:
                process.stdin.write(json.dumps([function, values]).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            except asyncio.CancelledError:
                process.kill()
                raise
            except (OSError, ValueError):
                line = b""
        if not line:
            raise LingflashError(f"The program around {self._name} ended; what it said is above.")
        answer = json.loads(line)
        if "error" in answer:
            raise LingflashError(f"{self._name} failed at {function}: {answer['error']}")
        return answer["value"]

    async def stop(self) -> None:
        """End it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._folder.cleanup()
