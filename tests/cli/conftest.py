"""A server to chat with."""

from __future__ import annotations

import pytest

from api_support import RunningServer, says, write_toy_model
from lingflash.api.config import ServerConfig


@pytest.fixture
def make_server(tmp_path):
    """Start servers that always answer the same text."""
    servers = []

    def make(text, *, behaviour=None):
        config = ServerConfig(model_folder=write_toy_model(tmp_path))
        servers.append(RunningServer(says(text), config=config, behaviour=behaviour))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
