"""E2B's and Novita's SDKs, unchanged, and Deep Agents, against `ling sandbox`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sandbox_support import SandboxServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
DRIVERS = Path(__file__).parent / "drivers"
SOURCE = Path(__file__).parents[2] / "src"
PARTS = ["files", "watch", "commands", "code", "life"]
# Novita's SDK sends run_code to this port and no other.
NOVITA_PORTS = (3000, 49983, 49999)


FLAGS = ("--warm=1", "--memory-mb=1024", "--disk-mb=128")


@pytest.fixture
def make_server():
    made = []

    def make(*flags):
        made.append(SandboxServer(*FLAGS, *flags))
        return made[-1]

    yield make
    for running in made:
        running.close()


def run(command, **env):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, **env}
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return done.stdout.split()


@pytest.mark.parametrize("backend", ["bwrap", "remote"])
def test_e2b_for_python_when_unchanged_then_all_calls_hold(installed, make_server, backend):
    python = installed("sandbox-sdks") / "python"
    server = make_server()
    if backend == "remote":  # one in front of the other, whose key is any
        where = [f"--remote={server.url}", "--remote-api-key=any"]
        server = make_server("--backend=remote", *where)
    urls = {"E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url}
    parts = [*PARTS, "expiry"]
    command = [python, DRIVERS / "sandbox_e2b.py", "e2b", *parts]
    assert run(command, E2B_API_KEY="e2b_any", **urls) == parts


@pytest.mark.parametrize("how", ["urls", "debug"])
def test_novita_for_python_when_unchanged_then_all_calls_hold(installed, make_server, how):
    python = installed("sandbox-sdks") / "python"
    if how == "urls":
        server = make_server()
        parts = ["files", "watch", "commands", "life", "expiry"]
        settings = {"NOVITA_API_URL": server.url, "NOVITA_SANDBOX_URL": server.url}
    else:  # run_code knows no URL; kill makes no call then
        make_server(*(f"--also-port={port}" for port in NOVITA_PORTS))
        parts, settings = ["files", "commands", "code"], {"NOVITA_DEBUG": "true"}
    command = [python, DRIVERS / "sandbox_e2b.py", "novita", *parts]
    assert run(command, NOVITA_API_KEY="any", **settings) == parts


def test_e2b_for_node_when_unchanged_then_all_calls_hold(installed, make_server, tmp_path):
    commands = installed("sandbox-js")
    (tmp_path / "node_modules").symlink_to(commands.parent)
    driver = tmp_path / "driver.mjs"
    driver.write_text((DRIVERS / "sandbox_e2b.mjs").read_text(encoding="utf-8"), encoding="utf-8")
    server = make_server()
    urls = {"E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url}
    assert run(["node", driver], E2B_API_KEY="e2b_any", **urls) == PARTS


def test_deepagents_when_its_suite_is_run_then_all_holds_but_what_contradicts_it(
    installed, make_server, tmp_path
):
    python = installed("deepagents") / "python"
    # Elsewhere: beside it lies the conftest of these tests, whose packages it has not.
    driver = tmp_path / "test_deepagents.py"
    driver.write_text((DRIVERS / "sandbox_deepagents.py").read_text(encoding="utf-8"), "utf-8")
    server = make_server()
    urls = {"E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url}
    pytest_ = [python, "-m", "pytest", "-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider"]
    said = run([*pytest_, driver], E2B_API_KEY="e2b_any", PYTHONPATH=str(SOURCE), **urls)
    assert " ".join(said).count("82 passed, 7 xfailed") == 1
