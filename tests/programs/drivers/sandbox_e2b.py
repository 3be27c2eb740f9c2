"""E2B's Python SDK through a sandbox's life, or Novita's.

python sandbox_e2b.py e2b|novita PART ...     prints each part that held; ends at one that does not
"""

from __future__ import annotations

import gc
import io
import sys
import time

# The SDKs leave streams behind in cycles. One that is collected while httpcore holds its pool's
# lock waits for that lock for ever, in the thread that holds it.
gc.disable()
NOVITA = sys.argv[1] == "novita"

if NOVITA:
    from novita_sandbox.code_interpreter import Sandbox
    from novita_sandbox.core.exceptions import NotFoundException, SandboxException
else:
    from e2b import NotFoundException, SandboxException
    from e2b_code_interpreter import Sandbox


def raised(work, *kinds):
    try:
        work()
    except kinds as error:
        return error
    raise AssertionError(f"nothing of {kinds} was raised")


def wait_for(take, enough):
    deadline, found = time.monotonic() + 10, []
    while not enough(found):
        assert time.monotonic() < deadline, found
        found += take()
        time.sleep(0.05)
    return found


def files(box):
    assert box.files.write("a/b.txt", "text").path == "/home/user/a/b.txt"
    assert box.files.read("a/b.txt") == "text"
    assert bytes(box.files.read("a/b.txt", format="bytes")) == b"text"
    assert b"".join(box.files.read("a/b.txt", format="stream")) == b"text"
    box.files.write_files([{"path": "c", "data": "1"}, {"path": "d", "data": b"\xff"}])
    assert bytes(box.files.read("d", format="bytes")) == b"\xff"
    big = bytes(range(256)) * 20_000
    box.files.write("big", io.BytesIO(big))
    assert bytes(box.files.read("big", format="bytes")) == big
    if not NOVITA:
        box.files.write("packed", "x" * 10_000, gzip=True)
        assert box.files.get_info("packed").size == 10_000
    names = {entry.name: entry.type.value for entry in box.files.list("/home/user")}
    assert names["a"] == "dir"
    assert names["c"] == "file"
    assert "a/b.txt" in str([entry.path for entry in box.files.list("/home/user", depth=2)])
    assert box.files.exists("c")
    assert not box.files.exists("nope")
    assert box.files.make_dir("e")
    assert not box.files.make_dir("e")
    assert box.files.rename("c", "e/c").path == "/home/user/e/c"
    box.files.remove("e")
    assert not box.files.exists("e")
    assert box.files.get_info("a/b.txt").permissions == "-rw-r--r--"
    raised(lambda: box.files.read("nope"), NotFoundException)
    raised(lambda: box.files.read("a"), SandboxException)


def watch(box):
    watching = box.files.watch_dir("/home/user", recursive=True)
    box.files.write("seen/first", "1")
    box.files.remove("seen/first")
    found = wait_for(
        watching.get_new_events, lambda events: any(e.type.value == "remove" for e in events)
    )
    assert ("seen", "create") in {(event.name, event.type.value) for event in found}
    watching.stop()


def commands(box):
    parts = []
    done = box.commands.run("echo out; echo err >&2; echo $FOO", on_stdout=parts.append)
    assert (done.stdout, done.stderr, done.exit_code) == ("out\nbar\n", "err\n", 0)
    assert "".join(parts) == "out\nbar\n"
    assert raised(lambda: box.commands.run("exit 3"), SandboxException).exit_code == 3
    assert box.commands.run("pwd", cwd="/tmp", envs={"A": "b"}).stdout == "/tmp\n"
    handle = box.commands.run("cat", background=True, stdin=True)
    box.commands.send_stdin(handle.pid, "hi\n")
    assert handle.pid in [process.pid for process in box.commands.list()]
    if NOVITA:
        assert box.commands.kill(handle.pid)
    else:
        box.commands.close_stdin(handle.pid)
        assert handle.wait().stdout == "hi\n"
    handle = box.commands.run("sleep 1000", background=True)
    joined = box.commands.connect(handle.pid)
    assert box.commands.kill(handle.pid)
    assert not box.commands.kill(handle.pid + 10_000)
    raised(joined.wait, SandboxException)
    raised(lambda: box.commands.run("sleep 1000", timeout=0.5), Exception)


def code(box):
    done = box.run_code("x = 41\nprint('hi')\nx + 1")
    assert (done.text, done.logs.stdout, done.error) == ("42", ["hi\n"], None)
    assert box.run_code("import os; os.environ['FOO'], os.environ.get('A')").text == "('bar', None)"
    assert box.run_code("os.environ['A']", envs={"A": "b"}).text == "'b'"
    plot = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"
    assert box.run_code(plot).results[0].png.startswith("iVBOR")
    failed = box.run_code("1 / 0")
    assert failed.error.name == "ZeroDivisionError"
    raised(lambda: box.run_code("import time; time.sleep(1000)", timeout=1), Exception)
    assert box.run_code("x").text == "41"
    context = box.create_code_context(cwd="/tmp")
    assert box.run_code("import os; os.getcwd()", context=context).text == "'/tmp'"
    assert box.run_code("'x' in globals()", context=context).text == "False"
    assert context.id in [each.id for each in box.list_code_contexts()]
    box.run_code("y = 1", context=context)
    box.restart_code_context(context)
    assert box.run_code("y", context=context).error.name == "NameError"
    box.remove_code_context(context)
    assert box.run_code("echo $FOO", language="bash").logs.stdout == ["bar\n"]
    assert box.run_code("console.log(6 * 7)", language="js").logs.stdout == ["42\n"]


def life(box):
    info = box.get_info()
    assert info.metadata == {"who": "test"}
    assert box.is_running()
    box.set_timeout(100)
    again = Sandbox.connect(box.sandbox_id)
    assert again.files.read("a/b.txt") == "text"
    assert box.sandbox_id in [each.sandbox_id for each in Sandbox.list().next_items()]
    if not NOVITA:
        assert box.get_metrics()[0].mem_total == 2**30
        box.pause()
        assert not box.is_running()
        resumed = Sandbox.connect(box.sandbox_id)
        assert resumed.files.read("a/b.txt") == "text"
        assert resumed.run_code("1 + 1").text == "2"
    assert box.kill()
    assert not box.is_running()
    raised(lambda: box.files.read("a/b.txt"), Exception)


def expiry(box):
    short = Sandbox.create(timeout=1)
    wait_for(lambda: [] if short.is_running() else [1], bool)


PARTS = {part.__name__: part for part in (files, watch, commands, code, life, expiry)}
box = Sandbox.create(timeout=300, envs={"FOO": "bar"}, metadata={"who": "test"})
for name in sys.argv[2:]:
    PARTS[name](box)
    print(name, flush=True)
