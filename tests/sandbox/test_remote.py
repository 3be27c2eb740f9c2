"""`ling sandbox --backend remote` in front of another `ling sandbox`, which is the house's."""

from __future__ import annotations

import time

import pytest

from lingflash.core.errors import ConfigError
from lingflash.sandbox.config import SandboxConfig
from sandbox_support import SandboxServer, refusal, sandbox_command, wait_for

MIB = 2**20
HOUSE = "key-of-the-house"


@pytest.fixture(scope="module")
def far():
    """The server that has the sandboxes, for its one key; its callers may not ask for a network."""
    running = SandboxServer("--warm=0", f"--api-key={HOUSE}", "--internet=strict")
    yield running
    running.close()


@pytest.fixture(scope="module")
def near(far):
    """The server that users ask."""
    running = in_front_of(far, "--max-sandboxes-per-key=2", "--output-mb-per-key=8")
    yield running
    running.close()


def in_front_of(far, *flags):
    keys = [f"--api-key={name}" for name in ("one", "two", "flood")]
    where = ["--backend=remote", f"--remote={far.url}", f"--remote-api-key={HOUSE}"]
    return SandboxServer(*where, *keys, *flags)


@pytest.fixture
def made(near):
    box = near.create("one", timeout=300)
    yield box
    box.kill()


pytestmark = pytest.mark.slow


def test_remote_when_used_then_commands_files_and_code_are_the_far_server_s(near, made):
    assert made.run("echo here; echo there >&2; exit 3").code == 3
    content = bytes(range(256)) * 20_000  # five megabytes, which are passed on as they come
    assert made.write("big", content).status_code == 200
    assert made.read("big").content == content
    assert made.read("nope").status_code == 404
    assert made.execute("6 * 7")[-1]["text"] == "42"
    answer = made.http.post("/files", files=[("file", ("one", b"1")), ("file", ("two", b"2"))])
    assert [each["name"] for each in answer.json()] == ["one", "two"]
    usage = near.client("one").get(f"/sandboxes/{made.id}/metrics").json()[0]
    assert usage["memTotal"] == 256 * MIB
    assert made.http.get("/health").status_code == 204
    assert near.client().get("/health").json() == {"status": "alive"}


def test_remote_when_a_network_is_asked_for_then_the_far_server_is_not(near):
    made = near.create("one", timeout=300, allow_internet_access=True)
    told = near.client("one").get(f"/sandboxes/{made.id}").json()
    assert told["allowInternetAccess"] is False
    made.kill()


def test_remote_when_rules_would_open_the_network_then_the_vendor_is_not_asked(near, made):
    rules = {"allowOut": ["0.0.0.0/0"]}
    with near.client("one") as client:
        own = f"/sandboxes/{made.id}"
        for method, path, body in (
            ("POST", "/sandboxes", {"network": rules}),
            ("POST", "/v2/sandboxes", {"allow_internet_access": False, "network": rules}),
            ("PUT", f"{own}/network", {"allowInternetAccess": True, **rules}),
            ("POST", f"{own}/connect", {"timeout": 300, "network": rules}),
        ):
            answer = client.request(method, path, json=body)
            assert answer.status_code == 400, (method, path)
            assert "network is not supported" in answer.json()["message"]
            assert "--internet allow" in answer.json()["message"]


def test_remote_when_it_is_another_s_then_there_is_none_and_no_key_is_shown(near, far, made):
    with near.client("two") as other:
        assert other.get("/v2/sandboxes").json() == []
        for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("GET", "/metrics")):
            answer = other.request(method, f"/sandboxes/{made.id}{rest}")
            assert answer.status_code == 404
    own = near.client("one").get("/v2/sandboxes")
    assert [each["sandboxID"] for each in own.json()] == [made.id]
    described = near.client("one").get(f"/sandboxes/{made.id}")
    assert HOUSE not in own.text + described.text + str(own.headers) + str(described.headers)
    assert described.json()["domain"] is None
    for key in (None, "one", HOUSE):
        assert near.client(key).get("/v2/sandboxes").status_code == (200 if key == "one" else 401)
    assert far.client("one").get("/v2/sandboxes").status_code == 401
    got = near.client().get("/files", params={"path": "x"}, headers={"e2b-sandbox-id": made.id})
    assert got.status_code == 401
    got = near.client().get("/files", params={"path": "x"}, headers={"x-access-token": "guess"})
    assert got.status_code == 502


