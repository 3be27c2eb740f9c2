"""A browser and servers for the tests of the page."""

from __future__ import annotations

import pytest

from api_support import RunningServer, engine_info, serve_ling_nano
from lingflash.api.config import ServerConfig
from lingflash.core.hub import bundled_folder
from lingflash.text.tokenizer import Tokenizer
from page_support import chromium, tab


@pytest.fixture(scope="session")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def ling_serve():
    """The address of a real `ling serve` with ling-nano."""
    with serve_ling_nano() as url:
        yield url.removesuffix("/v1")


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
