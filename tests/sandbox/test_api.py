"""The E2B surface where the SDKs do not reach: errors, limits, leases, owners, odd bodies."""

from __future__ import annotations

import socket
import struct
import threading
import time

import httpx
import pytest

from sandbox_support import SandboxServer, wait_for


@pytest.fixture(scope="module")
def keyed():
    """A server with keys and narrow limits."""
    running = SandboxServer(
        "--warm=0",
        "--api-key=one",
        "--api-key=two",
        "--max-sandboxes-per-key=2",
        "--max-sandboxes=3",
        "--internet=strict",
        "--max-timeout-s=100",
        "--default-timeout-s=50",
    )
    yield running
    running.close()


def test_control_when_no_key_is_given_then_it_is_refused_in_e2b_s_words(keyed):
    answer = keyed.client().post("/v2/sandboxes", json={"templateID": "base"})
    assert answer.status_code == 401
    assert answer.json().keys() == {"code", "message"}
    assert answer.json()["code"] == 401


def test_control_when_a_key_or_the_server_has_its_fill_then_it_says_which(keyed):
    mine = [keyed.create("one") for _ in range(2)]
    full = keyed.client("one").post("/v2/sandboxes", json={"templateID": "base"})
    assert full.status_code == 429
    assert "--max-sandboxes-per-key" in full.json()["message"]
    theirs = keyed.create("two")
    full = keyed.client("two").post("/v2/sandboxes", json={"templateID": "base"})
    assert full.status_code == 503
    for made in (*mine, theirs):
        assert made.kill() == 204


def test_control_when_it_is_another_s_then_there_is_none(keyed):
    made = keyed.create("one", metadata={"a": "b"})
    with keyed.client("two") as other:
        assert other.get("/v2/sandboxes").json() == []
        assert other.get(f"/sandboxes/{made.id}").status_code == 404
        assert other.delete(f"/sandboxes/{made.id}").status_code == 404
        assert other.post(f"/sandboxes/{made.id}/timeout", json={"timeout": 5}).status_code == 404
        assert other.post(f"/sandboxes/{made.id}/pause").status_code == 404
    with keyed.client("one") as own:
        found = own.get("/v2/sandboxes", params={"metadata": "a=b", "state": "running"}).json()
        assert [each["sandboxID"] for each in found] == [made.id]
        assert "envdAccessToken" not in found[0]
        assert own.get("/v2/sandboxes", params={"metadata": "a=c"}).json() == []
    assert made.kill() == 204


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mcp": {"x": {}}}, "mcp is not supported"),
        ({"volumeMounts": [{"name": "v"}]}, "volumeMounts is not supported"),
        ({"network": {"denyOut": ["1.1.1.1"]}}, "--internet"),
        ({"allow_internet_access": True}, "--internet strict"),
        ({"timeout": 101}, "allowed: 0 to 100"),
        ({"timeout": -1}, "allowed: 0 to 100"),
        ({"envVars": {"a=b": "c"}}, "envVars holds a name with ="),
        ({"metadata": {"a": "b" * 20000}}, "allowed: 16384"),
        ({"tiemout": 5}, "'tiemout' is not known"),
    ],
)
def test_create_when_something_is_not_built_or_wrong_then_it_is_named(keyed, fields, words):
    answer = keyed.client("one").post("/v2/sandboxes", json={"templateID": "base", **fields})
    assert answer.status_code == 400
    assert words in answer.json()["message"]


def test_create_when_the_caller_leaves_meanwhile_then_nothing_stays(server):
    url = httpx.URL(server.url)
    body = b'{"timeout": 500}'
    head = f"POST /sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with server.client() as client:

        def num_made():
            lines = client.get("/metrics").text.splitlines()
            found = [each for each in lines if each.startswith("lingflash_sandboxes_created_total")]
            return sum(float(each.split()[-1]) for each in found)

        before, made = len(client.get("/sandboxes").json()), num_made()
        with socket.create_connection((url.host, url.port)) as left:
            left.sendall(head.encode() + body)
            time.sleep(0.05)
        wait_for(lambda: num_made() > made, "it was made")
        wait_for(lambda: len(client.get("/sandboxes").json()) == before, "it is gone")


