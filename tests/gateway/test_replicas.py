"""A gateway in front of replicas that a directory names: who serves, what a dead one leaves."""

from __future__ import annotations

import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal

import pytest

from gateway_support import KEY
from gateway_upstream import ScriptedUpstream
from lingflash.gateway.accounting import Session


class Fleet:
    """A gateway whose one upstream is a directory of scripted servers."""

    def __init__(self, make_gateway, count=2, **upstream):
        self.servers = [ScriptedUpstream() for _ in range(count)]
        names = {f"server-{i}": each for i, each in enumerate(self.servers)}

        def tables(tables):
            urls = [each["base_url"].removesuffix("/v1") for each in tables["upstream"]]
            first = {**tables["upstream"][0], "name": "fleet", "directory": "fleet", **upstream}
            for key in ("base_url", "api_key_variable", "allow_private_address"):
                del first[key]
            endpoint = {**tables["model"][0]["endpoint"][0], "upstream": "fleet"}
            model = {**tables["model"][0], "endpoint": [endpoint]}
            directory = {"name": "fleet", "kind": "static", "replicas": urls,
                         "every_s": Decimal("0.1")}  # fmt: skip
            return {"upstream": [first], "model": [model], "directory": [directory]}

        self.gateway = make_gateway(names, tables=tables)

    @property
    def router(self):
        return self.gateway.state.replicas.router("fleet")

    def served(self):
        """Requests that each server was sent."""
        return [sum(path.endswith("completions") for path, *_ in s.requests) for s in self.servers]

    def stop(self, server):
        self.gateway.in_loop(server.stop)

    def wait_until(self, condition):
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ready(self):
        watch = self.gateway.state.replicas._watches["fleet"]
        return sum(each.ready for each in watch.replicas)


class Talk:
    """A session of the fleet; `homes` has the server of each turn."""

    def __init__(self, fleet, name):
        self.fleet, self.name = fleet, name
        self.messages, self.homes = [], []

    def turn(self, **fields):
        self.messages.append({"role": "user", "content": f"{self.name} {len(self.messages)} " * 9})
        before = self.fleet.served()
        answer = self.fleet.gateway.post(messages=self.messages, **fields)
        if answer.is_success and not fields.get("stream"):
            content = answer.json()["choices"][0]["message"]["content"]
            self.messages.append({"role": "assistant", "content": content})
            added = [b - a for a, b in zip(before, self.fleet.served(), strict=True)]
            self.homes.append(added)
        return answer


@pytest.fixture
def fleet(make_gateway):
    return Fleet(make_gateway)


def test_sessions_when_there_are_two_replicas_then_each_stays_and_both_have_some(fleet):
    talks = [Talk(fleet, f"talk {i}") for i in range(8)]
    for talk in talks * 3:
        assert talk.turn().is_success
    assert all(len({tuple(home) for home in talk.homes}) == 1 for talk in talks)
    assert {sum(home[0] for home in talk.homes) for talk in talks} == {0, 3}
    fleet.wait_until(lambda: fleet.router.num_running == 0)
    fleet.wait_until(lambda: not fleet.gateway.leaked())
    # The accounts know, too, for another gateway.
    _, end = fleet.gateway.accounts.rows[-1]
    assert end.replica == fleet.servers[talks[-1].homes[-1].index(1)].url.removesuffix("/v1")


def test_session_when_its_replica_dies_then_it_goes_on_at_the_other(fleet):
    talk = Talk(fleet, "one")
    for _ in range(3):
        talk.turn()
    home = talk.homes[-1].index(1)
    fleet.stop(fleet.servers[home])
    for _ in range(3):
        assert talk.turn().is_success
    assert all(each[1 - home] == 1 for each in talk.homes[3:])
    fleet.wait_until(lambda: fleet.ready() == 1)
    fleet.gateway.in_loop(fleet.servers[home].start)
    fleet.wait_until(lambda: fleet.ready() == 2)
    for _ in range(3):
        assert talk.turn().is_success
    fleet.wait_until(lambda: fleet.router.num_running == 0)


@pytest.mark.parametrize("fault", ["503", "500", "empty", "429"])
def test_request_when_one_replica_fails_then_the_other_serves(fleet, fault):
    talk = Talk(fleet, "one")
    talk.turn()
    home = talk.homes[-1].index(1)
    fleet.servers[home].fault = fault
    answer = talk.turn()
    assert answer.is_success
    assert answer.headers["x-lingflash-route"].endswith("attempt 2")
    fleet.wait_until(lambda: fleet.router.num_running == 0)


def test_requests_when_no_replica_is_there_then_each_gets_one_clear_error(fleet):
    for server in fleet.servers:
        fleet.stop(server)
    codes = [Talk(fleet, f"talk {i}").turn().status_code for i in range(3)]
    assert set(codes) <= {502, 503}
    fleet.wait_until(lambda: fleet.ready() == 0)
    answer = Talk(fleet, "late").turn()
    assert (answer.status_code, answer.headers["retry-after"] > "0") == (503, True)
    assert "No provider takes requests" in answer.json()["error"]["message"]
    fleet.wait_until(lambda: (fleet.router.num_running, len(fleet.router.belief)) == (0, 0))
    fleet.wait_until(lambda: not fleet.gateway.leaked())


def test_stream_when_its_replica_breaks_off_then_the_client_is_told_once(fleet):
    for server in fleet.servers:
        server.fault = "cut"
    status, _, body = fleet.gateway.stream()
    assert (status, body.count(b'"error"')) == (200, 1)
    assert sum(fleet.served()) == 1
    fleet.wait_until(lambda: fleet.router.num_running == 0)


