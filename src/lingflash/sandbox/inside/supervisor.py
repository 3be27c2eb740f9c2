"""Process 1 of a jail: starts, feeds, signals and reaps all others, as the server's frames say.

Frames both ways are two lengths, a JSON object and bytes. A process is named by the `id` that the
server gave it. To the jail come:

    start {id, argv | call, args, env, cwd, stdin, unlimited}
                              call: a function of file_calls or watching
    stdin {id} + bytes        answered by `took` once the process has all of it
    eof {id}                  closes its input
    signal {id, signal}       to its process group, and with SIGKILL to its descendants
    ack {id, size}            so many more bytes of its output may come
    usage {}, killall {}      answered by `usage`, `killed`

and from it: `ready`, `started {id, pid}`, `failed {id, message}`, `out {id, fd}` + bytes,
`took {id, count}`, `end {id, code, signal, dropped}`. At the end of the channel everything ends:
this is the init of the namespace, so the kernel kills the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time
from typing import Any

from lingflash.sandbox.inside import file_calls, walls, watching
from lingflash.sandbox.inside.watchdog import Watchdog, descendants

_LENGTHS = struct.Struct("<II")
_MAX_FRAME = 1 << 20
_CHUNK = 1 << 16
# Output that the server has not taken yet; beyond it the process waits, as on any full pipe.
WINDOW_BYTES = 4 * _CHUNK
_WATCH_S = 0.2
# What Python or we treat otherwise than a program expects to find it.
_OWN_SIGNALS = (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ)
CALLS = {**file_calls.CALLS, "watch": watching.watch}


class _Process:
    def __init__(self, pid: int, stdin: int | None, outputs: dict[int, int], limit: int) -> None:
        self.pid = pid
        self.stdin = stdin
        self.outputs = outputs  # our end of the pipe to 1 or 2
        self.pending = b""
        self.untold = 0  # pieces of input that `took` has not been said of
        self.wants_eof = False
        self.window = WINDOW_BYTES
        self.room = limit  # bytes of output that will still be passed on
        self.dropped = 0
        self.status: int | None = None


class Supervisor:
    """The loop; single-threaded, so that it may fork."""

    def __init__(self, channel: socket.socket, config: dict[str, Any]) -> None:
        self._channel = channel
        self._config = config
        self._processes: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, None)
        self._watchdog = Watchdog(config["memory_bytes"] if config["watch_memory"] else None)
        self._paused_reads: set[int] = set()

    def run(self) -> None:
        """Serve until the server hangs up."""
        wake, wakened = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakened, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # For what has no handler the kernel protects process 1; Python has one for this.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._selector.register(wake, selectors.EVENT_READ, wake)
        self._send({"ev": "ready"})
        watched = time.monotonic()
        while True:
            for key, _ in self._selector.select(_WATCH_S):
                if key.data is None:
                    if not self._receive():
                        return
                elif key.data == wake:
                    os.read(wake, 4096)
                else:
                    self._on_pipe(*key.data)
            self._reap()
            if time.monotonic() - watched >= _WATCH_S:
                self._watchdog.look()
                watched = time.monotonic()

    def _send(self, head: dict[str, Any], body: bytes = b"") -> None:
        packed = json.dumps(head).encode()
        self._channel.sendall(_LENGTHS.pack(len(packed), len(body)) + packed + body)

    def _receive(self) -> bool:
        frame = _read_frame(self._channel)
        if frame is None:
            return False
        head, body = frame
        op = head.get("op")
        if op == "start":
            self._start(head)
        elif op == "usage":
            self._send({"ev": "usage", **self._watchdog.usage()})
        elif op == "killall":
            _kill(-1, signal.SIGKILL)  # all that there are but process 1
            self._send({"ev": "killed"})
        elif (process := self._processes.get(head.get("id", -1))) is not None:
            self._tell(op, head["id"], process, head, body)
        return True

    def _tell(
        self, op: Any, number: int, process: _Process, head: dict[str, Any], body: bytes
    ) -> None:
        if op == "stdin":
            if process.stdin is None:
                self._send({"ev": "took", "id": number, "count": 1, "gone": True})
                return
            process.pending += body
            process.untold += 1
            self._feed(number, process)
        elif op == "eof":
            process.wants_eof = True
            if not process.pending:
                self._close_stdin(process)
        elif op == "signal":
            if head["signal"] == signal.SIGKILL:
                for pid in descendants(process.pid):
                    _kill(pid, signal.SIGKILL)
            if not _kill(-process.pid, head["signal"]):
                _kill(process.pid, head["signal"])
        elif op == "ack":
            process.window += head["size"]
            if process.window > 0:
                for fd, ours in process.outputs.items():
                    if ours in self._paused_reads:
                        self._paused_reads.discard(ours)
                        self._selector.register(ours, selectors.EVENT_READ, (number, fd))

    def _start(self, head: dict[str, Any]) -> None:
        number = head["id"]
        opened: list[int] = []
        try:
            if len(self._processes) >= self._config["processes"]:
                raise BlockingIOError(11, "too many processes run already")
            for _ in range(4):  # input, output, errors, and why it could not be run
                opened += os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
        except OSError as error:
            for fd in opened:
                os.close(fd)
            self._send({"ev": "failed", "id": number, "message": str(error), "errno": error.errno})
            return
        if pid == 0:
            _become(head, opened, self._config)
        in_r, in_w, out_r, out_w, err_r, err_w, why_r, why_w = opened
        for fd in (in_r, out_w, err_w, why_w):
            os.close(fd)
        why = _read_all(why_r)  # until exec closes it, or it says what failed
        os.close(why_r)
        if why:
            for fd in (in_w, out_r, err_r):
                os.close(fd)
            os.waitpid(pid, 0)
            self._send({"ev": "failed", "id": number, **json.loads(why)})
            return
        for fd in (in_w, out_r, err_r):
            os.set_blocking(fd, False)
        if not head.get("stdin"):
            os.close(in_w)
            in_w = None
        process = _Process(pid, in_w, {1: out_r, 2: err_r}, self._config["output_bytes"])
        if "call" in head or head.get("unlimited"):  # a file, or what the server itself counts
            process.room = sys.maxsize
        self._processes[number] = process
        for fd, ours in process.outputs.items():
            self._selector.register(ours, selectors.EVENT_READ, (number, fd))
        self._send({"ev": "started", "id": number, "pid": pid})

    def _on_pipe(self, number: int, fd: int) -> None:
        process = self._processes.get(number)
        if process is None:
            return
        if fd == 0:
            self._feed(number, process)
        elif fd in process.outputs:
            self._drain(number, process, fd)

    def _feed(self, number: int, process: _Process) -> None:
        """Write what waits for a process's input, as much as its pipe takes."""
        assert process.stdin is not None
        try:
            written = os.write(process.stdin, process.pending)
            process.pending = process.pending[written:]
        except BlockingIOError:
            pass
        except OSError:  # it has closed its end
            process.pending, process.wants_eof = b"", True
        is_waiting = process.stdin in self._selector.get_map()
        if process.pending and not is_waiting:
            self._selector.register(process.stdin, selectors.EVENT_WRITE, (number, 0))
        elif not process.pending:
            if is_waiting:
                self._selector.unregister(process.stdin)
            self._send({"ev": "took", "id": number, "count": process.untold})
            process.untold = 0
            if process.wants_eof:
                self._close_stdin(process)

    def _close_stdin(self, process: _Process) -> None:
        if process.stdin is not None:
            if process.stdin in self._selector.get_map():
                self._selector.unregister(process.stdin)
            os.close(process.stdin)
            process.stdin = None

    def _drain(self, number: int, process: _Process, fd: int) -> bool:
        """Pass on what there is on a pipe.

        Returns:
            Whether there may be more at once.
        """
        ours = process.outputs[fd]
        if process.window <= 0 and process.room > 0:
            if ours not in self._paused_reads:
                self._selector.unregister(ours)
                self._paused_reads.add(ours)
            return False
        try:
            data = os.read(ours, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._close_output(process, fd)
            return False
        passed = data[: process.room]
        process.room -= len(passed)
        process.dropped += len(data) - len(passed)
        if passed:
            process.window -= len(passed)
            self._send({"ev": "out", "id": number, "fd": fd}, passed)
        return True

    def _close_output(self, process: _Process, fd: int) -> None:
        ours = process.outputs.pop(fd)
        if ours in self._selector.get_map():
            self._selector.unregister(ours)
        self._paused_reads.discard(ours)
        os.close(ours)

    def _reap(self) -> None:
        by_pid = {process.pid: process for process in self._processes.values()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in by_pid:
                by_pid[pid].status = status
        for number, process in list(self._processes.items()):
            if process.status is not None:
                self._end(number, process)

    def _end(self, number: int, process: _Process) -> None:
        """Say that a process has ended, once what it wrote has been passed on.

        Its children may hold the pipes open for as long as they like; they are not waited for.
        """
        for fd in list(process.outputs):
            while self._drain(number, process, fd):
                pass
            if fd in process.outputs and process.outputs[fd] in self._paused_reads:
                return  # the server takes the rest first
        for fd in list(process.outputs):
            self._close_output(process, fd)
        self._close_stdin(process)
        del self._processes[number]
        code = os.waitstatus_to_exitcode(process.status or 0)
        self._send(
            {
                "ev": "end",
                "id": number,
                "code": max(code, 0),
                "signal": max(-code, 0),
                "dropped": process.dropped,
            }
        )


def _become(head: dict[str, Any], opened: list[int], config: dict[str, Any]) -> None:
    """In the child: be the process that was asked for. Does not return."""
    in_r, _, _, out_w, _, err_w, _, why_w = opened
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _OWN_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(in_r if head.get("stdin") else null, 0)
        os.dup2(out_w, 1)
        os.dup2(err_w, 2)
        os.chdir(head.get("cwd") or walls.HOME)
        walls.show_in_proc()
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")  # of a full memory cgroup rather this than process 1
        for name, value in config["rlimits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        if "call" in head:
            os.closerange(3, 1 << 20)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error to be told instead
            _call(head)
        os.execvpe(head["argv"][0], head["argv"], head["env"])
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
        os.write(why_w, json.dumps({"message": message, "errno": error.errno}).encode())
    except BaseException as error:
        os.write(why_w, json.dumps({"message": str(error), "errno": None}).encode())
    os._exit(127)


def _call(head: dict[str, Any]) -> None:
    """Run one of our own functions as if it was a program; errors go to its stderr as JSON."""
    code = 0
    try:
        CALLS[head["call"]](**head["args"])
    except OSError as error:
        path = head["args"].get("path") or head["args"].get("source")
        answer = {"errno": error.errno, "message": f"{path}: {error.strerror or error}"}
        os.write(2, json.dumps(answer).encode())
        code = 1
    except BaseException as error:
        os.write(2, json.dumps({"errno": None, "message": repr(error)[:500]}).encode())
        code = 1
    os._exit(code)


def _kill(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _read_all(fd: int) -> bytes:
    parts = b""
    while part := os.read(fd, 4096):
        parts += part
    return parts


def _read_frame(channel: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    lengths = _read_exactly(channel, _LENGTHS.size)
    if lengths is None:
        return None
    head_size, body_size = _LENGTHS.unpack(lengths)
    if head_size + body_size > 4 * _MAX_FRAME:
        return None
    data = _read_exactly(channel, head_size + body_size)
    return None if data is None else (json.loads(data[:head_size]), data[head_size:])


def _read_exactly(channel: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = channel.recv(count - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def main() -> None:
    """Build the walls and serve the channel whose descriptor is the last argument."""
    channel = socket.socket(fileno=int(sys.argv[-1]))
    os.set_inheritable(channel.fileno(), False)
    # Whatever else the server had open when it started us; nothing of it may be seen in here.
    os.closerange(3, channel.fileno())
    os.closerange(channel.fileno() + 1, 1 << 20)
    first = _read_frame(channel)
    if first is None:
        return
    config, program = first
    walls.build({**config, "filter": program})
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server is gone
        Supervisor(channel, config).run()
    os._exit(0)
