"""Messages of a Jupyter kernel that are forged or replayed: only their own sandbox hears them."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from lingflash.sandbox.inside.agent import KernelContext


@pytest.fixture
def other(server):
    """Another's sandbox, in which x is 1."""
    made = server.create(timeout=600)
    assert made.execute("x = 1") != []
    yield made
    assert made.execute("x + 1")[-1]["text"] == "2"
    made.kill()


# Writes lines to the pipe by which the agent answers the server and, if TO_IT, to that by which it
# hears it. Processes and descriptors may end while they are looked at.
WRITES_LINES = """
import os
written = 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        command, fds = open(f"/proc/{pid}/cmdline", "rb").read(), os.listdir(f"/proc/{pid}/fd")
    except OSError:
        continue
    if int(pid) == os.getpid() or b"inside.agent" not in command:
        continue
    for fd in fds:
        try:
            if "pipe" not in os.readlink(f"/proc/{pid}/fd/{fd}"):
                continue
            flags = open(f"/proc/{pid}/fdinfo/{fd}").read().split("flags:")[1].split()[0]
            if not TO_IT and int(flags, 8) & os.O_ACCMODE != os.O_WRONLY:
                continue
            out = os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
            for line in LINES:
                os.write(out, line + b"\\n")
            written += 1
        except OSError:
            continue
print("written", written > 0)
"""
NONSENSE = [
    b"{}",
    b"[]",
    b"nonsense",
    b'{"id": [1]}',
    b"\xff",
    b'{"id": 1, "event": 5}',
    b'{"id": 2, "event": {}}',
]
_AGAIN = {"type": "stdout", "text": "again", "timestamp": 1}
REPLAYED = [
    json.dumps({"id": number, **fields}).encode()
    for number in range(100)
    for fields in ({"event": _AGAIN}, {"done": True}, {"failed": "again"})
]


def as_agent(lines, *, to_it):
    """Python that writes lines as if they were the agent's, or to it, too."""
    return f"LINES, TO_IT = {lines!r}, {to_it}\n{WRITES_LINES}"


def test_context_when_messages_are_forged_then_only_its_own_sandbox_hears_them(box, other):
    box.execute("y = 2")
    wrote = box.python(as_agent(NONSENSE, to_it=True))
    assert wrote.stdout == "written True\n", wrote
    assert other.execute("x + 1")[-1]["text"] == "2"
    box.run("pkill -9 -f inside.agent")
    events = box.execute("1 + 1")  # a new one is started, without the old one's variables
    assert events[-1].get("text") == "2" or box.execute("1 + 1")[-1]["text"] == "2"


@pytest.mark.slow
def test_context_when_messages_are_replayed_then_no_execution_hears_them(box, other):
    box.execute("y = 2")
    for _ in range(2):  # while one runs, of others before and after it
        said = box.execute(as_agent(REPLAYED, to_it=False) + "import time; time.sleep(0.5)\ny + 1")
        told = [each.get("text") for each in said if each["type"] != "number_of_executions"]
        assert told == ["written True\n", "3"]


# A client of its own, in the jail: the key of the kernel's messages is no secret in there.
SENDS_AGAIN = """
import glob
from jupyter_client import BlockingKernelClient
client = BlockingKernelClient(connection_file=glob.glob("/tmp/k*/kernel.json")[0])
client.load_connection_file()
client.start_channels()
client.wait_for_ready(timeout=30)
content = {"code": "ran += 1", "silent": False, "store_history": False, "allow_stdin": False,
           "user_expressions": {}, "stop_on_error": True}
frames = client.session.serialize(client.session.msg("execute_request", content))
for _ in range(5):
    client.shell_channel.socket.send_multipart(frames)
client.get_shell_msg(timeout=30)
print("sent")
"""


@pytest.mark.slow
def test_kernel_when_a_signed_request_is_replayed_then_it_runs_once(box, other):
    box.execute("ran = 0")
    sent = box.python(SENDS_AGAIN)
    assert sent.stdout == "sent\n", sent
    assert box.execute("ran")[-1]["text"] == "1"


KEEPS = """
kernel, kept = get_ipython().kernel, []
serialize = kernel.session.serialize
def keep(*arguments, **named):
    kept.append(serialize(*arguments, **named))
    return kept[-1]
kernel.session.serialize = keep
print("first")
"""
# All that it has ever said, results and "idle" among it, while another execution runs.
SAYS_AGAIN = """
for frames in list(kept):
    kernel.iopub_socket.send_multipart(frames)
import time; time.sleep(0.5)
"third"
"""
# The end of the execution that runs, before it has ended.
ENDS_EARLY = """
kernel._publish_status("idle", "shell")
import time; time.sleep(0.5)
print("late")
"""


@pytest.mark.slow
def test_kernel_when_it_replays_what_it_said_then_no_execution_hears_another_s(box, other):
    box.execute(KEEPS)
    assert [each["text"] for each in box.execute("print('second')") if "text" in each] == [
        "second\n"
    ]
    said = box.execute(SAYS_AGAIN)
    assert [each["type"] for each in said] == ["number_of_executions", "result"]
    assert said[-1]["text"] == "'third'"
    box.execute(ENDS_EARLY)
    assert box.execute("'fifth'")[-1]["text"] == "'fifth'"


@pytest.fixture
async def context(tmp_path):
    made = KernelContext(str(tmp_path))
    await made.start()
    yield made
    await made.close()


@pytest.mark.slow
async def test_kernel_when_it_writes_faster_than_it_is_read_then_nothing_is_lost(context, tmp_path):
    mark = tmp_path / "written"
    code = f"for i in range(5000): print(i, flush=True)\nopen({str(mark)!r}, 'w').close()"
    said = []

    def emit(event):
        while not mark.exists():  # whoever listens is held up until all is written
            time.sleep(0.01)
        said.append(event)

    async with asyncio.timeout(60):
        await context.execute(code, {}, emit)
    lines = "".join(event["text"] for event in said if event["type"] == "stdout").split()
    assert lines == [str(i) for i in range(5000)]


@pytest.mark.slow
async def test_kernel_when_the_end_of_what_it_says_is_lost_then_code_ends_and_that_is_said(context):
    # As where more comes at once than it keeps: the status that ends an execution is not sent.
    code = "get_ipython().kernel._publish_status_and_flush = lambda *a, **k: None\nprint('here')"
    said = []
    async with asyncio.timeout(30):
        await context.execute(code, {}, said.append)
    texts = [event["text"] for event in said if "text" in event]
    assert texts[0] == "here\n"
    assert "lost" in texts[-1]
