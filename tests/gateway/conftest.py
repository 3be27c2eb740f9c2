"""Gateways, databases and a Redis for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway_services import Postgres, Redis, postgres_server, redis_server
from gateway_support import RunningGateway
from gateway_upstream import ScriptedUpstream


@pytest.fixture
def make_gateway():
    """Start gateways: upstreams by name, and changes of the file."""
    gateways = []

    def make(upstreams=None, **options):
        gateways.append(RunningGateway(upstreams or {"One": ScriptedUpstream()}, **options))
        return gateways[-1]

    yield make
    for each in gateways:
        each.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def redis() -> Iterator[Redis]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gateway.db"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture
def sqlite_url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/gateway.db"