def test_lease_when_its_time_is_up_then_the_sandbox_is_gone(server):
    made = server.create(timeout=1)
    assert made.run("echo here").stdout == "here\n"
    wait_for(lambda: made.http.get("/health").status_code == 502, "the sandbox has ended")
    assert made.http.get("/health").json()["message"].startswith("The sandbox was not found")
    assert server.client().get(f"/sandboxes/{made.id}").status_code == 404


def test_lease_when_connected_to_then_it_only_grows(server):
    made = server.create(timeout=500)
    with server.client() as client:

        def ends():
            return client.get(f"/sandboxes/{made.id}").json()["endAt"]

        first = ends()
        answer = client.post(f"/v2/sandboxes/{made.id}/connect", json={"timeout": 5})
        assert answer.status_code == 200
        assert answer.json()["envdAccessToken"] == made.token
        assert ends() == first
        client.post(f"/v2/sandboxes/{made.id}/connect", json={"timeout": 1000})
        assert ends() > first
        client.post(f"/sandboxes/{made.id}/timeout", json={"timeout": 5})
        assert ends() < first
    made.kill()


def test_pause_when_asked_then_files_stay_and_processes_do_not(server):
    made = server.create(timeout=500)
    made.write("kept", b"1")
    made.run("sleep 1000 >/dev/null 2>&1 &")
    with server.client() as client:
        refused = client.post(f"/sandboxes/{made.id}/pause", json={"memory": True})
        assert refused.status_code == 400
        assert "memory cannot be kept" in refused.json()["message"]
        assert client.post(f"/sandboxes/{made.id}/pause").status_code == 204
        assert client.post(f"/sandboxes/{made.id}/pause").status_code == 409
        assert made.read("kept").status_code == 502
        assert client.get(f"/sandboxes/{made.id}").json()["state"] == "paused"
        resumed = client.post(f"/sandboxes/{made.id}/connect", json={"timeout": 100})
        assert resumed.status_code == 201
    assert made.read("kept").text == "1"
    assert made.run("pgrep -c sleep").stdout == "0\n"
    made.kill()


def test_lease_when_the_sandbox_pauses_at_its_end_then_it_can_be_resumed(server):
    made = server.create(timeout=1, autoPause=True)
    made.write("kept", b"1")
    with server.client() as client:
        wait_for(
            lambda: client.get(f"/sandboxes/{made.id}").json()["state"] == "paused", "it is paused"
        )
        client.post(f"/sandboxes/{made.id}/connect", json={"timeout": 100})
    assert made.read("kept").text == "1"
    made.kill()


@pytest.mark.parametrize("path", ["snapshots", "fork"])
def test_control_when_it_is_not_built_then_the_error_names_it(shared, path):
    answer = shared.server.client().post(f"/sandboxes/{shared.id}/{path}", json={})
    assert answer.status_code == 400
    assert answer.json()["message"] == f"{path} is not supported by this sandbox server."


# --- Connect RPC -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [
        (b"", "application/connect+json", "invalid_argument"),
        (b"\0\0\0", "application/connect+json", "invalid_argument"),
        (struct.pack(">BI", 0, 2**31), "application/connect+json", "resource_exhausted"),
        (struct.pack(">BI", 1, 2) + b"{}", "application/connect+json", "unimplemented"),
        (struct.pack(">BI", 0, 2) + b"[]", "application/connect+json", "invalid_argument"),
        (struct.pack(">BI", 0, 2) + b"{}", "application/connect+json", "invalid_argument"),
        (b"\x08\x01", "application/connect+proto", "unimplemented"),
    ],
)
def test_start_when_the_frames_are_wrong_then_the_stream_ends_with_an_error(
    shared, content, kind, code
):
    answer = shared.http.post(
        "/process.Process/Start", content=content, headers={"content-type": kind}
    )
    assert answer.status_code == 200
    flags, size = struct.unpack_from(">BI", answer.content)
    assert (flags, size + 5) == (2, len(answer.content))
    assert f'"code": "{code}"' in answer.text


