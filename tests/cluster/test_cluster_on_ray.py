"""Two local nodes of Ray with replicas of ling-nano: what is killed comes back, nothing is lost."""

from __future__ import annotations

import signal

import httpx
import psutil
import pytest

from api_support import wait_until
from cluster_support import TOKEN, Load, RunningCluster, gateway_of, ray_nodes

GOOD = {"stop", "length"}
REPLICA = {
    "model": "ling-nano",
    "flags": ["--max-model-len", "2048", "--max-num-seqs", "4"],
    "num_cpus": 1.0,
    "notice_s": 1.5,
    "drain_timeout_s": 20.0,
}


# One test: what it needs takes longer to start than each step does.
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cluster_when_all_of_it_dies_restarts_and_scales_then_requests_end_as_they_should(tmp_path):
    with ray_nodes() as (address, remove_node):
        tables = {"ray": {"address": address}, "replica": REPLICA, "scale": {"min": 2}}
        cluster = RunningCluster(tmp_path, tables)
        try:
            cluster.start()
            cluster.wait_for(2)
            gateway = gateway_of(cluster)
            try:
                serves_with_its_token_alone(cluster, gateway)
                comes_back(cluster, gateway, "a replica", servers()[0].kill)
                finds_its_replicas_again(cluster, gateway)
                restarts(cluster, gateway)
                comes_back(cluster, gateway, "a node", remove_node)
                scales(cluster, gateway)
                assert gateway.leaked() == []
                goes_down(cluster)
            finally:
                gateway.stop()
        finally:
            cluster.end()


def servers():
    """Processes of replicas on this machine."""
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if "lingflash.cluster.serve_child" in (each.info["cmdline"] or ())
    ]


def serves_with_its_token_alone(cluster, gateway):
    status = cluster.status()
    assert [each["state"] for each in status["replicas"]] == ["ready", "ready"]
    assert len(status["nodes"]) == 2
    assert httpx.get(f"{cluster.url}/cluster/replicas").status_code == 401
    url = status["replicas"][0]["url"]
    assert httpx.post(f"{url}/v1/chat/completions", json={}).status_code == 401
    with Load(gateway) as load:
        assert set(load.of_the_next(6)) <= GOOD
    assert "2 wanted of 2 to 2" in cluster.run("status")
    shown = [word for each in servers() for word in each.cmdline()]
    assert TOKEN not in cluster.log.read_text() + " ".join(shown)


def comes_back(cluster, gateway, what, kill):
    """Under load: each request ends, two are ready again, and nothing of the dead is left."""
    before, running = cluster.ready(), servers()
    processes = [every for each in running for every in (each, *each.children(recursive=True))]
    with Load(gateway) as load:
        kill()
        wait_until(lambda: cluster.ready() != before, 60)
        print(f"without {what}, two again {cluster.wait_for(2):.1f} s after that was seen")
        assert set(load.of_the_next(4)) <= GOOD
    assert set(load.ended) <= GOOD | {"error"}
    assert load.ended.count("error") <= 2  # streams that had begun, one of each client
    assert len(servers()) == 2
    kept = {every for each in servers() for every in (each, *each.children(recursive=True))}
    wait_until(lambda: all(each in kept or not each.is_running() for each in processes), 30)


def finds_its_replicas_again(cluster, gateway):
    before = cluster.ready()
    with Load(gateway) as load:
        cluster.kill()
        assert set(load.of_the_next(4)) <= GOOD  # the last directory that was read goes on
        cluster.start()
        cluster.wait_for(2)
        assert set(load.of_the_next(4)) <= GOOD
    assert set(load.ended) <= GOOD
    assert cluster.ready() == before


def restarts(cluster, gateway):
    before = cluster.ready()
    with Load(gateway) as load:
        cluster.run("restart")
        wait_until(lambda: len(cluster.ready() - before) == 2, 150)
        cluster.wait_for(2)
        assert set(load.of_the_next(4)) <= GOOD
    assert set(load.ended) <= GOOD
    assert not cluster.ready() & before


def scales(cluster, gateway):
    """From two to the minimum, to two under load, and back, without a failed request."""
    cluster.process.send_signal(signal.SIGTERM)  # replicas go on
    assert cluster.process.wait(60) == 0
    cluster.tables["scale"] = {"min": 1, "max": 2, "first_token_s": 0.2, "cooldown_s": 2.0}
    cluster.start()
    with Load(gateway, clients=1) as calm:
        cluster.wait_for(1)
        with Load(gateway, clients=8, text="A long story. " * 60) as heavy:
            cluster.wait_for(2)
        cluster.wait_for(1)
    assert set(calm.ended) | set(heavy.ended) <= GOOD
    assert len(servers()) == 1


def goes_down(cluster):
    assert "down" in cluster.run("down")
    assert cluster.process.wait(30) == 0
    assert servers() == []
    assert "`ling cluster up` starts it" in cluster.run("status", code=1)
