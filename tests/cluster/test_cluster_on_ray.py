"""Two local nodes of Ray with replicas of ling-nano: what is killed comes back, nothing is lost."""

from __future__ import annotations

import signal

import httpx
import psutil
import pytest

from api_support import wait_until
from cluster_support import Load, RunningCluster, gateway_of, ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GOOD = {"stop", "length"}
REPLICA = {
    "model": "ling-nano",
    "flags": ["--max-model-len", "2048", "--max-num-seqs", "4"],
    "num_cpus": 1.0,
    "notice_s": 1.5,
    "drain_timeout_s": 20.0,
}


@pytest.fixture(scope="module")
def nodes():
    with ray_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def cluster(nodes, tmp_path_factory):
    tables = {"ray": {"address": nodes[0]}, "replica": REPLICA, "scale": {"min": 2}}
    cluster = RunningCluster(tmp_path_factory.mktemp("cluster"), tables)
    cluster.start()
    yield cluster
    cluster.end()


@pytest.fixture(scope="module")
def gateway(cluster):
    cluster.wait_for(2)
    gateway = gateway_of(cluster)
    yield gateway
    gateway.stop()


def servers():
    """Processes of replicas on this machine."""
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if "lingflash.cluster.serve_child" in (each.info["cmdline"] or ())
    ]


def test_cluster_when_up_then_its_replicas_answer_through_the_gateway(cluster, gateway):
    status = cluster.status()
    assert [each["state"] for each in status["replicas"]] == ["ready", "ready"]
    assert len(status["nodes"]) == 2
    assert httpx.get(f"{cluster.url}/cluster/replicas").status_code == 401
    url = status["replicas"][0]["url"]
    assert httpx.post(f"{url}/v1/chat/completions", json={}).status_code == 401
    with Load(gateway) as load:
        assert set(load.of_the_next(6)) <= GOOD
    assert "2 wanted of 2 to 2" in cluster.run("status")


def test_replica_when_killed_under_load_then_each_request_ends_and_two_are_back(cluster, gateway):
    before = cluster.ready()
    victim = servers()[0]
    with Load(gateway) as load:
        victim.send_signal(signal.SIGKILL)
        wait_until(lambda: cluster.ready() != before, 60)
        print(f"two again after {cluster.wait_for(2):.1f} s more")  # a figure of a busy machine
        assert set(load.of_the_next(4)) <= GOOD
    assert set(load.ended) <= GOOD | {"error"}
    assert load.ended.count("error") <= 2
    assert len(cluster.ready() & before) == 1
    assert len(servers()) == 2
    assert gateway.leaked() == []


def test_up_when_killed_and_started_again_then_it_finds_its_replicas(cluster, gateway):
    before = cluster.ready()
    with Load(gateway) as load:
        cluster.kill()
        assert set(load.of_the_next(4)) <= GOOD  # the last directory that was read goes on
        cluster.start()
        cluster.wait_for(2)
        assert set(load.of_the_next(4)) <= GOOD
    assert set(load.ended) <= GOOD
    assert cluster.ready() == before


def test_restart_when_under_load_then_all_are_others_and_no_request_fails(cluster, gateway):
    before = cluster.ready()
    with Load(gateway) as load:
        cluster.run("restart")
        wait_until(lambda: len(cluster.ready() - before) == 2, 150)
        cluster.wait_for(2)
        assert set(load.of_the_next(4)) <= GOOD
    assert set(load.ended) <= GOOD
    assert not cluster.ready() & before
    assert len(servers()) == 2


def test_node_when_killed_under_load_then_each_request_ends_and_two_are_back(
    cluster, gateway, nodes
):
    before = cluster.ready()
    with Load(gateway) as load:
        nodes[1]()
        wait_until(lambda: cluster.ready() != before, 60)
        print(f"two again after {cluster.wait_for(2):.1f} s more")  # a figure of a busy machine
        assert set(load.of_the_next(4)) <= GOOD
    assert set(load.ended) <= GOOD | {"error"}
    assert load.ended.count("error") <= 2
    assert [each["alive"] for each in cluster.status()["nodes"]].count(False) == 1
    assert len(servers()) == 2


def test_scale_when_load_comes_and_goes_then_replicas_do_and_no_request_fails(cluster, gateway):
    cluster.end()
    cluster.tables["scale"] = {"min": 1, "max": 2, "first_token_s": 0.2, "cooldown_s": 2.0}
    cluster.start()
    with Load(gateway, clients=1) as calm:
        cluster.wait_for(1)
        [first] = cluster.ready()
        with Load(gateway, clients=8, text="A long story. " * 60) as heavy:
            cluster.wait_for(2)
        cluster.wait_for(1)
    assert set(calm.ended) | set(heavy.ended) <= GOOD
    assert len(servers()) == 1
    assert f"{first}" in cluster.log.read_text()


def test_down_then_nothing_is_left(cluster, gateway):
    assert "down" in cluster.run("down")
    assert cluster.process.wait(30) == 0
    assert servers() == []
    assert "`ling cluster up` starts it" in cluster.run("status", code=1)
