"""Wire schema of /v1/models."""

from __future__ import annotations

from typing import Any


def model_object(name: str, *, created: int, max_model_len: int | None) -> dict[str, Any]:
    """One entry of the list.

    Args:
        name: the served name.
        created: Unix time of the server's start.
        max_model_len: most tokens of prompt and answer together; None while loading.
    """
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "lingflash",
    }
    if max_model_len is not None:
        entry["max_model_len"] = max_model_len
    return entry