@pytest.mark.parametrize("rest", ["/%2e%2e%2fx", "/%2e%2e", "/metrics%3Fx", "/a.b", "//x y"])
def test_remote_when_a_path_would_lead_elsewhere_then_it_is_not_passed_on(near, made, rest):
    answer = near.client("one").get(f"/sandboxes/{made.id}{rest}")
    assert answer.status_code == 404, answer.text


def test_remote_when_the_key_has_its_fill_then_429_until_one_has_ended(near):
    mine = [near.create("one", timeout=seconds) for seconds in (300, 2)]
    with near.client("one") as client:
        full = client.post("/v2/sandboxes", json={})
        assert full.status_code == 429
        assert "--max-sandboxes-per-key" in full.json()["message"]
        # The second ends by its own time, of which nobody tells this server.
        wait_for(lambda: client.post("/v2/sandboxes", json={}).status_code == 201, "there is room")
        for each in client.get("/sandboxes").json():
            assert client.delete(f"/sandboxes/{each['sandboxID']}").status_code == 204
    for each in mine:
        each.http.close()


def test_remote_when_the_key_has_used_up_its_output_then_429(near):
    flood = near.create("flood", timeout=300)
    assert len(flood.run("head -c 10M /dev/zero | tr '\\0' x").stdout) == 10 * MIB
    answer = flood.http.get("/files", params={"path": "/etc/passwd"})
    assert answer.status_code == 429
    assert "8 MiB of output" in answer.json()["message"]
    assert near.client("flood").post("/sandboxes", json={}).status_code == 429
    flood.kill()


def test_remote_when_the_caller_leaves_then_the_code_is_interrupted(made):
    code = "import time\ntry:\n    time.sleep(1000)\nexcept KeyboardInterrupt:\n    was = 'hit'"
    made.execute("1")
    with made.http.stream("POST", "/execute", json={"code": code}) as answer:
        next(answer.iter_raw())
    began = time.monotonic()
    assert made.execute("was")[-1]["text"] == "'hit'"
    assert time.monotonic() - began < 30


def test_remote_when_it_is_ended_then_its_sandboxes_are_and_no_other(far):
    running = in_front_of(far)
    own, other = running.create("one", timeout=300), far.create(HOUSE, timeout=300)
    running.close()
    with far.client(HOUSE) as client:
        assert client.get(f"/sandboxes/{own.id}").status_code == 404
        assert client.get(f"/sandboxes/{other.id}").status_code == 200
    other.kill()


def test_remote_when_the_far_server_is_gone_then_it_says_so():
    far = SandboxServer("--warm=0", f"--api-key={HOUSE}")
    running = in_front_of(far)
    try:
        made = running.create("one", timeout=300)
        far.close()
        answer = made.http.get("/files", params={"path": "x"})
        assert answer.status_code == 502
        assert "remote sandbox gave no answer" in answer.json()["message"]
        answer = running.client("one").post("/sandboxes", json={})
        assert answer.status_code == 502
        assert "remote sandbox server gave no answer" in answer.json()["message"]
    finally:
        running.close()
        far.close()


def test_remote_when_the_key_is_wrong_or_nobody_is_there_then_it_does_not_start(far):
    for url, key, words in (
        (far.url, "wrong", "refused the house's key"),
        ("http://127.0.0.1:9", HOUSE, "gave no answer"),
    ):
        flags = ["--backend=remote", f"--remote={url}", f"--remote-api-key={key}"]
        code, said = refusal(*sandbox_command(*flags))
        assert code == 2
        assert words in said
        assert key not in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "--remote-api-key is None; allowed: a key"),
        ({"remote_api_key": "k", "remote": "nothing"}, "a domain such as e2b.app"),
        ({"remote_api_key": "k", "remote": "http://h/path"}, "a domain such as e2b.app"),
        ({"remote_api_key": "k", "cpu_s_per_key": 1.0}, "cannot measure it"),
        ({"remote_api_key": "k", "memory_bytes_per_key": 2**40}, "cannot measure it"),
    ],
)
def test_config_when_a_setting_means_nothing_for_a_remote_then_it_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        SandboxConfig(backend="remote", **settings)
