"""Wire schemas of /v1/containers, and of the container that a code_interpreter tool names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lingflash.protocol.fields import FieldTable, Refusal

_NO_FILES = "is not supported; there is no /v1/files, so upload to the container itself"
_ONE_SIZE = "is not supported with another value than '1g'; the sandbox server sets the size"
_NO_LIST = "is not supported with another type than 'disabled'; `ling sandbox --internet` says what"
_DISABLED = {"type": "disabled"}

_REFUSED = {
    "file_ids": Refusal(_NO_FILES, ([],)),
    "memory_limit": Refusal(_ONE_SIZE, ("1g",)),
    "network_policy": Refusal(_NO_LIST, (_DISABLED,)),
}
CODE_TOOL_TABLE = FieldTable(known=("type", "container", "allowed_callers"))
AUTO_CONTAINER = FieldTable(known=("type",), refused=_REFUSED)
CONTAINER_TABLE = FieldTable(
    refused={**_REFUSED, "skills": Refusal("is not supported", ([],))},
    options={"expires_after": FieldTable(known=("anchor", "minutes"))},
)


class ExpiresAfter(BaseModel):
    """When a container ends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["last_active_at"]
    minutes: int = Field(ge=1, le=1440)


class NewContainer(BaseModel):
    """Body of POST /v1/containers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=256)
    expires_after: ExpiresAfter | None = None


CODE_TABLE = FieldTable()


class CodeToRun(BaseModel):
    """Body of POST /v1/containers/{container_id}/run."""

    model_config = ConfigDict(extra="forbid", strict=True)

    code: str


def container_object(
    container_id: str, *, name: str, created_at: float, last_active_at: float, idle_s: float
) -> dict[str, Any]:
    """A container as the API shows it."""
    return {
        "id": container_id,
        "object": "container",
        "created_at": int(created_at),
        "status": "running",
        "expires_after": {"anchor": "last_active_at", "minutes": round(idle_s / 60)},
        "last_active_at": int(last_active_at),
        "memory_limit": "1g",
        "network_policy": _DISABLED,
        "name": name,
    }
