"""Packages of the extra `clients`: a test that needs one skips without it, and fails in CI."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def client_package(name: str) -> ModuleType:
    """Import a package, or end the test."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing_client(f"{name} is not installed ({error}); `make test` installs it")


def missing_client(reason: str) -> None:
    """Skip here, fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)
