"""A network namespace of its own, with a server and whatever a program needs to run beside it.

The namespace has a loopback and nothing else, so that a program can reach the server alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from lingflash.cli.connect_program import Program, Settings
from lingflash.core.hub import bundled_folder
from lingflash.text.tokenizer import Tokenizer

HERE = Path(__file__).parent
URL = "http://127.0.0.1:8000"
KEY = "dummy"
ANSWER = "<role>ASSISTANT</role>"
# Without root a user namespace around it gives the right to make one for the network.
_AS_ROOT = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
_INTO = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
# Nothing that a program leaves running outlives it.
_ALONE = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]


class Record:
    """What the server wrote down: prompts, answers, refusals."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tokenizer = Tokenizer.from_folder(bundled_folder())

    def entries(self, *kinds: str) -> list[dict]:
        """Those of some kinds, in order."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [entry for entry in map(json.loads, lines) if entry["kind"] in kinds]

    def refused(self) -> list[dict]:
        """Requests that ended in an error, apart from what no client takes for one."""
        return [entry for entry in self.entries("http") if entry["method"] != "HEAD"]

    def sizes(self) -> list[int]:
        """Tokens of each prompt of the main loop."""
        return [len(entry["prompt"]) for entry in self.entries("main")]

    def last_prompt(self) -> str:
        """The text of the main loop's last prompt."""
        return self._tokenizer.decode(self.entries("main")[-1]["prompt"])

    def check_continues(self, *, loops: int = 1, turns: int) -> None:
        """Each prompt of the main loop begins with an earlier one and its answer, to the token.

        Args:
            loops: so many prompts may begin anew: the first, and such with no answer in them.
            turns: each loop has as many prompts at least.
        """
        entries = self.entries("main")
        assert len(entries) >= loops * turns, f"{len(entries)} prompts in the main loop"
        begun = 0
        for number, entry in enumerate(entries):
            prompt = entry["prompt"]
            earlier = [other["prompt"] + other["answer"] for other in entries[:number]]
            if any(prompt[: len(known)] == known for known in earlier):
                continue
            if number == 0 or self._tokenizer.decode(prompt).count(ANSWER) == 1:
                begun += 1
                continue
            same, known = max((_num_same(known, prompt), known) for known in earlier)
            was, now = (
                self._tokenizer.decode(ids[max(same - 40, 0) : same + 40])
                for ids in (known, prompt)
            )
            raise AssertionError(
                f"prompt {number} keeps {same} of {len(known)} tokens: {was!r} became {now!r}"
            )
        assert begun == loops

    def __str__(self) -> str:
        lines = []
        for entry in self.entries("main", "other", "http"):
            if entry["kind"] == "http":
                said = (entry["method"], entry["path"], str(entry["status"]), entry["answer"][:500])
                lines.append(" ".join(said))
            else:
                tail, answer = (
                    self._tokenizer.decode(ids)
                    for ids in (entry["prompt"][-30:], entry["answer"][:60])
                )
                lines.append(
                    f"{entry['kind']} {len(entry['prompt'])} tokens ...{tail!r} -> {answer!r}"
                )
        return "\n".join(lines)


def _num_same(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(slots=True)
class Run:
    """What a program left: exit code, what it printed, and how long it took."""

    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out[-6000:]}\n--- stderr\n{self.err[-6000:]}"


class Cell:
    """One program's world: a namespace, an empty home, a folder to work in.

    Args:
        folder: for the home, the work and the records.
        server: command of the server to start inside; it must print "ready" or "serving".
        record: of that server.
    """

    def __init__(self, folder: Path, server: list[str], record: Record) -> None:
        self.record = record
        self.path = os.environ["PATH"]
        self.home, self.work = folder / "home", folder / "work"
        for made in (self.home, self.work):
            made.mkdir(parents=True)
        # Short: programs make sockets in it, whose paths may have 107 bytes.
        self._temporary = tempfile.TemporaryDirectory(prefix="cell-", ignore_cleanup_errors=True)
        self._folder = folder
        log = (folder / "server.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            ["unshare", *_AS_ROOT, "--net", *server],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        log.close()  # the process has its own
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 150
        while not any(word in self.log() for word in ("ready", "serving ")):
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def log(self) -> str:
        """What the server said so far."""
        return (self._folder / "server.log").read_text(encoding="utf-8")

    def close(self) -> None:
        """End the server; it must end by itself at a signal."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._temporary.cleanup()

    def apply(self, program: Program, settings: Settings) -> dict[str, str]:
        """Write a program's settings into the home; gives the variables to set."""
        for name, text in program.files.items():
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(settings.fill(text), encoding="utf-8")
        return {name: settings.fill(value) for name, value in program.environment.items()}

    def run(self, command, *, environment=None, stdin="", timeout_s=100) -> Run:
        """Run something inside, with a clean environment, and end all that it started."""
        began = time.monotonic()
        clean = {
            "PATH": self.path,
            "HOME": str(self.home),
            "TMPDIR": self._temporary.name,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "NO_COLOR": "1",
        }
        process = subprocess.Popen(
            ["nsenter", f"--target={self._process.pid}", *_INTO, "--net", "--", *_ALONE, *command],
            cwd=self.work,
            env={**clean, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            out, err = process.communicate(stdin, timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            err += f"\n(ended after {timeout_s} s)"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return Run(process.returncode, out, err, time.monotonic() - began)


def write_png(path, size=16):
    """A red square."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\xff\0\0" * size for _ in range(size)))
    data = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
