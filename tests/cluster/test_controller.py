"""The controller with replicas that do what a test says: what dies, hangs or leaves is seen to."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import httpx
import pytest

from lingflash.cluster import controller as module
from lingflash.cluster.app import create_cluster_app
from lingflash.cluster.config import ClusterConfig, ClusterTable, RayTable, ReplicaTable, ScaleTable
from lingflash.cluster.controller import Controller
from lingflash.cluster.members import Generation, Report
from lingflash.cluster.placer import ReplicaGone
from lingflash.core.errors import NotFoundError
from lingflash.protocol.replicas import Health, read_listing

READY = Health(ready=True, model="ling-nano", capacity=4)


class ScriptedPlacer:
    """Replicas of which `reports` says what each tells: a Report, an error, or None for nothing."""

    def __init__(self, *adopted):
        self.keeps_replicas = False
        self.adopted = adopted
        self.reports = {}
        self.placed, self.drained, self.killed = [], [], []
        self.on_place = lambda name, generation: report(name, generation, READY)
        self.drain_s = 0.0

    def adopt(self):
        return self.adopted

    def place(self, replica, generation):
        self.placed.append(replica)
        self.reports[replica] = self.on_place(replica, generation)

    async def report(self, replica):
        while (told := self.reports[replica]) is None:
            await asyncio.sleep(0.001)
        if isinstance(told, Exception):
            raise told
        return told

    async def drain(self, replica):
        await asyncio.sleep(self.drain_s)
        self.drained.append(replica)

    def kill(self, replica):
        self.killed.append(replica)

    def nodes(self):
        return [{"address": "10.0.0.1", "alive": True, "cpus": 2, "gpus": 0}]


def report(name, generation, health, end=None, url=...):
    url = f"http://{name}:80" if url is ... else url
    return Report(generation, "10.0.0.1", url, health, end)


def config(**scale):
    return ClusterConfig(
        file="cluster.toml",
        cluster=ClusterTable(),
        ray=RayTable(),
        replica=ReplicaTable(model="ling-nano", notice_s=0.0, start_timeout_s=60.0),
        scale=ScaleTable(**{"min": 2, "cooldown_s": 0.0} | scale),
        token="tok",
    )


@contextlib.asynccontextmanager
async def running(placer, **scale):
    controller = Controller(config(**scale), placer, every_s=0.005)
    task = asyncio.create_task(controller.run())
    try:
        yield controller
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def states(controller):
    return [each.state for each in controller.members()]


async def test_controller_when_it_begins_then_the_fewest_are_placed_and_listed():
    placer = ScriptedPlacer()
    async with running(placer) as controller:
        await until(lambda: states(controller) == ["ready", "ready"])
        assert sorted(each.url for each in controller.entries()) == sorted(
            f"http://{name}:80" for name in placer.placed
        )
        assert all(each.ready and each.capacity == 4 for each in controller.entries())


@pytest.mark.parametrize(
    "told",
    [
        lambda old: ReplicaGone("its node died"),
        lambda old: replace(old, health=Health(ready=False), end="ended with exit code 1"),
    ],
    ids=["actor", "server"],
)
async def test_controller_when_one_dies_then_another_takes_its_place(told):
    placer = ScriptedPlacer()
    async with running(placer) as controller:
        await until(lambda: states(controller) == ["ready", "ready"])
        victim = placer.placed[0]
        placer.reports[victim] = told(placer.reports[victim])
        await until(lambda: len(placer.placed) == 3 and states(controller) == ["ready", "ready"])
        assert placer.killed == [victim]
        assert victim in controller.last_error


async def test_controller_when_one_hangs_then_it_is_killed_and_replaced(monkeypatch):
    monkeypatch.setattr(module, "_SILENT_S", 0.05)
    placer = ScriptedPlacer()
    async with running(placer) as controller:
        await until(lambda: states(controller) == ["ready", "ready"])
        placer.reports[placer.placed[0]] = None
        await until(lambda: len(placer.placed) == 3 and states(controller) == ["ready", "ready"])
        assert placer.killed == [placer.placed[0]]


async def test_controller_when_one_waits_for_a_machine_then_nobody_loses_patience(monkeypatch):
    monkeypatch.setattr(module, "_SILENT_S", 0.0)
    placer = ScriptedPlacer()
    placer.on_place = lambda name, generation: None
    async with running(placer, min=1) as controller:
        await until(lambda: states(controller) == ["placing"])
        await asyncio.sleep(0.1)
        assert (placer.killed, controller.entries()) == ([], [])


async def test_controller_when_none_can_start_then_it_tries_again_more_and_more_slowly(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.05)
    placer = ScriptedPlacer()
    placer.on_place = lambda name, generation: report(
        name, generation, Health(ready=False), end="no such model", url=None
    )
    async with running(placer, min=1) as controller:
        await until(lambda: len(placer.placed) >= 3)
        assert controller._pause_s >= 0.1
        assert "no such model" in controller.last_error
        assert len(placer.placed) < 20
        placer.on_place = lambda name, generation: report(name, generation, READY)
        await until(lambda: states(controller) == ["ready"])
        assert controller._pause_s == 0.0


async def test_controller_when_one_is_never_ready_then_it_is_given_up():
    placer = ScriptedPlacer()
    placer.on_place = lambda name, generation: report(name, generation, Health(ready=False))
    async with running(placer, min=1) as controller:
        await until(lambda: states(controller) == ["starting"])
        controller.members()[0].since_s -= 61
        await until(lambda: placer.killed)
        assert "it was not ready for 60 s" in controller.last_error


async def test_controller_when_restarted_then_each_goes_after_its_successor_is_ready():
    placer = ScriptedPlacer()
    async with running(placer) as controller:
        await until(lambda: states(controller) == ["ready", "ready"])
        first = set(placer.placed)
        controller.restart()
        least = 2

        def is_over():
            nonlocal least
            least = min(least, states(controller).count("ready"))
            return {each.id for each in controller.members()}.isdisjoint(first)

        await until(is_over)
        await until(lambda: states(controller) == ["ready", "ready"])
        assert (least, set(placer.drained)) == (2, first)


async def test_controller_when_one_is_to_leave_then_it_alone_is_replaced():
    placer = ScriptedPlacer()
    async with running(placer) as controller:
        await until(lambda: states(controller) == ["ready", "ready"])
        with pytest.raises(NotFoundError, match="There is no replica 'x'; there are: replica-"):
            controller.replace("x")
        controller.replace(placer.placed[1])
        await until(lambda: placer.drained == [placer.placed[1]])
        await until(lambda: states(controller) == ["ready", "ready"])
        assert len(placer.placed) == 3


async def test_controller_when_a_replica_drains_then_the_directory_says_so_first():
    placer = ScriptedPlacer()
    placer.drain_s = 0.2
    async with running(placer, min=1) as controller:
        await until(lambda: states(controller) == ["ready"])
        controller.end()
        await until(lambda: [each.draining for each in controller.entries()] == [True])
        assert placer.drained == []
        await until(lambda: controller.is_empty)
        assert len(placer.drained) == 1


async def test_controller_when_a_server_drains_by_itself_then_it_is_replaced():
    placer = ScriptedPlacer()
    placer.drain_s = 0.05
    async with running(placer, min=1) as controller:
        await until(lambda: states(controller) == ["ready"])
        [first] = placer.placed
        draining = Health(ready=False, draining=True)
        placer.reports[first] = replace(placer.reports[first], health=draining)
        await until(lambda: sorted(states(controller)) == ["draining", "ready"])
        await until(lambda: states(controller) == ["ready"])
        assert (placer.drained, controller.last_error) == ([first], None)


async def test_controller_when_another_process_began_then_its_replicas_are_adopted():
    placer = ScriptedPlacer("old", "newer", "newest")
    digest = config().digest
    placer.reports = {
        "old": report("old", Generation(0, "another configuration"), READY),
        "newer": report("newer", Generation(4, digest), READY),
        "newest": report("newest", Generation(5, digest), READY),
    }
    async with running(placer, max=4, first_token_s=1.0, cooldown_s=1000.0) as controller:
        await until(lambda: set(placer.drained) == {"old", "newer"})
        await until(lambda: states(controller) == ["ready"] * 3)
        assert controller.generation == Generation(5, digest)
        assert "newest" in {each.id for each in controller.members()}


async def test_app_when_old_replicas_were_not_heard_then_gateways_keep_what_they_know():
    placer = ScriptedPlacer("old")
    placer.reports = {"old": None}
    async with running(placer, min=1) as controller:
        transport = httpx.ASGITransport(create_cluster_app(controller))
        headers = {"authorization": "Bearer tok"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://x", headers=headers
        ) as client:
            await until(lambda: states(controller) == ["placing"])
            assert (await client.get("/cluster/replicas")).status_code == 503
            assert (await client.get("/ready")).status_code == 503
            placer.reports["old"] = report("old", controller.generation, READY)
            await until(lambda: states(controller) == ["ready"])
            assert (await client.get("/ready")).status_code == 200
            listing = read_listing((await client.get("/cluster/replicas")).content)
            assert [each.url for each in listing] == ["http://old:80"]


async def test_controller_when_prompts_wait_then_replicas_are_added_and_then_taken_away():
    placer = ScriptedPlacer()
    async with running(placer, min=1, max=2, first_token_s=1.0, cooldown_s=0.05) as controller:
        await until(lambda: states(controller) == ["ready"])
        [first] = placer.placed
        told, taken = placer.reports[first], 0
        while controller.wanted == 1:
            taken += 1
            health = replace(
                READY, queued_prompt_tokens=10**9, taken_prompt_tokens=taken, sessions=5
            )
            placer.reports[first] = replace(told, health=health)
            await asyncio.sleep(0.005)
        placer.reports[first] = replace(told, health=replace(READY, sessions=5))
        await until(lambda: len(placer.drained) == 1)
        # The one with fewer sessions went.
        assert placer.drained == [placer.placed[1]]
        await until(lambda: states(controller) == ["ready"])


async def test_app_when_asked_then_the_directory_status_and_series():
    placer = ScriptedPlacer()
    async with running(placer) as controller:
        await until(lambda: states(controller) == ["ready", "ready"])
        transport = httpx.ASGITransport(create_cluster_app(controller))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            for path in ("/cluster/replicas", "/cluster/status", "/metrics"):
                assert (await client.get(path)).status_code == 401
            for path in ("/cluster/drain", "/cluster/restart", "/cluster/down"):
                assert (await client.post(path)).status_code == 401
            client.headers["authorization"] = "Bearer tok"
            listing = (await client.get("/cluster/replicas")).content
            assert read_listing(listing) == controller.entries()
            status = (await client.get("/cluster/status")).json()
            assert [each["state"] for each in status["replicas"]] == ["ready", "ready"]
            assert (status["wanted"], status["last_error"]) == (2, None)
            series = (await client.get("/metrics")).text
            assert 'lingflash_cluster_replicas{state="ready"} 2.0' in series
            wrong = await client.post("/cluster/drain", json={"replica": "x"})
            assert (wrong.status_code, "replica-" in wrong.text) == (404, True)
            assert (await client.post("/cluster/drain", json={})).status_code == 400
            done = await client.post("/cluster/drain", json={"replica": placer.placed[0]})
            assert done.json() == {"replacing": placer.placed[0]}
            await until(lambda: placer.drained == [placer.placed[0]])
            assert (await client.post("/cluster/restart")).json()["replacing"] >= 2
            await until(lambda: len(placer.drained) >= 3)
