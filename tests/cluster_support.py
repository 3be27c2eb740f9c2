"""A cluster on two local nodes of Ray, a gateway that asks its directory, clients under load."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from api_support import wait_until
from gateway_support import OpenToAll, RunningGateway
from lingflash.bench.over_http.server_process import free_port

TOKEN = "tok-of-the-cluster"
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "tok-of-ray",
}


@contextlib.contextmanager
def ray_nodes():
    """Two nodes; gives the address, and what ends the second as kill -9 would."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "ray_nodes.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **RAY},
    )

    def remove():
        process.stdin.write("remove\n")
        process.stdin.flush()
        assert process.stdout.readline() == "removed\n"

    try:
        yield process.stdout.readline().strip(), remove
    finally:
        process.stdin.close()
        process.wait(30)


class RunningCluster:
    """`ling cluster up`; `start` again after `kill` or `end`, with another file if it was changed.

    Args:
        tables: of its file, but for [cluster].
    """

    def __init__(self, folder, tables):
        self.file = folder / "cluster.toml"
        self.log = folder / "cluster.log"
        self.tables = tables
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=20
        )
        self.process = None

    def start(self):
        tables = {"cluster": {"port": self.port, "token_variable": "TOKEN"}, **self.tables}
        self.file.write_text(
            "\n".join(
                f"[{name}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in table.items())
                for name, table in tables.items()
            )
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command("up"), stdout=log, stderr=log, env=self._environment()
            )
        wait_until(lambda: self.process.poll() is None and self._answers(), 60)

    def run(self, command, *arguments, code=0):
        """`ling cluster COMMAND`; what it printed, or its error."""
        done = subprocess.run(
            self._command(command, *arguments),
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    def status(self):
        return self.client.get("/cluster/status").json()

    def ready(self):
        """Ids of the replicas that serve."""
        return {each["id"] for each in self.status()["replicas"] if each["state"] == "ready"}

    def wait_for(self, number, timeout_s=120):
        """Return once so many are ready and none is in another state; seconds that it took."""
        began_s = time.monotonic()

        def is_so():
            states = [each["state"] for each in self.status()["replicas"]]
            return states == ["ready"] * number

        try:
            wait_until(is_so, timeout_s)
        except AssertionError:
            raise AssertionError(f"{self.status()}\n{self.log.read_text()[-3000:]}") from None
        return time.monotonic() - began_s

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def _answers(self):
        with contextlib.suppress(httpx.HTTPError):
            return self.client.get("/ready").is_success
        return False

    def _command(self, command, *arguments):
        return [sys.executable, "-m", "lingflash", "cluster", command, *arguments, str(self.file)]

    def _environment(self):
        return {**os.environ, **RAY, "TOKEN": TOKEN}


def gateway_of(cluster):
    """A gateway whose one upstream is this cluster."""

    def tables(tables):
        upstream = {"name": "fleet", "dialects": ["chat"], "directory": "fleet"}
        model = {**tables["model"][0], "name": "ling-nano", "aliases": []}
        model["endpoint"] = [{"upstream": "fleet", "context_tokens": 2048}]
        directory = {"name": "fleet", "kind": "ray", "url": cluster.url, "token_variable": "TOKEN"}
        return {"directory": [directory], "upstream": [upstream], "model": [model]}

    return RunningGateway({}, tables=tables, accounts=OpenToAll(), environ={"TOKEN": TOKEN})


class Load:
    """Clients that ask a gateway one after the other, until the block ends.

    `ended` counts how: finish reasons, "error" for one clear error, anything else in its words.
    """

    def __init__(self, gateway, clients=2, text="Say something."):
        self.ended = []
        self._gateway = gateway
        self._text = text
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(clients)
        ]

    def __enter__(self):
        for each in self._threads:
            each.start()
        wait_until(lambda: self.ended, 30)
        return self

    def __exit__(self, *exc):
        self._stop.set()
        for each in self._threads:
            each.join(60)

    def of_the_next(self, count, timeout_s=120):
        """How the next requests end."""
        begin = len(self.ended)
        wait_until(lambda: len(self.ended) >= begin + count, timeout_s)
        return self.ended[begin : begin + count]

    def _run(self, client):
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                self.ended.append(self._ask(f"{client}.{number} {self._text}", number % 2 == 0))
            except Exception as error:
                self.ended.append(repr(error))

    def _ask(self, text, is_streamed):
        body = {
            "model": "ling-nano",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 24,
            "stream": is_streamed,
        }
        if not is_streamed:
            answer = self._gateway.client.post("/v1/chat/completions", json=body)
            if answer.is_success:
                return answer.json()["choices"][0]["finish_reason"]
            return "error" if answer.json()["error"]["message"] else answer.text
        with self._gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if not answer.is_success:
                return "error" if json.loads(answer.read())["error"]["message"] else "empty error"
            return _how_it_ended(answer.read().decode())


def _how_it_ended(events):
    """The finish reason of a stream, or that it ended in one error."""
    found = [json.loads(each[6:]) for each in events.split("\n\n")
             if each.startswith("data: ") and each != "data: [DONE]"]  # fmt: skip
    errors = [each for each in found if "error" in each]
    reasons = [
        choice["finish_reason"]
        for each in found
        for choice in each.get("choices", [])
        if choice["finish_reason"]
    ]
    if len(errors) == 1:
        return "error"
    return reasons[0] if len(reasons) == 1 and not errors else events[-500:]
