"""`ling gateway` as a process in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import httpx

from api_support import wait_until

MAIN = (sys.executable, "-c", "from lingflash.cli import main; main()")


class GatewayProcess:
    """A gateway that runs, and a key of it.

    Args:
        text: of its file.
        environ: variables beside those that there are.
    """

    def __init__(self, folder, text, environ=None, flags=()):
        self.folder = folder
        self.file = folder / "gateway.toml"
        self.file.write_text(text)
        self.log = folder / "log"
        self.env = {**os.environ, **(environ or {})}
        self.key = self.run("gateway", "keys", "create", "test", "--limit", "1").stdout.strip()
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*MAIN, "gateway", *flags], stderr=log, cwd=folder,
                                            env=self.env)  # fmt: skip
        wait_until(lambda: "gateway to " in self.log.read_text(), 20)
        (line,) = [each for each in self.log.read_text().splitlines() if "gateway to " in each]
        self.url = line.split(" on ")[1].split("/v1")[0]
        headers = {"authorization": f"Bearer {self.key}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=20)

    def run(self, *args, check=True):
        return subprocess.run([*MAIN, *args], cwd=self.folder, env=self.env, check=check,
                              capture_output=True, text=True, timeout=60)  # fmt: skip

    def stop(self):
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self):
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
