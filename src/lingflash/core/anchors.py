"""Anchors: the positions that recurrent states are folded at; see docs/adr/0001."""

from __future__ import annotations

ANCHOR = 16
"""Tokens from one anchor to the next."""


def last_anchor(position: int) -> int:
    """The last anchor at or before a position; what a state is folded to after so many tokens."""
    return position // ANCHOR * ANCHOR
