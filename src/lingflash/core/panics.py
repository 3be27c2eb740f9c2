"""Panics of libraries written in Rust, which are no `Exception` in Python."""

from __future__ import annotations


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic: the call failed, and nothing else is to be ended for it."""
    # pyo3 makes the class at run time, for each library its own.
    return type(error).__name__ == "PanicException"
