"""Bodies of the control API and of run_code, and what becomes of fields that are not built."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from lingflash.protocol.fields import FieldTable, Refusal

_NEVER = "is not supported by this sandbox server"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class NewSandbox(_Body):
    """What a sandbox is to be."""

    templateID: str = "base"
    timeout: float | None = None
    metadata: dict[str, str] | None = None
    envVars: dict[str, str] | None = None
    autoPause: bool | None = None
    allow_internet_access: bool | None = None
    allowInternetAccess: bool | None = None


NEW_SANDBOX = FieldTable(
    inert={
        "secure": "every sandbox has a token",
        "autoPauseMemory": "only files are kept",
        "autoResume": "a paused sandbox is resumed by connect alone",
        "nodeID": "there is one machine",
    },
    refused={
        "network": Refusal(_NEVER + "; the server's --internet says what there is"),
        "mcp": Refusal(_NEVER),
        "iam": Refusal(_NEVER),
        "volumeMounts": Refusal(_NEVER),
        "secrets": Refusal(_NEVER + "; use envVars"),
    },
)


class Timeout(_Body):
    """How long a sandbox is to live from now."""

    timeout: float | None = None
    duration: float | None = None


TIMEOUT = FieldTable(inert={"autoPause": "is said when the sandbox is made"})


class Connect(_Body):
    """As Timeout; what was paused runs again."""

    timeout: float | None = None


CONNECT = FieldTable(
    inert={"autoPause": "is said when the sandbox is made"},
    refused={"memory": Refusal(_NEVER + "; a pause keeps files alone", (False,))},
)


class Pause(_Body):
    """A pause; files are kept, processes are not."""


PAUSE = FieldTable(
    inert={"requireHealthyGuest": "nothing of the guest's memory is kept"},
    refused={
        "memory": Refusal("cannot be kept; with false, files are", (False,)),
        "keep_memory": Refusal("cannot be kept; with false, files are", (False,)),
    },
)


class Execute(_Body):
    """Code to run."""

    code: str
    context_id: str | None = None
    language: str | None = None
    env_vars: dict[str, str] | None = None


class NewContext(_Body):
    """A context to make."""

    language: str | None = None
    cwd: str | None = Field(default=None, max_length=4096)
