"""A browser and servers for the tests of the page."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from api_support import RunningServer, engine_info, serve_ling_nano
from gateway_process import GatewayProcess
from gateway_upstream import upstream_in_a_thread
from lingflash.api.config import ServerConfig
from lingflash.core.hub import bundled_folder
from lingflash.text.tokenizer import Tokenizer
from page_support import SANDBOX_KEYS, chromium, tab
from sandbox_support import SandboxServer

RECORDS = Path(__file__).parents[2] / "benchmarks"
GATEWAY = """
[server]
port = 0

[[upstream]]
name = "Home"
base_url = "{serve}"
dialects = ["chat", "completions", "responses", "messages"]
allow_private_address = true

[[upstream]]
name = "Picky"
base_url = "{vendor}"
allow_private_address = true

[[upstream]]
name = "Gone"
base_url = "http://127.0.0.1:9/v1"
allow_private_address = true

[[model]]
name = "ling-nano"

[[model.endpoint]]
upstream = "Home"
parameters = ["max_tokens", "temperature", "tools", "return_cache_report"]
context_tokens = 32768

[[model.endpoint.price]]
prompt = 0.10
completion = 0.30
cache_read = 0.02

[[model]]
name = "vendor/model"

[[model.endpoint]]
upstream = "Picky"
context_tokens = 8192

[[model.endpoint.price]]
prompt = 1.0
completion = 3.0

[[model]]
name = "gone/model"

[[model.endpoint]]
upstream = "Gone"
context_tokens = 8192
"""


@pytest.fixture(scope="session")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def ling_serve():
    """The address of a real `ling serve` with ling-nano and the committed records."""
    with serve_ling_nano("--evidence", str(RECORDS)) as url:
        yield url.removesuffix("/v1")


@pytest.fixture(scope="session")
def ling_gateway(ling_serve, tmp_path_factory):
    """A real `ling gateway` to that server, to a vendor that is picky, and to one that is gone."""
    folder = tmp_path_factory.mktemp("gateway")
    with upstream_in_a_thread(fault="unknown_fields") as vendor:
        text = GATEWAY.format(serve=f"{ling_serve}/v1", vendor=vendor.url)
        gateway = GatewayProcess(folder, text)
        gateway.vendor = vendor
        made = gateway.run("gateway", "keys", "create", "manager", "--management")
        gateway.manager = httpx.Client(
            base_url=gateway.url, headers={"authorization": f"Bearer {made.stdout.strip()}"}
        )
        gateway.management_key = made.stdout.strip()
        yield gateway
        gateway.manager.close()
        assert gateway.stop() == 0


@pytest.fixture(scope="session")
def ling_sandbox():
    """A real `ling sandbox` with two keys."""
    running = SandboxServer("--warm=0", *(f"--api-key={key}" for key in SANDBOX_KEYS))
    yield running
    running.close()


@pytest.fixture(scope="session")
def nano_tokenizer():
    return Tokenizer.from_folder(bundled_folder())


@pytest.fixture
def make_server(nano_tokenizer):
    """Start servers that say a text, or what a script says, in ling-nano's tokens."""
    servers = []

    def make(script, *, info=None, behaviour=None, **config):
        if isinstance(script, str):
            script = {(): nano_tokenizer.encode(script)}
        info = {"vocab_size": nano_tokenizer.vocab_size, "stop_token_ids": []} | (info or {})
        served = {"model_folder": bundled_folder(), "served_model_names": ("ling-nano",)} | config
        servers.append(
            RunningServer(
                script, config=ServerConfig(**served), info=engine_info(**info), behaviour=behaviour
            )
        )
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def open_tab(browser):
    """Open pages; each must not have complained when the test ends."""
    opened = []

    def open_one(url, **options):
        manager = tab(browser, url, **options)
        page = manager.__enter__()
        opened.append(manager)
        return page

    yield open_one
    for manager in opened:
        manager.__exit__(None, None, None)
