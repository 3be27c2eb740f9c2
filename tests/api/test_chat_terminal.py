"""`ling chat` in a real terminal (a pty), against a scripted server."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lingflash.link.scripted import Behaviour

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")


class Terminal:
    def __init__(self, *arguments, kind="dumb"):
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from lingflash.cli import main; main()", "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=_own_the_terminal,
            env={**os.environ, "TERM": kind},
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, text, timeout_s=15):
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            ready, _, _ = select.select([self._master], [], [], 0.1)
            if ready:
                try:
                    self.seen += os.read(self._master, 65536).decode("utf-8", "replace")
                except OSError:
                    break
            assert time.monotonic() < deadline, self.seen
        assert text in self.seen, self.seen
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self._master, text.encode())

    def interrupt_until(self, text, timeout_s=15):
        """Type Ctrl-C until `text` is seen, as a person does.

        Python handles a signal between two of its own instructions. One that comes after the
        prompt was written and before the read of the terminal began waits for the next key.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.type("\x03")
            try:
                self.wait_for(text, timeout_s=1)
            except AssertionError:
                assert time.monotonic() < deadline, self.seen
            else:
                return

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def _own_the_terminal():
    # So that a typed Ctrl-C becomes a SIGINT, as in a shell.
    import fcntl
    import termios

    # A test run in the background of a script passes on that it ignores the signal.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_chat_when_ctrl_c_is_typed_then_the_answer_stops_and_the_program_goes_on(make_server):
    server = make_server("word " * 500, behaviour=Behaviour(delay_s=0.02))
    terminal = Terminal("--url", server.base_url, "--system", "be kind")
    try:
        terminal.wait_for("> ")
        terminal.type("tell me\n")
        terminal.wait_for("word word")
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        terminal.wait_for("> ")
        deadline = time.monotonic() + 5
        while not server.engine.aborted:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.engine.behaviour.delay_s = 0
        terminal.type("/frob\n")
        terminal.wait_for("/reset")
        terminal.wait_for("> ")
        terminal.type("/reset\n")
        terminal.wait_for("forgotten")
        terminal.wait_for("> ")
        terminal.type("again\n")
        terminal.wait_for("word word")
        terminal.wait_for("> ")
        terminal.interrupt_until("/exit ends")
        terminal.type("/exit\n")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()
    assert len(server.engine.requests) == 2


def test_chat_when_a_prompt_is_long_then_its_progress_is_shown_until_the_answer(make_server):
    steps = Behaviour(delay_s=0.2, prompt_tokens_per_step=200, num_cached_tokens=64)
    server = make_server("fine", behaviour=steps)
    terminal = Terminal("--url", server.base_url, kind="xterm")
    try:
        terminal.wait_for("> ")
        terminal.type("word " * 100 + "\n")
        terminal.wait_for("read 264 of ")
        terminal.wait_for(" tokens (64 from the cache)")
        terminal.wait_for("fine")
        terminal.wait_for("> ")
        terminal.type("/exit\n")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()
    assert server.engine.requests[0].wants_progress


class Stranger(BaseHTTPRequestHandler):
    """A server of somebody else: it knows nothing but chat, and keeps what it was sent."""

    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        answer = b'data: {"choices": [{"delta": {"content": "hello"}}]}\n\ndata: [DONE]\n\n'
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def test_chat_when_the_server_is_not_ours_then_no_field_that_it_may_refuse_is_sent():
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        server.bodies = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        terminal = Terminal("--url", f"http://127.0.0.1:{server.server_port}")
        try:
            terminal.wait_for("> ")
            terminal.type("hi\n")
            terminal.wait_for("hello")
            terminal.wait_for("> ")
        finally:
            terminal.close()
            server.shutdown()
    assert server.bodies == [{"messages": [{"role": "user", "content": "hi"}], "stream": True}]
