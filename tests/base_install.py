"""What `pip install lingflash` alone must do; `make base-install` runs it in such an environment.

    PYTHON -I tests/base_install.py

No torch is there. Everything else is real: the wheel, `ling`, a server on a socket.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ABSENT = ("torch", "triton", "safetensors", "ray")
BASE_ROOMS = (
    "core",
    "protocol",
    "cache",
    "text",
    "structured",
    "httpd",
    "link",
    "records",
    "api",
    "evals",
    "gateway",
    "store",
    "bench.over_http",
    "bench.roofline",
    "engine.schedule",
    "cli",
)
NEED_THE_ENGINE = (
    ["serve"],
    ["chat"],
    ["doctor"],
    ["convert", "ling-nano", "converted", "--format", "fp8"],
    ["train"],
    ["bench", "throughput"],
    ["bench", "agent"],
    ["bench", "host"],
    ["bench", "lightning"],
    ["bench", "load"],
    ["bench", "speculation"],
    ["bench", "latency"],
    ["bench", "kernels"],
    ["bench", "serve"],
    ["bench", "soak"],
)
GATEWAY = """
[server]
port = {port}

[[upstream]]
name = "home"
base_url = "http://127.0.0.1:9"
allow_private_address = true

[[model]]
name = "ling"

[[model.endpoint]]
upstream = "home"
"""
LING = str(Path(sys.executable).with_name("ling"))


def ling(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LING, *arguments], capture_output=True, text=True, input=text, timeout=60
    )


def show(what: str) -> None:
    print(f"base install: {what}", flush=True)


def check_imports() -> None:
    for package in ABSENT:
        assert importlib.util.find_spec(package) is None, f"{package} is installed"
    for room in BASE_ROOMS:
        package = importlib.import_module(f"lingflash.{room}")
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    assert "site-packages" in importlib.import_module("lingflash").__file__
    show("all base rooms load")


def check_help() -> None:
    import typer

    from lingflash.cli import app

    found = [[]]
    for name, each in typer.main.get_command(app).commands.items():
        found += [[name], *([name, sub] for sub in getattr(each, "commands", {}))]
    assert len(found) > 15, found
    for words in found:
        result = ling(*words, "--help")
        assert result.returncode == 0, result.stderr
        assert "Usage" in result.stdout
    show(f"--help of {len(found)} commands")


def check_missing_engine() -> None:
    for words in NEED_THE_ENGINE:
        result = ling(*words, text="hello")
        assert result.returncode == 2, (words, result)
        assert result.stderr.count("\n") == 1, (words, result.stderr)
        assert "pip install 'lingflash[engine]'" in result.stderr, (words, result.stderr)
    used = [sys.executable, "-I", "-c", "from lingflash import LLM"]
    result = subprocess.run(used, capture_output=True, text=True, timeout=60)
    assert result.stderr.endswith("pip install 'lingflash[engine]'.\n"), result.stderr
    show(f"{len(NEED_THE_ENGINE)} commands and LLM name the extra")


def check_missing_ray() -> None:
    os.environ["CLUSTER_TOKEN"] = "t"
    tables = ('[cluster]', 'port = 0', 'token_variable = "CLUSTER_TOKEN"', '[ray]',
              'address = "auto"', '[replica]', 'model = "ling-nano"')  # fmt: skip
    Path("cluster.toml").write_text("\n".join(tables))
    result = ling("cluster", "up")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "pip install 'lingflash[cluster]'" in result.stderr, result.stderr
    show("ling cluster names its extra")


@contextmanager
def scripted_server():
    from lingflash.core.hub import bundled_folder

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    module = "lingflash.bench.over_http.scripted_server"
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", module, str(bundled_folder()), str(port), "1"]
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
                break
            except OSError:
                assert process.poll() is None, f"the server ended: {process.returncode}"
                assert time.monotonic() < deadline, "the server is not ready"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()


def ask(url: str, **fields: object) -> str:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": "Hello!"}], "tools": [tool], **fields}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps({"max_tokens": 16, **body}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def check_server() -> None:
    with scripted_server() as url:
        answer = json.loads(ask(url))
        text = answer["choices"][0]["message"]["content"]
        assert text.startswith("The weather in the city is fine"), answer
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 16
        stream = ask(url, stream=True)
        assert stream.endswith("data: [DONE]\n\n"), stream
        pieces = [
            json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            for line in stream.splitlines()
            if line.startswith("data: {")
        ]
        assert "".join(pieces) == text
        show("the server answers, whole and streamed")
        for name in ("/ui", "/ui/app.js", "/ui/vendor/preact.mjs"):
            with urllib.request.urlopen(url + name, timeout=30) as answer:
                assert len(answer.read()) > 500, name
        show("the server has its page")
        said = ling("chat", "--url", url, "--max-tokens", "16", text="Hello!")
        assert said.returncode == 0, said.stderr
        assert said.stdout == text + "\n"
        show("ling chat --url")
        words = ["--requests", "8", "--clients", "2", "--out", "serve.json", "--allow-dirty"]
        measured = ling("bench", "serve", "--url", url, *words)
        assert measured.returncode == 0, measured.stderr
        assert json.loads(Path("serve.json").read_text())["torch"] is None
        show("ling bench serve --url")


def measure_gateway() -> None:
    """How large the box is that a gateway needs: on disk, in memory, until it is ready."""
    packages = Path(importlib.import_module("lingflash").__file__).parents[1]
    files = [each.stat() for each in packages.rglob("*") if each.is_file()]
    own = sum(each.stat().st_size for each in (packages / "lingflash").rglob("*") if each.is_file())
    count = len(list(packages.glob("*.dist-info")))
    megabytes = sum(each.st_size for each in files) / 1e6
    show(f"{count} packages, {megabytes:.0f} MB, of these lingflash {own / 1e6:.0f} MB")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    Path("gateway.toml").write_text(GATEWAY.format(port=port))
    samples: list[tuple[float, float]] = []
    for _ in range(6):
        started = time.monotonic()
        process = subprocess.Popen([LING, "gateway"], stderr=subprocess.DEVNULL)
        try:
            while not answers(f"http://127.0.0.1:{port}/ready"):
                assert process.poll() is None, f"the gateway ended: {process.returncode}"
                assert time.monotonic() - started < 60, "the gateway is not ready"
                time.sleep(0.01)
            ready_s = time.monotonic() - started
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0]) / 1000
            samples.append((ready_s, resident))
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
    first, *others = samples  # the first one makes the database
    ready_s, resident = (sorted(each)[len(others) // 2] for each in zip(*others, strict=True))
    show(
        f"ling gateway is ready in {ready_s:.2f} s (first {first[0]:.2f}), takes {resident:.0f} MB"
    )


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        check_imports()
        check_help()
        check_missing_engine()
        check_missing_ray()
        check_server()
        measure_gateway()