@pytest.mark.parametrize(
    ("method", "message", "status", "code"),
    [
        ("filesystem.Filesystem/Stat", {"path": "nope"}, 404, "not_found"),
        ("filesystem.Filesystem/Stat", {"path": 5}, 400, "invalid_argument"),
        ("filesystem.Filesystem/Stat", {}, 400, "invalid_argument"),
        ("filesystem.Filesystem/ListDir", {"path": "/etc/passwd"}, 400, "invalid_argument"),
        ("filesystem.Filesystem/ListDir", {"path": "/", "depth": 99}, 400, "invalid_argument"),
        (
            "filesystem.Filesystem/ListDir",
            {"path": "/", "depth": "\u00b2"},
            400,
            "invalid_argument",
        ),
        ("filesystem.Filesystem/MakeDir", {"path": "/tmp"}, 409, "already_exists"),
        ("filesystem.Filesystem/MakeDir", {"path": "/usr/x"}, 403, "permission_denied"),
        ("filesystem.Filesystem/Move", {"source": "a", "destination": "b"}, 404, "not_found"),
        ("filesystem.Filesystem/GetWatcherEvents", {"watcherId": "x"}, 404, "not_found"),
        ("filesystem.Filesystem/Nothing", {}, 404, "not_found"),
        ("process.Process/SendSignal", {"process": {"pid": 9999}}, 404, "not_found"),
        ("process.Process/SendInput", {"process": {"tag": "x"}}, 404, "not_found"),
        ("process.Process/Update", {}, 400, "invalid_argument"),
    ],
)
def test_call_when_it_cannot_be_done_then_the_code_says_why(shared, method, message, status, code):
    answer = shared.call(method, **message)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["message"]


def test_start_when_the_program_is_missing_or_the_folder_then_it_is_named(shared):
    for process, words in (
        ({"cmd": "/bin/nope"}, "/bin/nope: No such file"),
        ({"cmd": "true", "cwd": "/nope"}, "/nope: No such file"),
        ({"cmd": "/etc/passwd"}, "Permission denied"),
    ):
        (end,) = shared.stream("process.Process/Start", process=process)
        assert words in end["error"]["message"]
    (end,) = shared.stream("process.Process/Start", process={"cmd": "true"}, pty={"size": {}})
    assert "pty" in end["error"]["message"]
    (end,) = shared.stream("process.Process/Start", process={"cmd": "nope"})
    assert end["error"]["message"].startswith("/")
    answer = shared.http.post(
        "/process.Process/Start",
        content=struct.pack(">BI", 0, 2) + b"{}",
        headers={"content-type": "application/connect+json", "connect-timeout-ms": b"\xb2"},
    )
    assert '"code": "invalid_argument"' in answer.text


def test_user_when_it_is_root_then_it_is_refused(shared):
    answer = shared.http.get("/files", params={"path": "x", "username": "root"})
    assert answer.status_code == 400
    assert "user is 'root'" in answer.json()["message"]


def test_process_when_two_listen_then_both_hear_it_and_input_reaches_it(shared):
    events, heard = [], []
    started = shared.stream("process.Process/Start", process={"cmd": "cat"}, stdin=True, tag="mine")
    first = next(started)
    pid = first["event"]["start"]["pid"]
    told = shared.call("process.Process/List").json()["processes"]
    assert [(each["pid"], each["tag"]) for each in told] == [(pid, "mine")]
    joined = shared.stream("process.Process/Connect", process={"tag": "mine"})
    heard.append(next(joined))
    reading = threading.Thread(target=lambda: heard.extend(joined))
    reading.start()
    given = {"process": {"pid": pid}, "input": {"stdin": "aGk="}}
    assert shared.call("process.Process/SendInput", **given).status_code == 200
    assert shared.call("process.Process/CloseStdin", process={"pid": pid}).status_code == 200
    events.extend(started)
    reading.join(10)
    data = {"event": {"data": {"stdout": "aGk="}}}
    assert data in events
    assert data in heard
    assert shared.call("process.Process/SendInput", **given).status_code == 404


def test_execute_when_the_caller_leaves_then_the_code_is_interrupted(box):
    code = "import time\ntry:\n    time.sleep(1000)\nexcept KeyboardInterrupt:\n    was = 'hit'"
    box.execute("1")
    with box.http.stream("POST", "/execute", json={"code": code}) as answer:
        next(answer.iter_raw())
    began = time.monotonic()
    assert box.execute("was")[-1]["text"] == "'hit'"
    assert time.monotonic() - began < 20


