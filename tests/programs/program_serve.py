"""The server of one program's test.

python program_serve.py scripted SCENARIO.json RECORD.jsonl
    answers with ling-nano's tokenizer and template what the scenario says, and records every
    prompt, every answer, and every request that ended in an error; behind a gateway if it says so
python program_serve.py ling-nano [FLAG ...]
    the model itself behind `ling serve`

Both first bring the loopback of their network namespace up.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import socket
import struct
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway_support import start_gateway_to
from lingflash.api.app import create_app
from lingflash.api.config import ServerConfig
from lingflash.api.server import serve_engine
from lingflash.cli import main, report_errors
from lingflash.core.hub import bundled_folder
from lingflash.core.log import setup_logging
from lingflash.core.types import EngineInfo, EngineRequest
from lingflash.httpd.server import bind_socket
from lingflash.link.scripted import Behaviour, ScriptedEngine
from lingflash.text.tokenizer import Tokenizer
from program_cell import ANSWER, KEY

PORT = 8000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


class Scenario:
    """Says what the model says.

    The main loop is the requests that offer `tool`: they get the texts of `turns` one after the
    other, a prompt that was seen before its old text. With `by_turns` the number of answers in
    the prompt says which turn it is, so that one program can run several loops. Requests whose
    prompt ends with a match of a pattern of `others` get its text, all the rest `other`. A
    "<<word>>" in a turn stands for the first offered tool whose name ends with the word, since a
    program's name for a tool need not be the prompt's.
    """

    def __init__(self, fields, record):
        self.tokenizer = Tokenizer.from_folder(bundled_folder())
        self._tool = fields["tool"]
        self._turns = fields["turns"]
        self._others = fields.get("others", {})
        self._other = fields.get("other", "Tools and tests")
        self._by_turns = fields.get("by_turns", False)
        self._record = record
        self._said: dict[tuple[int, ...], str] = {}

    def __call__(self, request: EngineRequest, choice: int) -> list[int]:
        prompt = list(request.prompt_token_ids)
        text = self.tokenizer.decode(prompt)
        kind, answer = self._answer(tuple(prompt), text)
        tokens = self.tokenizer.encode(answer)
        self._record({"kind": kind, "prompt": prompt, "answer": tokens})
        return tokens

    def _answer(self, prompt, text):
        for pattern, answer in self._others.items():
            if re.search(pattern, text[-2000:]):
                return "other", answer
        offered, has_tools, _ = text.partition("\n</tools>\n")
        if not has_tools or f'"name": "{self._tool}"' not in offered:
            return "other", self._other
        if prompt not in self._said:
            turn = text.count(ANSWER) - 1 if self._by_turns else len(self._said)
            say = self._turns[min(turn, len(self._turns) - 1)]
            self._said[prompt] = re.sub("<<(.*?)>>", lambda part: _find_tool(part[1], offered), say)
        return "main", self._said[prompt]


def _find_tool(word: str, offered: str) -> str:
    found = re.search(rf'"name": "([^"]*({word}))"', offered)
    return found[1] if found else word


class RecordErrors:
    """ASGI middleware that records the requests that were refused, with their answers."""

    def __init__(self, app, record):
        self._app = app
        self._record = record

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        asked, said, status = bytearray(), bytearray(), 0

        async def read():
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def write(message):
            nonlocal status
            status = message.get("status", status)
            if status >= 400:
                said.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, read, write)
        if status >= 400:
            entry = {"kind": "http", "method": scope["method"], "path": scope["path"]}
            entry["request"] = asked.decode(errors="replace")
            self._record({**entry, "status": status, "answer": said.decode(errors="replace")})
        return None


def bring_loopback_up() -> None:
    """A new network namespace has a loopback device that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


async def _serve(fields, record) -> None:
    scenario = Scenario(fields, record)
    end = scenario.tokenizer.token_id("<|role_end|>")
    info = EngineInfo(
        model="ling-nano",
        max_model_len=fields["context"],
        vocab_size=scenario.tokenizer.vocab_size,
        stop_token_ids=[end],
        max_num_seqs=32,
        max_num_waiting=64,
        num_blocks=10_000,
        block_size=64,
        device="cpu",
        dtype="float32",
    )
    engine = ScriptedEngine(scenario, info, Behaviour(tokens_per_event=16))
    config = ServerConfig(
        model_folder=bundled_folder(),
        api_keys=tuple(fields.get("keys", ())),
        drain_timeout_s=0.0,
    )
    is_behind = fields.get("is_behind_gateway", False)
    sock = bind_socket("127.0.0.1", PORT + is_behind)

    def on_ready(_) -> None:
        if is_behind:
            key = {"HOUSE_KEY": fields["keys"][0]}
            url = f"http://127.0.0.1:{PORT + 1}/v1"
            start_gateway_to(url, port=PORT, environ=key)
        print("ready", flush=True)

    def recorded(*args):
        app = create_app(*args)
        app.add_middleware(RecordErrors, record=record)
        return app

    with mock.patch("lingflash.api.server.create_app", recorded):
        await serve_engine(engine, config, sock, on_ready=on_ready)


def _serve_scripted(scenario: str, record_path: str) -> None:
    setup_logging()
    fields = json.loads(Path(scenario).read_text(encoding="utf-8"))
    with open(record_path, "a", encoding="utf-8") as out:

        def record(entry):
            out.write(json.dumps(entry) + "\n")
            out.flush()

        sys.exit(report_errors(lambda: asyncio.run(_serve(fields, record))))


def run(kind: str, *rest: str) -> None:
    """Serve until a signal."""
    bring_loopback_up()
    if kind == "scripted":
        _serve_scripted(*rest)
    main(["serve", kind, "--port", str(PORT), "--api-key", KEY, *rest])


if __name__ == "__main__":
    run(*sys.argv[1:])
