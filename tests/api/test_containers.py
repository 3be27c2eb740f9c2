"""/v1/containers and their files, over a real `ling sandbox`, as the openai package uses them."""

from __future__ import annotations

import httpx
import openai
import pytest

from api_support import wait_until
from code_support import OUTPUTS, PATH, alive, calls

CONTAINERS = "/v1/containers"


def client_of(server, key="x"):
    return openai.OpenAI(base_url=server.base_url + "/v1", api_key=key, max_retries=0)


def test_container_when_made_by_the_openai_package_then_code_and_files_share_it(
    serve_code, sandboxes
):
    server, _ = serve_code(
        calls("print(open('numbers.txt').read())\n_ = open('sum.txt', 'w').write('6')"), "It is 6."
    )
    client = client_of(server)
    expires = {"anchor": "last_active_at", "minutes": 5}
    made = client.containers.create(name="mine", expires_after=expires)
    assert (made.name, made.status, made.expires_after.minutes) == ("mine", "running", 5)
    assert [each.id for each in client.containers.list()] == [made.id]
    assert client.containers.retrieve(made.id).name == "mine"
    file = client.containers.files.create(made.id, file=("numbers.txt", b"1\n2\n3\n"))
    assert (file.bytes, file.source, file.path) == (6, "user", "/home/user/numbers.txt")
    tool = {"type": "code_interpreter", "container": made.id}
    answer = client.responses.create(model="ling-nano", input="sum", tools=[tool], include=OUTPUTS)
    assert answer.output[0].outputs[0].logs == "1\n2\n3\n\n"
    assert answer.output[0].container_id == made.id
    files = {each.path: each for each in client.containers.files.list(made.id)}
    assert set(files) == {"/home/user/numbers.txt", "/home/user/sum.txt"}
    written = files["/home/user/sum.txt"]
    assert written.source == "assistant"
    told = client.containers.files.retrieve(written.id, container_id=made.id)
    assert told.bytes == 1
    content = client.containers.files.content.retrieve(written.id, container_id=made.id)
    assert content.read() == b"6"
    client.containers.files.delete(written.id, container_id=made.id)
    assert len(list(client.containers.files.list(made.id))) == 1
    with pytest.raises(openai.NotFoundError):
        client.containers.files.retrieve(written.id, container_id=made.id)
    client.containers.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.containers.retrieve(made.id)
    wait_until(lambda: alive(sandboxes) == [], 30)


@pytest.mark.slow
def test_run_then_outputs_and_text_are_those_of_a_call_and_variables_stay(serve_code):
    server, _ = serve_code("hello", code_timeout_s=2.0)
    made = client_of(server).containers.create(name="mine")
    path = f"{CONTAINERS}/{made.id}/run"

    def run(code):
        return server.post(path, {"code": code}, timeout=30).json()

    assert run("x = 6 * 7\nprint(x)\nx + 1") == {
        "object": "container.run",
        "container_id": made.id,
        "status": "completed",
        "outputs": [{"type": "logs", "logs": "42\n43\n"}],
        "text": "42\n43\n",
    }
    assert "ZeroDivisionError" in run("x / 0")["text"]
    endless = run("import time\nprint(x)\ntime.sleep(60)")
    assert (endless["status"], endless["text"]) == ("incomplete", "42\n[stopped after 2 s]\n")
    assert run("print(x)")["text"] == "42\n"  # it was interrupted, and goes on
    for body, status in (({}, 400), ({"code": 3}, 400), ({"code": "1", "language": "r"}, 400)):
        assert server.post(path, body).status_code == status
    assert server.post(f"{CONTAINERS}/cntr_none/run", {"code": "1"}).status_code == 404


