"""LlamaIndex's OpenAI-like model and its function agent against the server.

It needs openai 2, so it has an environment of its own (`make test` makes it).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from api_support import ANSWER
from clients_support import missing_client

ROOT = Path(__file__).parents[2]


def drive(base_url, temperature=0.0):
    default = ROOT / ".venv-llama-index" / "bin" / "python"
    python = Path(os.environ.get("LLAMA_INDEX_PYTHON", default))
    if not python.exists():
        missing_client(f"{python} does not exist; `make test` makes it")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, ROOT / "tests" / "llama_index_driver.py", base_url, str(temperature)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(150)
def test_agent_when_run_then_the_loop_ends_and_the_prompt_continues(make_loop):
    server, loop = make_loop()
    result = drive(server.base_url + "/v1")
    assert result["streamed"] == result["chat"]
    assert result["asked"] == ["Rome"]
    assert result["final"] == ANSWER
    loop.generated = loop.generated[2:]  # after the two without tools
    loop.check_prefix()
    loop.check_result("sunny")


@pytest.mark.timeout(150)
def test_ling_nano_when_run_then_the_tool_is_called(ling_nano_url):
    result = drive(ling_nano_url)
    assert result["streamed"] == result["chat"]
    assert result["asked"], result
    assert all(isinstance(city, str) for city in result["asked"])
