"""What the sandboxes of one API key may use together."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lingflash.core.errors import ConfigError
from lingflash.sandbox.config import SandboxConfig
from lingflash.sandbox.quotas import HOUR_S, Hour
from sandbox_support import SandboxServer, refusal, sandbox_command, wait_for

MIB = 2**20
# Where a server that root starts can make cgroups; without them CPU time is not limited.
HAS_CGROUPS = os.getuid() == 0 and Path("/sys/fs/cgroup/cpuacct").exists()


def test_hour_when_used_up_then_room_comes_back_as_its_parts_grow_old():
    hour = Hour(10)
    hour.add(6, 0)
    assert hour.wait_s(0) == 0
    hour.add(3, 30)  # of the same minute, which began at 0
    hour.add(5, 100)
    assert hour.wait_s(100) == HOUR_S - 100  # 14 are used; the first nine are the first to go
    assert hour.wait_s(HOUR_S - 1) == 1
    assert hour.wait_s(HOUR_S) == 0
    assert hour.used == 5
    hour.add(5, HOUR_S + 10)
    assert hour.wait_s(HOUR_S + 10) == 90
    hour.add(40, HOUR_S + 20)
    assert hour.wait_s(HOUR_S + 20) == HOUR_S - 10  # only with the last part there is room


def test_hour_when_there_is_no_limit_then_no_wait():
    hour = Hour(None)
    hour.add(1e9, 0)
    assert hour.wait_s(0) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"memory_bytes_per_key": 1024 * MIB}, "--memory-mb and --disk-mb together"),
        ({"cpu_s_per_key": 5.0, "cgroups": "off"}, "nothing with --cgroups off"),
        ({"cpu_s_per_key": 0.0}, "--cpu-s-per-key is 0.0; allowed: above 0"),
    ],
)
def test_config_when_a_key_s_limit_cannot_hold_then_it_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        SandboxConfig(**settings)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can hide cgroups")
def test_server_when_cpu_time_cannot_be_measured_then_it_says_how_to():
    hide = 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"'
    command = sandbox_command("--cpu-s-per-key=5")
    code, said = refusal("unshare", "--mount", "sh", "-c", hide, "sh", *command)
    assert code == 2
    assert "--cpu-s-per-key needs cgroups" in said
    assert "Delegate=yes" in said


@pytest.fixture(scope="module")
def limited():
    """A server on which a key has room for three sandboxes, 2 MiB of output and a second of CPU."""
    cpu = ["--cpu-s-per-key=1"] if HAS_CGROUPS else []
    running = SandboxServer(
        *("--warm=0", "--memory-mb-per-key=900", "--output-mb-per-key=2", *cpu),
        *(f"--api-key={name}" for name in ("memory", "cpu", "output", "other")),
    )
    yield running
    running.close()


def series(server):
    """What is counted now, by the name and labels of each series."""
    lines = server.client("other").get("/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name.removeprefix("lingflash_"): float(value) for name, value in pairs}


@pytest.mark.slow
def test_key_when_its_memory_is_taken_then_it_gets_no_more_and_others_do(limited):
    mine = [limited.create("memory") for _ in range(3)]
    with limited.client("memory") as client:
        full = client.post("/v2/sandboxes", json={})
        assert full.status_code == 429
        assert "may use 864 MiB of memory and files, and one more 288" in full.json()["message"]
        assert "--memory-mb-per-key" in full.json()["message"]
    other = limited.create("other")
    assert mine.pop().kill() == 204
    mine.append(limited.create("memory"))
    assert series(limited)['sandboxes_refused_total{limit="memory"}'] == 1
    for made in (*mine, other):
        made.kill()


USES = {
    "output": ("head -c 8M /dev/zero | tr '\\0' x; sleep 100", "2 MiB of output"),
    "cpu": ("while :; do :; done", "1 CPU seconds"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    [
        "output",
        pytest.param(
            "cpu",
            marks=pytest.mark.skipif(not HAS_CGROUPS, reason="no cgroups can be made here"),
        ),
    ],
)
def test_key_when_it_has_used_up_an_hour_s_then_its_sandboxes_pause_and_others_run(limited, key):
    script, words = USES[key]
    other, idle, busy = limited.create("other"), limited.create(key), limited.create(key)
    idle.write("kept", b"1")
    ran = busy.run(script, timeout_s=60)
    assert ran.status == "signal: killed", ran
    with limited.client(key) as client:

        def states():
            return [each["state"] for each in client.get("/sandboxes").json()]

        wait_for(lambda: states() == ["paused", "paused"], "both are paused")
        gone = idle.read("kept")
        assert gone.status_code == 502
        assert f"paused for the limit of its API key on {key}" in gone.json()["message"]
        for path, body in (("/sandboxes", {}), (f"/sandboxes/{idle.id}/connect", {"timeout": 50})):
            answer = client.post(path, json=body)
            assert answer.status_code == 429, answer.text
            assert f"have used up {words}" in answer.json()["message"]
            assert 3500 < int(answer.headers["retry-after"]) <= 3601
        # Not for ever: nobody may come back, and it keeps its place and its files' memory.
        ends = datetime.fromisoformat(client.get(f"/sandboxes/{idle.id}").json()["endAt"])
        assert timedelta(hours=1) < ends - datetime.now(UTC) < timedelta(hours=2)
        assert client.post(f"/sandboxes/{idle.id}/timeout", json={"timeout": 0}).status_code == 204
        wait_for(lambda: states() == ["paused"], "the one whose time is over has ended")
    assert other.run("echo here").stdout == "here\n"
    counted = series(limited)
    assert counted[f'sandboxes_refused_total{{limit="{key}"}}'] == 2
    assert counted[f'sandboxes_paused_by_limit_total{{limit="{key}"}}'] == 2
    assert (
        counted["sandbox_cpu_seconds_total" if key == "cpu" else "sandbox_output_bytes_total"] > 1
    )
    for made, status in ((other, 204), (idle, 404), (busy, 204)):
        assert made.kill() == status