def test_execute_when_something_is_wrong_then_it_is_named(shared):
    def refused(**fields):
        answer = shared.http.post("/execute", json={"code": "1", **fields})
        return answer.status_code, answer.json()["message"]

    assert refused(language="cobol")[0] == 400
    assert "this server runs: bash" in refused(language="cobol")[1]
    assert refused(context_id="x")[0] == 404
    assert refused(context_id="x", language="python")[0] == 400
    assert refused(cwd="/")[0] == 400
    answer = shared.http.post("/contexts", json={"cwd": "/nope"})
    assert (answer.status_code, "/nope" in answer.json()["message"]) == (400, True)


@pytest.mark.slow
def test_execute_when_output_is_over_the_limit_then_it_is_cut():
    running = SandboxServer("--warm=0", "--output-mb=0.1")
    try:
        made = running.create(timeout=100)
        events = made.execute("for _ in range(100): print('x' * 9999)")
        text = "".join(event.get("text", "") for event in events)
        assert 90_000 < len(text) < 110_000
        assert "[output over 104857 bytes is left out]" in text
        assert made.execute("1 + 1")[-1]["text"] == "2"
    finally:
        running.close()


def test_files_when_a_form_holds_several_then_all_are_written(shared):
    parts = [("file", ("one/a", b"1")), ("file", ("two", b"22"))]
    answer = shared.http.post("/files", files=parts)
    assert [each["path"] for each in answer.json()] == ["/home/user/one/a", "/home/user/two"]
    assert shared.read("one/a").text == "1"
    assert shared.http.post("/files", content=b"x").status_code == 415
    bad = {"content-type": "multipart/form-data; boundary=x"}
    assert shared.http.post("/files", content=b"nonsense", headers=bad).status_code == 400
    long = {"content-type": f"multipart/form-data; boundary={'x' * 3000}"}
    assert shared.http.post("/files", content=b"nonsense", headers=long).status_code == 400
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="cut"\r\n\r\nhi'
    for content in (part, part.replace(b"cut", b"whole") + b"\r\n" + part):
        answer = shared.http.post("/files", content=content, headers=bad)
        assert (answer.status_code, "within a file" in answer.text) == (400, True)
    header = b"--x\r\nContent-Disposition: " + b"a" * 100_000
    assert shared.http.post("/files", content=header, headers=bad).status_code == 400


def test_files_when_their_size_is_not_what_is_read_then_the_answer_is_whole(shared):
    answer = shared.http.get("/files", params={"path": "/proc/self/status"})
    assert (answer.status_code, answer.text[:5]) == (200, "Name:")
    list(shared.stream("process.Process/Start", process={"cmd": "/bin/sh", "args": ["-c", _GROWS]}))
    for _ in range(20):
        answer = shared.http.get("/files", params={"path": "/tmp/log"})
        assert len(answer.content) == int(answer.headers["content-length"]) > 0


_GROWS = "echo x >/tmp/log; (for i in $(seq 100000); do echo $i; done >>/tmp/log) >/dev/null 2>&1 &"


def test_signal_when_it_is_none_then_refused(box):
    running = box.stream("process.Process/Start", process={"cmd": "sleep", "args": ["60"]}, tag="s")
    next(running)
    for wanted in ([], {}, None, 2, "SIGINT"):
        answer = box.call("process.Process/SendSignal", process={"tag": "s"}, signal=wanted)
        assert answer.status_code == 400


def test_execute_when_the_kernel_ended_then_the_next_run_has_a_new_one(box):
    box.execute("x = 5")
    assert "its variables are lost" in box.execute("import os; os._exit(1)")[-1]["value"]
    assert box.execute("1 + 1")[-1]["text"] == "2"
    assert box.execute("x")[-1]["name"] == "NameError"


def test_metrics_when_scraped_then_sandboxes_are_counted(server, shared):
    text = server.client().get("/metrics").text
    assert "lingflash_sandboxes_running 1.0" in text or "lingflash_sandboxes_running" in text
    assert 'lingflash_sandboxes_created_total{source="cold"}' in text
    assert server.client().get("/ready").json() == {"status": "ready"}


def test_list_when_a_name_is_no_unicode_then_all_are_listed(box):
    box.python(r"open(b'\xff', 'w'); open('plain', 'w')")
    answer = box.call("filesystem.Filesystem/ListDir", path="/home/user", depth=1)
    assert sorted(entry["name"] for entry in answer.json()["entries"]) == ["plain", "\ufffd"]