def test_client_when_it_leaves_then_nothing_is_left_under_way(fleet):
    for server in fleet.servers:
        server.words, server.pause_s = 1000, 0.01
    body = {"model": "test/model", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with fleet.gateway.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        pieces = response.iter_raw(64)  # which closes the response when it is dropped
        assert next(pieces)
        assert fleet.router.num_running == 1
    fleet.wait_until(lambda: fleet.router.num_running == 0)


def test_response_when_another_goes_on_from_it_then_its_replica_is_asked(make_gateway):
    fleet = Fleet(make_gateway, count=3)
    first = fleet.gateway.post("/v1/responses").json()["id"]
    home = next(s for s in fleet.servers if any(p.endswith("responses") for p, *_ in s.requests))
    for _ in range(4):
        assert fleet.gateway.post("/v1/responses", previous_response_id=first).is_success
    assert fleet.gateway.client.get(f"/v1/responses/{first}").is_success
    paths = [path for path, *_ in home.requests if "responses" in path]
    assert len(paths) == 6
    fleet.stop(home)
    fleet.wait_until(lambda: fleet.ready() == 2)
    answer = fleet.gateway.post("/v1/responses", previous_response_id=first)
    assert answer.status_code in (502, 503, 504, 404)
    assert answer.json()["error"]["message"]


def test_gateway_when_it_is_another_then_the_session_goes_on_where_the_accounts_say(make_gateway):
    fleet = Fleet(make_gateway, count=3)
    talk = Talk(fleet, "one")
    talk.turn()
    gateway = fleet.gateway
    urls = [each.url.removesuffix("/v1") for each in fleet.servers]
    for pinned, url in enumerate(urls):
        # As if this gateway had seen nothing of it.
        gateway.in_loop(gateway.state.replicas.router("fleet").keep_only, [])
        gateway.accounts.sessions["s"] = Session(
            id="s", turns=1, pinned_endpoint="test/model@fleet", pinned_replica=url
        )
        assert talk.turn(session_id="s").is_success
        assert talk.homes[-1][pinned] == 1


@pytest.mark.parametrize(
    ("balance", "served"), [("round_robin", [[4, 4]]), ("consistent_hash", [[8, 0], [0, 8]])]
)
def test_balance_when_it_is_another_then_replicas_share_so(make_gateway, balance, served):
    fleet = Fleet(make_gateway, balance=balance)
    for _ in range(8):
        Talk(fleet, "one").turn()
    assert fleet.served() in served


def test_breaker_when_its_replica_is_gone_then_it_is_forgotten(fleet):
    fleet.servers[0].fault = fleet.servers[1].fault = "500"
    for i in itertools.count():
        if fleet.gateway.state.breakers.states(time.monotonic()):
            break
        assert Talk(fleet, f"talk {i}").turn().status_code == 502
        assert i < 20

    def without_replicas(state):
        state.replicas._forget_gone("fleet", state.replicas.router("fleet"), ())
        return state.breakers.states(time.monotonic())

    assert fleet.gateway.in_loop(without_replicas, fleet.gateway.state) == {}


def test_sessions_when_faults_are_random_then_each_request_ends_once_and_nothing_is_left(
    make_gateway,
):
    fleet = Fleet(make_gateway, count=3)
    rng = random.Random(7)
    talks = [Talk(fleet, f"talk {i}") for i in range(4)]
    answers = []

    def go_on(talk):
        for i in range(12):
            answers.append(talk.turn(stream=bool(i % 3 == 2)))

    with ThreadPoolExecutor(len(talks)) as pool:
        running = [pool.submit(go_on, talk) for talk in talks]
        while not all(each.done() for each in running):
            server = rng.choice(fleet.servers)
            match rng.randrange(4):
                case 0:
                    server.fault = rng.choice(["500", "503", "429", "empty", "cut", "malformed"])
                case 1:
                    fleet.stop(server)
                    fleet.gateway.in_loop(server.start)
                case _:
                    server.fault = ""
            time.sleep(0.02)
        for each in running:
            each.result()
    assert len(answers) == 48
    for answer in answers:
        assert answer.status_code in (200, 429, 502, 503, 504), answer.text
        assert answer.is_success or answer.json()["error"]["message"]
    fleet.wait_until(lambda: fleet.router.num_running == 0)
    fleet.wait_until(lambda: not fleet.gateway.leaked())
    assert fleet.router.belief.replicas <= {s.url.removesuffix("/v1") for s in fleet.servers}
    for server in fleet.servers:
        server.fault = ""
    fleet.gateway.state.breakers.keep_only(lambda name: False)
    fleet.wait_until(lambda: fleet.ready() == 3)
    assert all(talk.turn().is_success for talk in talks)


def test_routes_when_a_replica_is_left_alone_then_it_is_named_and_the_upstream_is_not(fleet):
    accounts = fleet.gateway.accounts
    accounts.callers["boss"] = replace(accounts.callers[KEY], is_management=True)
    for server in fleet.servers:
        server.fault = "429_with_retry_after"
    assert fleet.gateway.post().status_code == 429
    headers = {"authorization": "Bearer boss"}
    (told,) = fleet.gateway.client.get("/api/v1/routes", headers=headers).json()["data"]
    assert (told["base_url"], told["directory"]) == (None, "fleet")
    urls = {each.url.removesuffix("/v1") for each in fleet.servers}
    resting = {each["replica"] for each in told["breakers"]}
    assert resting
    assert resting <= urls
    assert {each["key"] for each in told["breakers"]} == {"house"}
    assert all(0 < each["rests_s"] <= 7 for each in told["breakers"])
