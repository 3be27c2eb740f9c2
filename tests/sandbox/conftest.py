"""One server for each file of tests, and a sandbox for each test that asks for one."""

from __future__ import annotations

import pytest

from sandbox_support import SandboxServer


@pytest.fixture(scope="module")
def server():
    """A server with small limits and nothing warm."""
    running = SandboxServer("--warm=0")
    yield running
    running.close()


@pytest.fixture(scope="module")
def shared(server):
    """A sandbox that the tests of a file share: what they do in it must not matter to others."""
    box = server.create(timeout=600)
    yield box
    box.kill()


@pytest.fixture
def box(server):
    """A sandbox of this test's own."""
    made = server.create(timeout=600)
    yield made
    made.kill()
