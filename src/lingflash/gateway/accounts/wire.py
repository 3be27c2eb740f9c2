"""Bodies of the management routes: OpenRouter's fields, and limits that only we have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lingflash.gateway.accounts.config import MAX_LIMIT_USD
from lingflash.protocol.fields import FieldTable, Refusal

_Rate = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Models = Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=1000)]
_Hashes = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=1000)]
_Usd = Annotated[float, Field(ge=0, le=MAX_LIMIT_USD)]
_Reset = Literal["daily", "weekly", "monthly"]
_Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
_Secret = Annotated[str, Field(min_length=1, max_length=4096)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class KeyChange(_Body):
    """Body of PATCH /api/v1/keys/{hash}; what is left out stays."""

    name: _Name | None = None
    disabled: bool | None = None
    limit: _Usd | None = Field(None, description="dollars; null takes the limit away")
    limit_reset: _Reset | None = None
    include_byok_in_limit: bool | None = None
    allowed_models: _Models | None = None
    rpm: _Rate | None = None
    tpm: _Rate | None = None
    concurrency: _Rate | None = None
    expires_at: Annotated[str, Field(max_length=40)] | None = Field(None, description="ISO 8601")


class NewKey(KeyChange):
    """Body of POST /api/v1/keys."""

    name: _Name  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]  # needed here


class ByokChange(_Body):
    """Body of PATCH /api/v1/byok/{id}."""

    key: _Secret | None = None
    name: _Name | None = None
    disabled: bool | None = None
    is_byok_only: bool | None = None
    is_fallback: bool | None = None
    is_required: bool | None = None
    allowed_models: _Models | None = None
    allowed_api_key_hashes: _Hashes | None = None
    sort_order: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


class NewByok(ByokChange):
    """Body of POST /api/v1/byok."""

    key: _Secret  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]  # needed here
    provider: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00]*$")]


MODELS = (NewKey, KeyChange, NewByok, ByokChange)

_NOT_HERE = "is not supported; this gateway has one workspace and no accounts of people"
KEY_TABLE = FieldTable(
    refused={
        "creator_user_id": Refusal(_NOT_HERE),
        "external": Refusal(_NOT_HERE),
        "workspace_id": Refusal(_NOT_HERE, ("default",)),
        "is_management": Refusal(
            "is not supported; management keys are made by `ling gateway keys create --management`"
        ),
    }
)
BYOK_TABLE = FieldTable(
    refused={
        "allowed_user_ids": Refusal(_NOT_HERE),
        "workspace_id": Refusal(_NOT_HERE, ("default",)),
        "declared_region": Refusal("is not supported; declare it of the endpoint in the config"),
        "declared_zdr": Refusal("is not supported; declare it of the endpoint in the config"),
    }
)
WORKSPACE = "default"
