"""A real HTTP server on a free loopback port, around a scripted engine, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import httpx

from lingflash.api.server import serve_engine
from lingflash.core.types import EngineInfo
from lingflash.httpd.server import bind_socket
from lingflash.link.scripted import Behaviour, ScriptedEngine
from toy_text import TEMPLATE, toy_definition, toy_tokenizer

TOKENIZER = toy_tokenizer()
END = TOKENIZER.token_id("<|role_end|>")
MAX_MODEL_LEN = 4096


def engine_info(**changes):
    info = EngineInfo(
        model="toy",
        max_model_len=MAX_MODEL_LEN,
        vocab_size=TOKENIZER.vocab_size,
        stop_token_ids=[END],
        max_num_seqs=32,
        max_num_waiting=64,
        num_blocks=100,
        block_size=64,
        device="cpu",
        dtype="float32",
    )
    return dataclasses.replace(info, **changes)


def write_toy_model(folder: Path) -> Path:
    (folder / "tokenizer.json").write_text(toy_definition(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def says(text):
    """A script that answers every prompt with one text."""
    return {(): TOKENIZER.encode(text)}


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
# The same call as no template would write it.
ODD_CALL = '<tool_call>{ "arguments":{"city" : "Rom\\u0065"}, "name":"get_weather"}</tool_call>'
ANSWER = "It is sunny in Rome."


class ToolLoop:
    """A script that calls get_weather once and then answers, in a model's own text form.

    Args:
        tokenizer: of the model whose template is used.
        first: what is said before there is a result.
    """

    def __init__(self, tokenizer, first=CALL):
        self.tokenizer = tokenizer
        self.first = first
        self.generated = []

    def __call__(self, request, choice):
        prompt = self.tokenizer.decode(request.prompt_token_ids)
        text = ANSWER if "<tool_response>" in prompt else self.first
        self.generated.append((list(request.prompt_token_ids), self.tokenizer.encode(text)))
        return self.generated[-1][1]

    def check_prefix(self):
        """Each prompt continues the one before it and what was generated then."""
        assert len(self.generated) > 1
        for (prompt, answer), (following, _) in zip(
            self.generated, self.generated[1:], strict=False
        ):
            assert following[: len(prompt) + len(answer)] == [*prompt, *answer]

    def check_result(self, text):
        """The result of the tool reached the model."""
        assert text in self.tokenizer.decode(self.generated[-1][0])


def wait_ready(url, process, log, timeout_s):
    """Until a server that writes to a log answers /ready; it must go on running."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(url + "/ready", timeout=5).status == 200:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextlib.contextmanager
def serve_ling_nano(*flags):
    """The bundled model behind `ling serve`; gives the URL of its API."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from lingflash.cli import main; main()"),
            *("serve", "--port", "0", "--max-num-seqs", "8", "--log-level", "warning", *flags),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    said = ""
    try:
        for line in process.stderr:
            said += line
            if line.startswith("serving "):
                break
        else:
            raise AssertionError(f"the server ended: {said}")
        assert "weights" in said  # the memory plan
        yield line.split(" on ")[1].strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


class RunningServer:
    """A server in a thread of its own; `engine` may be told to misbehave from the test."""

    def __init__(self, script, *, config, info=None, behaviour=None):
        self.engine = ScriptedEngine(script, info or engine_info(), behaviour or Behaviour())
        sock = bind_socket("127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self.error: BaseException | None = None
        self.state = None
        ready = threading.Event()

        def on_ready(state):
            self.state = state
            ready.set()

        async def main():
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.current_task()
            await serve_engine(self.engine, config, sock, on_ready=on_ready)

        def run():
            try:
                asyncio.run(main())
            except asyncio.CancelledError:
                pass
            except BaseException as error:
                self.error = error
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(10)
        self.client = httpx.Client(base_url=self.base_url, timeout=10)

    def call(self, function, *args, **kwargs):
        """Run something on the server's loop, such as engine.die."""
        done = threading.Event()

        def work():
            function(*args, **kwargs)
            done.set()

        self._loop.call_soon_threadsafe(work)
        assert done.wait(5)

    def wait_stopped(self, timeout_s=10):
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()

    def stop(self):
        self.client.close()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self.wait_stopped()

    def post(self, path, body, **kwargs):
        return self.client.post(path, json=body, **kwargs)

    def chat(self, text="hi", **fields):
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"messages": messages, **fields})

    def complete(self, prompt="hi", **fields):
        return self.post("/v1/completions", {"prompt": prompt, **fields})

    def stream(self, path, body):
        """Events of a streamed answer: decoded JSON, and the string [DONE]."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            return parse_events(response.read())

    def stream_chat(self, text="hi", **fields):
        messages = [{"role": "user", "content": text}]
        return self.stream("/v1/chat/completions", {"messages": messages, **fields})

    def metric(self, name):
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(name + " ") or line.startswith(name + "{"):
                return float(line.rsplit(" ", 1)[1])
        return 0.0


def parse_events(data: bytes):
    events = []
    for block in data.decode("utf-8").split("\n\n"):
        if not block:
            continue
        assert block.startswith("data: "), block
        payload = block.removeprefix("data: ")
        events.append(payload if payload == "[DONE]" else json.loads(payload))
    return events


def read_named_events(data):
    """Events by name; the data's type must be the name. The last may be [DONE]."""
    events = []
    for block in data.decode().split("\n\n"):
        lines = block.split("\n")
        if lines == [""]:
            continue
        if lines == ["data: [DONE]"]:
            events.append("[DONE]")
            continue
        name, payload = lines
        event = json.loads(payload.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def wait_until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)
