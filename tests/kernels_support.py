"""Compiled kernels of every class that this processor has, for tests of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lingflash.core.processor import CLASSES, choose_processor
from lingflash.kernels.cpu import build

HERE = CLASSES[CLASSES.index(choose_processor({}).best) :]


@contextmanager
def kernels_of(name: str) -> Iterator[None]:
    """Compile and load those of a class; before and after, those of the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINGFLASH_CPU_KERNELS", name)
        build._built.cache_clear()
        yield
    build._built.cache_clear()
