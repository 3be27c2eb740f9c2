"""What is left of sandboxes, and of a server that died: nothing."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from sandbox_support import SandboxServer, wait_for

CGROUPS = [
    Path("/sys/fs/cgroup", kind, "lingflash-sandbox") for kind in ("memory", "pids", "cpuacct")
]


def left_of(server):
    """Processes, descriptors, mounts and cgroups of a server."""
    own = psutil.Process(server.process.pid)
    return {
        "processes": len(server.ours()),
        "descriptors": own.num_fds(),
        "mounts": Path(f"/proc/{own.pid}/mounts").read_text().count("\n"),
        "groups": groups(own.pid),
    }


def groups(pid):
    """The cgroups of a server's sandboxes; other tests' servers run beside."""
    return sorted(
        str(group)
        for parent in CGROUPS
        if parent.exists()
        for server in parent.glob(f"server-{pid}-*")
        for group in server.iterdir()
        if group.is_dir()
    )


@pytest.mark.slow
def test_server_when_it_is_ended_then_nothing_of_its_sandboxes_is_left():
    running = SandboxServer("--warm=1")
    made = running.create(timeout=500)
    made.run("(setsid sleep 1000 >/dev/null 2>&1 &); true")
    below = running.ours()
    assert len(below) >= 4
    running.close()
    assert running.process.returncode == 0
    wait_for(lambda: not any(map(_lives, below)), "all processes have ended")
    assert not any(f"server-{running.process.pid}-" in group for group in _servers())


def test_server_when_it_is_killed_then_its_sandboxes_die_and_the_next_one_sweeps():
    running = SandboxServer("--warm=1")
    made = running.create(timeout=500)
    made.execute("1 + 1")
    made.run("(setsid sleep 1000 >/dev/null 2>&1 &); true")
    below = running.ours()
    assert len(below) >= 4
    running.process.send_signal(signal.SIGKILL)
    running.close()
    wait_for(lambda: not any(map(_lives, below)), "all processes have ended")
    following = SandboxServer("--warm=0")
    try:
        assert not any(f"server-{running.process.pid}-" in group for group in _servers())
    finally:
        following.close()


def test_sandbox_when_its_supervisor_dies_then_it_is_gone_and_others_are_not():
    running = SandboxServer("--warm=0")
    try:
        one, other = running.create(timeout=500), running.create(timeout=500)
        jail = next(process for process in running.ours() if process.name() == "bwrap")
        os.kill(jail.pid, signal.SIGKILL)
        boxes = (one, other)
        wait_for(
            lambda: sorted(box.http.get("/health").status_code for box in boxes) == [204, 502],
            "one of them is gone",
        )
    finally:
        running.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sandboxes_when_200_come_and_go_then_the_server_is_as_before():
    running = SandboxServer("--warm=0")
    try:
        running.create(timeout=500).kill()
        wait_for(lambda: not running.ours(), "the first is gone")
        before = left_of(running)
        for _ in range(200):
            made = running.create(timeout=500)
            assert made.run("echo here").stdout == "here\n"
            made.kill()
        wait_for(lambda: not running.ours(), "all have ended")
        after = left_of(running)
        assert after.pop("descriptors") <= before.pop("descriptors") + 4  # idle connections
        assert after == before
    finally:
        running.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sandboxes_when_50_live_at_once_then_each_answers_and_none_is_left():
    running = SandboxServer("--warm=0")
    made, failures = [], []

    def work():
        try:
            box = running.create(timeout=500)
            made.append(box)
            for n in range(3):
                assert box.run(f"echo {box.id} > x; cat x").stdout == f"{box.id}\n"
                assert box.read("x").text == f"{box.id}\n", n
        except Exception as error:
            failures.append(error)

    try:
        threads = [threading.Thread(target=work) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        with running.client() as client:
            assert len(client.get("/v2/sandboxes").json()) == 50
        for box in made:
            assert box.kill() == 204
        wait_for(lambda: not running.ours(), "all have ended")
        left = groups(running.process.pid)
        assert not any(box.id in group for box in made for group in left)
    finally:
        running.close()


def _lives(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _servers():
    return [str(each) for parent in CGROUPS if parent.exists() for each in parent.glob("server-*")]
