"""Shows whether two checkouts look the same from outside: a change of structure must not be seen.

    python tests/compare_checkouts.py BEFORE AFTER [--python PYTHON]

In each checkout it starts the server around the scripted engine with ling-nano's tokenizer and
records what a client can see: the OpenAPI document, every command's `--help`, the names on
/metrics, and the bytes and headers of a fixed set of requests in all four dialects, streamed and
not, errors included, with the log lines that they leave. Ids and times are replaced by their place.
It prints a diff and exits 1 where the two differ. The modules' names may differ between the two.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx

from compare_cases import Case, error_cases, gold_cases, option_cases, other_cases

_IDS = re.compile(r"\b(chatcmpl-|cmpl-|(?:msg|resp|fc|rs|call|item)_)[0-9a-f]{24,}")
_TIMES = re.compile(r'("(?:created|created_at|completed_at)":)\d+')
_LOGGED = re.compile(r"\b(ts|duration_s|ttft_s|e2e_s|at)=\S+")


def normalised(text: str) -> str:
    """The text with ids and times replaced by their place."""
    seen: dict[str, str] = {}

    def place(match: re.Match[str]) -> str:
        return seen.setdefault(match[0], f"{match[1]}<{len(seen)}>")

    return _LOGGED.sub(r"\1=<>", _TIMES.sub(r"\1<>", _IDS.sub(place, text)))


class Server:
    """The checkout's server in a thread, around its scripted engine.

    Args:
        has_text: with ling-nano's tokenizer and template, or in token-id mode.
        drafts: as if the engine speculated.
    """

    def __init__(self, *, has_text: bool = True, drafts: int = 0) -> None:
        from lingflash.api.config import ServerConfig
        from lingflash.core.types import EngineInfo
        from lingflash.text.tokenizer import Tokenizer

        serve = _find(
            "lingflash.api.server:serve_engine",
            "lingflash.httpd.server:run_server",
            "lingflash.api.server:run_server",
        )
        bind_socket = _find(
            "lingflash.httpd.server:bind_socket", "lingflash.api.server:bind_socket"
        )
        scripted = _find("lingflash.link.scripted", "lingflash.engine.scripted")
        folder = _find("lingflash.core.hub:bundled_folder", "lingflash.models.hub:bundled_folder")()
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer is not None

        def script(request: Any, choice: int) -> list[int]:
            prompt = tokenizer.decode(request.prompt_token_ids)
            said = re.findall(r"SAY\[\[(.*?)\]\]", prompt, re.DOTALL)
            return tokenizer.encode(said[-1] if said else "Nothing was asked.")

        info = EngineInfo(
            model="ling-nano",
            max_model_len=2048,
            vocab_size=tokenizer.vocab_size,
            stop_token_ids=[tokenizer.token_id("<|role_end|>") or 0],
            max_num_seqs=8,
            max_num_waiting=8,
            num_blocks=100,
            block_size=16,
            device="cpu",
            dtype="float32",
            num_speculative_tokens=drafts,
        )
        self.scripted = scripted
        self.engine = scripted.ScriptedEngine(script, info)
        config = ServerConfig(
            model_folder=folder if has_text else None,
            api_keys=("first", "second"),
            admin_api_key="admin",
            max_body_bytes=200_000,
        )
        sock = bind_socket("127.0.0.1", 0)
        ready = threading.Event()

        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.current_task()
            await serve(self.engine, config, sock, on_ready=lambda _: ready.set())

        def run() -> None:
            try:
                asyncio.run(main())
            except asyncio.CancelledError:
                pass
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(20)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self.client = httpx.Client(base_url=url, timeout=20)

    def behave(self, fault: str | None) -> None:
        """Make the engine fail in one way or another, or none."""
        from lingflash.core import errors
        from lingflash.core.types import CacheReport

        behaviour = self.scripted.Behaviour(
            num_cached_tokens=4, cache_report=CacheReport("differs", 7)
        )
        if fault == "fail":
            behaviour.fail_after_tokens = 1
            behaviour.fail_with = errors.NonFiniteLogitsError("The logits are not finite.")
        elif fault == "reject":
            behaviour.reject_with = errors.QueueFullError("The queue is full.")
        elif fault == "crash":
            behaviour.reject_with = ValueError("secret")
        elif fault in ("abort", "late"):
            behaviour.hang = True
        self.engine.behaviour = behaviour
        self.engine._ready = fault != "dead"

    def stop(self) -> None:
        """End it."""
        self.client.close()
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)

    def abort_all(self) -> None:
        """Abort what runs, as the end of a drain does."""
        for request_id in list(self.engine._running):
            self._loop.call_soon_threadsafe(self.engine.abort, request_id)


def _find(*places: str) -> Any:
    """The first of these names, modules or `module:name`, that the checkout has."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            found = importlib.import_module(module)
            return getattr(found, name) if name else found
        except (ModuleNotFoundError, AttributeError):
            continue
    raise SystemExit(f"none of these is there: {', '.join(places)}")


