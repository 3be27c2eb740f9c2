"""Servers for the tests of this folder."""

from __future__ import annotations

import pytest

from api_support import (
    CALL,
    RunningServer,
    ToolLoop,
    engine_info,
    says,
    serve_ling_nano,
    wait_until,
    write_toy_model,
)
from code_support import Rounds, alive
from gateway_support import gateway_to
from lingflash.api.config import ServerConfig
from lingflash.core.hub import bundled_folder
from lingflash.link.scripted import Behaviour
from lingflash.text.tokenizer import Tokenizer
from sandbox_support import SandboxServer


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    return write_toy_model(tmp_path_factory.mktemp("toy"))


def _start(toy_folder, script="fine", *, info=None, behaviour=None, **config):
    if isinstance(script, str):
        script = says(script)
    config.setdefault("model_folder", toy_folder)
    config.setdefault("served_model_names", ("toy", "toy-alias"))
    return RunningServer(script, config=ServerConfig(**config), info=info, behaviour=behaviour)


@pytest.fixture
def make_server(toy_folder):
    """Start servers: a script or text, engine info and behaviour, and fields of ServerConfig."""
    servers = []

    def make(*args, **kwargs):
        servers.append(_start(toy_folder, *args, **kwargs))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def shared_server(toy_folder):
    server = _start(toy_folder, "fine, thank you")
    yield server
    server.stop()


@pytest.fixture
def server(shared_server):
    """One server for all tests that leave it as it was; its record of requests is empty."""
    shared_server.engine.requests.clear()
    shared_server.engine.aborted.clear()
    shared_server.engine.behaviour = Behaviour()
    return shared_server


@pytest.fixture
def make_loop(make_server):
    """Start servers with ling-nano's tokenizer and template and a scripted tool loop."""
    tokenizer = Tokenizer.from_folder(bundled_folder())

    def make(first=CALL, **options):
        loop = ToolLoop(tokenizer, first)
        end = tokenizer.token_id("<|role_end|>")
        info = engine_info(vocab_size=tokenizer.vocab_size, stop_token_ids=[end])
        options = {"model_folder": bundled_folder(), "info": info, **options}
        server = make_server(loop, served_model_names=("ling-nano",), **options)
        return server, loop

    return make


@pytest.fixture(scope="session")
def sandboxes():
    """A real `ling sandbox` with room for six."""
    running = SandboxServer("--warm=1", "--max-sandboxes=6")
    yield running
    running.close()


@pytest.fixture
def serve_code(sandboxes):
    """Start servers that run code: texts of a script's rounds, a behaviour, ServerConfig's fields.

    Nothing of them may be left in the sandboxes.
    """
    servers = []

    def start(*texts, behaviour=None, **config):
        script = Rounds(*texts)
        info = engine_info(
            vocab_size=script.tokenizer.vocab_size,
            stop_token_ids=[script.tokenizer.token_id("<|role_end|>")],
        )
        config = {"sandbox": sandboxes.url, **config}
        server = RunningServer(
            script,
            config=ServerConfig(model_folder=bundled_folder(), **config),
            info=info,
            behaviour=behaviour,
        )
        server.client.timeout = 90
        servers.append(server)
        return server, script

    yield start
    for server in servers:
        server.stop()
    wait_until(lambda: alive(sandboxes) == [], 30)


@pytest.fixture(scope="session")
def served_ling_nano():
    with serve_ling_nano() as url:
        yield url


@pytest.fixture(scope="session", params=["server", "gateway"])
def ling_nano_url(request, served_ling_nano):
    """The bundled model behind `ling serve`, and behind a gateway before that."""
    if request.param == "server":
        yield served_ling_nano
    else:
        with gateway_to(served_ling_nano) as url:
            yield url
