"""ling-nano writes code, has it run and says what came of it, as the README's command starts it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest

from api_support import wait_ready
from code_support import AUTO, OUTPUTS
from gateway_process import GatewayProcess
from sandbox_support import require_bwrap

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def made_serve(log):
    """`make serve SANDBOX=1`, with this environment and no installing; gives its URL."""
    require_bwrap()
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = [f"{each.getsockname()[1]}" for each in (one, other)]
    told = subprocess.run(
        ["make", "-n", "serve", "SANDBOX=1", "VENV=VENV", f"PORT={ports[0]}",
         f"SANDBOX_PORT={ports[1]}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    recipe = told[told.index("VENV/bin/ling sandbox") :]
    recipe = recipe.replace("VENV/bin/ling", f"{sys.executable} -m lingflash")
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["sh", "-c", recipe], stdout=out, stderr=out, start_new_session=True
        )
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        wait_ready(url, process, log, 180)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait(60)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/health", timeout=5)


def test_ling_nano_when_asked_to_calculate_then_it_writes_code_and_reports_the_result(tmp_path):
    with made_serve(tmp_path / "log") as url:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        body = re.search(r"/v1/responses .*? -d '(.*?)'", readme, re.DOTALL)[1]
        request = urllib.request.Request(
            url + "/v1/responses", body.encode(), {"content-type": "application/json"}
        )
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        item, message = answer["output"]
        assert (item["code"], item["status"]) == ("print(17 * 23)", "completed")
        assert item["outputs"] == [{"type": "logs", "logs": "391\n"}]
        assert message["content"][0]["text"] == "The result is 391."
        for shown in ('"code":"print(17 * 23)"', '"logs":"391\\n"', '"text":"The result is 391."'):
            assert shown in readme
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        fields = {"model": "ling-nano", "tools": [AUTO], "include": OUTPUTS, "temperature": 0}
        first = client.responses.create(input="How many r's are in strawberry?", **fields)
        assert first.output_text == "The result is 3."
        second = client.responses.create(
            input="2 to the power of 10", previous_response_id=first.id, **fields
        )
        assert second.output_text == "The result is 1024."
        assert second.output[0].container_id == first.output[0].container_id
        # Beyond the first round nothing is computed again.
        assert second.usage.input_tokens_details.cached_tokens > second.usage.input_tokens // 2
        hello = client.responses.create(input="Hello! Who are you?", **fields)
        assert [item.type for item in hello.output] == ["message"]


def test_code_when_it_ran_behind_a_gateway_then_it_stands_on_the_bill(tmp_path):
    text = (ROOT / "deploy" / "gateway.toml").read_text(encoding="utf-8")
    home = '"http://127.0.0.1:8000"'
    assert home in text
    with made_serve(tmp_path / "log") as url:
        gateway = GatewayProcess(tmp_path, f"[server]\nport = 0\n{text.replace(home, repr(url))}")
        try:
            body = {"model": "ling", "temperature": 0, "input": "What is 17 times 23?",
                    "tools": [AUTO], "max_tool_calls": 2, "session_id": "sums"}  # fmt: skip
            told = gateway.client.post("/v1/responses", json=body)
            assert told.is_success, told.text
            assert told.json()["output"][-1]["content"][0]["text"] == "The result is 391."
            used = told.json()["usage"]["code_interpreter_details"]
            bill = gateway.client.get("/api/v1/sessions/sums").json()
        finally:
            gateway.kill()
    assert (used["calls"], used["output_bytes"]) == (1, len("391\n"))
    (step,) = bill["steps"]
    for of in (step, bill["totals"]):
        assert {name: of[f"code_{name}"] for name in used} == used