class Recorder:
    """Sends the cases and writes down what comes back."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._kept = ""

    def record(self, case: Case) -> str:
        """Status, headers and body of one answer."""
        _, method, path, body, options = case
        self._server.behave(options.get("fault"))
        key = options.get("key", "first")
        headers = {"x-request-id": "id-1"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        if options.get("fault") == "late" and isinstance(body, dict):
            body = {**body, "timeout": 0.05}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        content = content.replace(b"KEPT", self._kept.encode())
        content = content.replace(b'"LONG"', json.dumps("so long " * 1500).encode())
        aborter = None
        if options.get("fault") == "abort":
            aborter = threading.Timer(0.1, self._server.abort_all)
            aborter.start()
        path = path.replace("KEPT", self._kept)
        try:
            response = self._server.client.request(
                method, path, content=None if body is None else content, headers=headers
            )
            seen, text = f"{response.status_code}", response.text
            if options.get("keep"):
                self._kept = response.json()["id"]
            kept = ("content-type", "retry-after", "www-authenticate", "cache-control", "allow")
            for header in (*kept, "x-request-id", "request-id", "connection", "x-accel-buffering"):
                if header in response.headers:
                    seen += f"\n{header}: {response.headers[header]}"
        except httpx.HTTPError as error:
            seen, text = type(error).__name__, ""
        if aborter is not None:
            aborter.join()
        return normalised(f"{seen}\n\n{text}")


def record_answers(logged: io.StringIO) -> dict[str, str]:
    """Every case's answer and the log lines that it left, by name."""
    found: dict[str, str] = {}
    servers: list[tuple[str, Server, list[Case]]] = [
        ("", Server(), [*gold_cases(), *option_cases(), *error_cases(), *other_cases()]),
        ("no tokenizer: ", Server(has_text=False), option_cases()),
        ("speculating: ", Server(drafts=2), [c for c in option_cases() if "report" not in c[0]]),
    ]
    for prefix, server, cases in servers:
        recorder = Recorder(server)
        for case in cases:
            name = f"{prefix}{case[1]} {case[2]}: {case[0]}"
            assert name not in found, name
            start = logged.tell()
            found[name] = recorder.record(case)
            server.client.get("/health")  # whatever was to be logged is logged before this ends
            lines = logged.getvalue()[start:].splitlines()
            found[name] += "\n\n" + "\n".join(normalised(x) for x in lines if "/health" not in x)
        if not prefix:
            headers = {"authorization": "Bearer first"}
            document = server.client.get("/openapi.json", headers=headers).json()
            found["openapi"] = json.dumps(document, indent=1, sort_keys=True)
            series = server.client.get("/metrics", headers=headers).text.splitlines()
            names = {re.sub(r"\s+\S+$", "", x) for x in series if not x.startswith("#")}
            found["metrics"] = "\n".join(sorted(names | {x for x in series if x.startswith("#")}))
        server.stop()
    return found


def record_help() -> dict[str, str]:
    """What `--help` says of every command: its text and its flags, in any order and panel."""
    found: dict[str, str] = {}
    environment = {**os.environ, "COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"}

    def ask(words: list[str]) -> None:
        program = [sys.executable, "-c", "from lingflash.cli import main; main()"]
        text = subprocess.run(
            [*program, *words, "--help"], capture_output=True, text=True, env=environment
        ).stdout
        lines = [
            " ".join(line.strip("│ ").split()) for line in text.splitlines() if line[:1] not in "╭╰"
        ]
        found[" ".join(["ling", *words, "--help"])] = "\n".join(sorted(filter(None, lines)))
        for panel in re.findall(r"^╭─ (.*?)^╰", text, re.MULTILINE | re.DOTALL):
            if not panel.startswith(("Options", "Arguments")):
                for name in re.findall(r"^│ ([a-z][\w-]*) ", panel, re.MULTILINE):
                    ask([*words, name])

    ask([])
    return found


def record() -> dict[str, str]:
    """All that can be seen of the checkout that is on the path."""
    from lingflash.core.log import setup_logging

    logged = io.StringIO()
    setup_logging("debug", logged)
    return {**record_help(), **record_answers(logged)}


def record_checkout(folder: Path, python: str) -> dict[str, str]:
    """Record another checkout, in a process of its own."""
    source = folder.resolve() / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    script = [python, __file__, "--record"]
    done = subprocess.run(script, stdout=subprocess.PIPE, env=environment, check=True)
    answer = json.loads(done.stdout)
    assert Path(answer["package"]).is_relative_to(source), answer["package"]
    return answer["found"]


def compare(before: dict[str, str], after: dict[str, str]) -> int:
    """Print what differs; how many things do."""
    num_different = 0
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, ""), after.get(name, "")
        if old != new:
            num_different += 1
            lines = difflib.unified_diff(
                old.splitlines(), new.splitlines(), f"before: {name}", f"after: {name}", "", "", 1
            )
            print("\n".join(line.rstrip("\n") for line in lines), end="\n\n")
    return num_different


def main() -> int:
    """Compare two checkouts; 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("after", type=Path, nargs="?")
    parser.add_argument("--python", default=sys.executable, help="runs both; has the dev packages")
    parser.add_argument("--record", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        import lingflash

        print(json.dumps({"package": lingflash.__file__, "found": record()}))
        return 0
    if options.before is None or options.after is None:
        parser.error("two checkouts are needed")
    before, after = (record_checkout(f, options.python) for f in (options.before, options.after))
    different = compare(before, after)
    print(f"{len(before)} things before, {len(after)} after, {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
