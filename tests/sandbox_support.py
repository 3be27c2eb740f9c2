"""A `ling sandbox` in a process of its own, and the least client that speaks to it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import httpx
import psutil

from clients_support import missing_client

SECRET = "sentinel-of-the-server"
# Small, so that what fills a sandbox fills it soon.
FLAGS = ("--memory-mb=256", "--disk-mb=32", "--disk-inodes=2000", "--processes=64")
_START_S = 60


def require_bwrap():
    """Skip where bubblewrap is missing; in CI that is a failure."""
    if shutil.which("bwrap") is None:
        missing_client("bubblewrap is not installed; tests/install-debian.sh does it")


def sandbox_command(*flags):
    """The command of a server, of an ordinary user wherever the tests run."""
    user = ["--user=nobody"] if os.getuid() == 0 else []
    return [sys.executable, "-m", "lingflash", "sandbox", "--port=0", *user, *flags]


def refusal(*command, env=None):
    """Run a server that must not start; gives its exit status and what it said last."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})}
    )
    return done.returncode, done.stderr.strip().splitlines()[-1]


class SandboxServer:
    """A server that runs until it is closed.

    Args:
        prefix: a command that runs it.
    """

    def __init__(self, *flags, prefix=()):
        require_bwrap()
        env = {**os.environ, "SERVER_SECRET": SECRET}
        self.process = subprocess.Popen(
            [*prefix, *sandbox_command(*FLAGS, *flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        self.lines = []
        self.url = None
        self._found = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._found.wait(_START_S) or self.url is None:
            self.close()
            raise RuntimeError("the server did not start: " + "".join(self.lines))

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"serving sandboxes on (http://\S+?);", line):
                self.url = match[1]
                self._found.set()
        self._found.set()

    def client(self, key=None, timeout=30):
        """An HTTP client."""
        headers = {} if key is None else {"x-api-key": key}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, verify=False)

    def create(self, key=None, **fields):
        """A sandbox."""
        with self.client(key) as client:
            answer = client.post("/v2/sandboxes", json={"templateID": "base", **fields})
            assert answer.status_code == 201, answer.text
            return SandboxClient(self, answer.json(), key)

    def ours(self):
        """The processes below the server."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def close(self):
        """End it as an operator would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self._reader.join(5)
        self.process.stdout.close()


@dataclass
class Ran:
    """How a command ended; `failed` is what ended its stream otherwise."""

    stdout: str = ""
    stderr: str = ""
    code: int | None = None
    status: str = ""
    failed: dict | None = None
    seconds: float = 0.0


class SandboxClient:
    """One sandbox."""

    def __init__(self, server, told, key=None):
        self.server = server
        self.id = told["sandboxID"]
        self.token = told["envdAccessToken"]
        self.key = key
        self.http = httpx.Client(
            base_url=server.url,
            headers={"x-access-token": self.token, "e2b-sandbox-id": self.id},
            timeout=60,
            verify=False,  # there is no TLS; to load certificates would take longer than the rest
        )

    def run(self, script, *, timeout_s=None, env=None, argv=None, stdin=False):
        """Run a shell script, or a program, and take all that it writes."""
        argv = argv or ["/bin/bash", "-c", script]
        config = {"cmd": argv[0], "args": argv[1:], "envs": env or {}}
        ran, began = Ran(), time.monotonic()
        for message in self.stream(
            "process.Process/Start", timeout_s=timeout_s, process=config, stdin=stdin
        ):
            event = message.get("event", {})
            if "data" in event:
                for name, data in event["data"].items():
                    text = base64.b64decode(data).decode(errors="replace")
                    setattr(ran, name, getattr(ran, name) + text)
            elif "end" in event:
                ran.code, ran.status = event["end"]["exitCode"], event["end"]["status"]
            elif "error" in message:
                ran.failed = message["error"]
        ran.seconds = time.monotonic() - began
        return ran

    def python(self, source, **options):
        """Run a Python program."""
        return self.run(None, argv=["python", "-c", source], **options)

    def stream(self, method, *, timeout_s=None, **message):
        """The messages that a streaming call is answered by, then its end."""
        body = json.dumps(message).encode()
        headers = {"content-type": "application/connect+json"}
        if timeout_s is not None:
            headers["connect-timeout-ms"] = str(int(timeout_s * 1000))
        content = struct.pack(">BI", 0, len(body)) + body
        with self.http.stream("POST", f"/{method}", content=content, headers=headers) as answer:
            buffer = b""
            for part in answer.iter_raw():
                buffer += part
                while len(buffer) >= 5:
                    _, size = struct.unpack_from(">BI", buffer)
                    if len(buffer) < 5 + size:
                        break
                    yield json.loads(buffer[5 : 5 + size])
                    buffer = buffer[5 + size :]

    def call(self, method, **message):
        """The answer of a unary call."""
        return self.http.post(f"/{method}", json=message)

    def write(self, path, content, **headers):
        """Upload a file."""
        headers = {"content-type": "application/octet-stream", **headers}
        return self.http.post("/files", params={"path": path}, content=content, headers=headers)

    def read(self, path):
        """Download a file."""
        return self.http.get("/files", params={"path": path})

    def execute(self, code, **fields):
        """Run code in a context; gives the events."""
        answer = self.http.post("/execute", json={"code": code, **fields})
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    def kill(self):
        """End it."""
        with self.server.client(self.key) as client:
            answer = client.delete(f"/sandboxes/{self.id}")
        self.http.close()
        return answer.status_code


def wait_for(condition, what, seconds=20):
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.02)
