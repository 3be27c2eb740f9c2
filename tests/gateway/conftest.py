"""Gateways for the tests of this folder."""

from __future__ import annotations

import pytest

from gateway_support import RunningGateway, ScriptedUpstream


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