@pytest.mark.slow
def test_container_when_another_key_asks_then_it_is_not_there(serve_code):
    server, _ = serve_code("hello", api_keys=("one", "other"))
    one, other = client_of(server, "one"), client_of(server, "other")
    made = one.containers.create(name="mine")
    file = one.containers.files.create(made.id, file=("a.txt", b"secret"))
    assert list(other.containers.list()) == []
    for work in (
        lambda: other.containers.retrieve(made.id),
        lambda: other.containers.delete(made.id),
        lambda: other.containers.files.list(made.id),
        lambda: other.containers.files.content.retrieve(file.id, container_id=made.id),
        lambda: other.responses.create(
            model="ling-nano",
            input="hi",
            tools=[{"type": "code_interpreter", "container": made.id}],
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            work()
    with pytest.raises(openai.AuthenticationError):
        client_of(server, "none").containers.list()
    assert one.containers.files.content.retrieve(file.id, container_id=made.id).read() == b"secret"


@pytest.mark.slow
def test_containers_when_a_key_has_all_it_may_then_a_named_one_is_refused(serve_code, sandboxes):
    server, _ = serve_code(calls("print(1)"), "one", max_containers_per_key=2)
    client = client_of(server)
    tool = {"type": "code_interpreter", "container": {"type": "auto"}}
    client.responses.create(model="ling-nano", input="hi", tools=[tool])
    made = [
        client.containers.create(name=f"n{i}") for i in range(2)
    ]  # in the automatic one's place
    with pytest.raises(openai.RateLimitError, match="max-containers-per-key"):
        client.containers.create(name="n2")
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="ling-nano", input="hi", tools=[tool])
    listed = client.containers.list(limit=1, order="asc")
    assert ([each.id for each in listed.data], listed.has_more) == ([made[0].id], True)
    assert [each.id for each in client.containers.list(limit=1)] == [made[1].id, made[0].id]
    assert [each.name for each in client.containers.list(name="n1")] == ["n1"]
    assert len(alive(sandboxes)) == 2


@pytest.mark.slow
def test_container_when_its_time_is_over_then_it_and_its_sandbox_go(serve_code, sandboxes):
    server, _ = serve_code("hello")
    made = client_of(server).containers.create(name="short")
    [container] = server.state.containers.all_of("")
    container.idle_s = 0.0
    assert server.client.get(f"{CONTAINERS}/{made.id}").status_code == 404
    wait_until(lambda: alive(sandboxes) == [], 30)


@pytest.mark.slow
def test_container_when_its_sandbox_has_ended_then_404_and_no_other_in_its_place(
    serve_code, sandboxes
):
    server, _ = serve_code(calls("print(1)"), "one")
    client = client_of(server)
    made = client.containers.create(name="mine")
    with sandboxes.client() as control:
        control.delete(f"/sandboxes/{alive(sandboxes)[0]['sandboxID']}")
    tool = {"type": "code_interpreter", "container": made.id}
    with pytest.raises(openai.NotFoundError, match="has ended"):
        client.responses.create(model="ling-nano", input="hi", tools=[tool])
    with pytest.raises(openai.NotFoundError):
        client.containers.retrieve(made.id)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a", "file_ids": ["file-1"]}, "file_ids"),
        ({"name": "a", "memory_limit": "4g"}, "memory_limit"),
        ({"name": "a", "skills": [{}]}, "skills"),
        ({"name": "a", "network_policy": {"type": "allowlist"}}, "network_policy"),
        ({"name": "a", "expires_after": {"anchor": "x", "minutes": 1}}, "expires_after.anchor"),
        ({"name": "a", "expires_after": {"anchor": "last_active_at", "minutes": 0}},
         "expires_after.minutes"),
        ({"name": "a", "colour": "red"}, "colour"),
    ],
)  # fmt: skip
def test_container_when_malformed_then_its_field_is_named(serve_code, body, param):
    server, _ = serve_code("hello")
    answer = server.post(CONTAINERS, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.slow
def test_files_when_malformed_or_hostile_then_refused_or_inside(serve_code):
    server, _ = serve_code(
        calls(
            "import os\nos.symlink('/etc/passwd', 'link')\nos.mkfifo('pipe')\nos.makedirs('a/b')\n"
            "open('a/b/deep.txt', 'w').write('x')\nopen('.hidden', 'w')\nopen('\\udcff', 'w')"
        ),
        "done",
        max_body_bytes=4096,
    )
    made = client_of(server).containers.create(name="mine")
    path = f"{CONTAINERS}/{made.id}/files"
    post = server.client.post
    assert post(path, json={"file_id": "file-1"}).status_code == 400
    assert (
        post(path, content=b"", headers={"content-type": "multipart/form-data"}).status_code == 400
    )
    assert post(path, files={"other": b"x"}).json()["error"]["param"] == "file"
    assert post(path, files={"file": ("big", b"x" * 5000)}).status_code == 413
    assert post(path, files={"file": ("..", b"x")}).status_code == 400
    inside = post(path, files={"file": ("../../etc/cron", b"x")})
    assert inside.json()["path"] == "/home/user/cron"
    tool = {"type": "code_interpreter", "container": made.id}
    done = server.post(PATH, {"input": "hi", "tools": [tool], "include": OUTPUTS}).json()
    assert done["status"] == "completed", done
    listed = server.client.get(path).json()["data"]
    assert sorted(each["path"] for each in listed)[:2] == [
        "/home/user/a/b/deep.txt",
        "/home/user/cron",
    ]
    assert not any("link" in each["path"] or "pipe" in each["path"] for each in listed)


@pytest.mark.slow
def test_files_when_what_is_there_is_in_the_way_then_400_and_nothing_is_written_or_lost(serve_code):
    server, _ = serve_code("hello")
    made = client_of(server).containers.create(name="mine")
    path = f"{CONTAINERS}/{made.id}"
    code = (
        "import os\nos.symlink('/tmp/aim', 'link')\nos.symlink('/etc/passwd', 'password')\n"
        "os.mkfifo('pipe')\nos.mkdir('folder')\nopen('plain', 'w').write('1')\n"
        "open(b'one\\xff', 'w').write('1'), open(b'one\\xfe', 'w').write('2')"
    )
    assert server.post(f"{path}/run", {"code": code}).json()["status"] == "completed"
    for name in ("link", "password", "pipe", "folder", ".env"):
        answer = server.client.post(f"{path}/files", files={"file": (name, b"x")})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file"), name
    assert server.post(f"{path}/run", {"code": "os.path.exists('/tmp/aim')"}).json()["text"] == (
        "False\n"
    )
    again = server.client.post(f"{path}/files", files={"file": ("plain", b"longer")}).json()
    assert (again["bytes"], again["source"]) == (6, "user")
    # Names that are no UTF-8 could not be asked for: two would have one id.
    listed = server.client.get(f"{path}/files").json()["data"]
    assert [each["path"] for each in listed] == ["/home/user/plain"]
    content = f"{path}/files/{again['id']}/content"
    assert server.client.get(content).content == b"longer"
    server.post(f"{path}/run", {"code": "os.chmod('plain', 0)"})
    unreadable = server.client.get(content)
    assert unreadable.status_code == 400
    assert unreadable.json()["error"]["message"] == "/home/user/plain: Permission denied"


def test_containers_when_there_is_no_sandbox_then_404_with_the_flag(make_server):
    server = make_server()
    for answer in (
        server.client.get(CONTAINERS),
        server.post(CONTAINERS, {"name": "a"}),
        server.client.get(f"{CONTAINERS}/cntr_a/files/cfile_b/content"),
        server.client.delete(f"{CONTAINERS}/cntr_a"),
    ):
        assert answer.status_code == 404
        assert "--sandbox" in answer.json()["error"]["message"]


@pytest.mark.slow
def test_content_when_its_client_leaves_then_nothing_is_held(serve_code):
    server, _ = serve_code(calls("open('big', 'w').write('x' * 20_000_000)"), "done")
    made = client_of(server).containers.create(name="mine")
    tool = {"type": "code_interpreter", "container": made.id}
    server.post(PATH, {"input": "hi", "tools": [tool]})
    path = f"{CONTAINERS}/{made.id}/files"
    [file] = server.client.get(path).json()["data"]
    with httpx.stream("GET", f"{server.base_url}{path}/{file['id']}/content") as answer:
        next(answer.iter_raw())
    [container] = server.state.containers.all_of("")
    wait_until(lambda: container.num_users == 0, 30)
