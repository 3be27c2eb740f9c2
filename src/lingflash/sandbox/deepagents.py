"""Deep Agents' backend over E2B's API: for `ling sandbox` and for any other server of that API.

    from deepagents import create_deep_agent
    from deepagents.backends import CompositeBackend
    from e2b import Sandbox
    from lingflash.sandbox.deepagents import SandboxBackend

    with Sandbox.create() as sandbox:  # E2B_API_URL and E2B_SANDBOX_URL say where
        backend = CompositeBackend(SandboxBackend(sandbox), {}, artifacts_root="/tmp/agent")
        agent = create_deep_agent(model=..., backend=backend)

Without artifacts_root Deep Agents would keep long results in a folder of "/", which is read-only
here. It needs lingflash[deepagents] and runs in the agent's process; nothing of the server is
imported.
"""

from __future__ import annotations

import re

from deepagents.backends.protocol import (
    ExecuteResponse,
    FileDownloadResponse,
    FileUploadResponse,
)
from deepagents.backends.sandbox import BaseSandbox
from e2b import CommandExitException, Sandbox, SandboxException, TimeoutException

_TIMED_OUT = 124  # as timeout(1) has it
_CUT = re.compile(r"\[\d+ bytes of output over the limit are left out\]\n\Z")
# What a server says of a path, to the words that models are told.
_ERRORS = (
    ("is a directory", "is_directory"),
    ("is a folder", "is_directory"),
    ("no such file", "file_not_found"),
    ("not found", "file_not_found"),
    ("does not exist", "file_not_found"),
    ("not permitted", "permission_denied"),
    ("permission denied", "permission_denied"),
    ("read-only", "permission_denied"),
)


class SandboxBackend(BaseSandbox):
    """A sandbox for an agent; whoever made it ends it.

    Args:
        sandbox: from `e2b.Sandbox.create()` or `.connect()`.
        timeout_s: of a command for which the agent names none; 0 waits for ever.
    """

    def __init__(self, sandbox: Sandbox, *, timeout_s: int = 1800) -> None:
        self._sandbox = sandbox
        self._timeout_s = timeout_s

    @property
    def id(self) -> str:
        """The sandbox's."""
        return self._sandbox.sandbox_id

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """Run a command in bash; both of its streams are one text, in the order they came in."""
        said: list[str] = []
        timeout_s = self._timeout_s if timeout is None else timeout
        try:
            code = self._sandbox.commands.run(
                command, timeout=timeout_s, on_stdout=said.append, on_stderr=said.append
            ).exit_code
        except CommandExitException as error:
            code = error.exit_code
        except SandboxException as error:
            is_late = type(error) is TimeoutException  # those below it: the sandbox is gone
            code = _TIMED_OUT if is_late else None
            said.append(f"\n[ended after {timeout_s} s]" if is_late else f"\n[failed: {error}]")
        output = "".join(said)
        return ExecuteResponse(output, code, truncated=_CUT.search(output) is not None)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """Write files, with the folders that they need; each has its own answer."""
        return [FileUploadResponse(path, self._write(path, content)) for path, content in files]

    def _write(self, path: str, content: bytes) -> str | None:
        if not path.startswith("/"):
            return "invalid_path"
        try:
            self._sandbox.files.write(path, content)
        except SandboxException as error:
            return _told(error)
        return None

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """Read files; each has its own answer."""
        return [self._read(path) for path in paths]

    def _read(self, path: str) -> FileDownloadResponse:
        if not path.startswith("/"):
            return FileDownloadResponse(path, error="invalid_path")
        try:
            content = self._sandbox.files.read(path, format="bytes")
        except SandboxException as error:
            return FileDownloadResponse(path, error=_told(error))
        return FileDownloadResponse(path, bytes(content))


def _told(error: SandboxException) -> str:
    said = str(error).lower()
    return next((word for words, word in _ERRORS if words in said), str(error))
