"""The tables, as the newest migration leaves them; a test holds the two together.

Money is pico-dollars (1e-12 USD) and times are milliseconds since 1970 in UTC, both whole numbers
in a BIGINT. Counters of windows are those of the window named beside them, of no other.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData()
_JSON = JSON(none_as_null=True)


def _big(name: str, default: int = 0) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=str(default))


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


api_key = Table(
    "api_key",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the key, which is kept nowhere
    Column("label", String(64), nullable=False),  # the key, masked
    Column("name", String(256), nullable=False),
    _flag("is_management"),
    _flag("disabled"),
    Column("allowed_models", _JSON),
    Column("rpm", Integer),
    Column("tpm", Integer),
    Column("concurrency", Integer),
    Column("expires_at", BigInteger),
    _big("created_at"),
    Column("updated_at", BigInteger),
)

# One row for each thing that can run out: a key's money (scope is its hash) and the house's. The
# row's lock orders everything that happens to a key, also its reservations and sessions.
budget = Table(
    "budget",
    metadata,
    Column("scope", String(64), primary_key=True),
    Column("limit_pico", BigInteger),
    Column("limit_reset", String(8)),
    _flag("include_byok"),
    _big("reserved"),
    _big("reserved_byok"),
    _big("running"),
    _big("clock"),  # the latest time seen here: what a clock that goes back is held to
    _big("day"),
    _big("week"),
    _big("month"),
    *(
        _big(f"{what}_{window}")
        for what in ("spent", "byok")
        for window in ("total", "day", "week", "month")
    ),
    _big("free_used"),  # requests of `day` to free models
)

# A request that is in. Whoever deletes its row settles it, so it is settled once.
reservation = Table(
    "reservation",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("process_id", String(32), nullable=False, index=True),
    Column("key_hash", String(64), nullable=False),
    _big("reserved"),
    _big("reserved_byok"),
    Column("start", _JSON, nullable=False),
    Column("progress", _JSON),  # what the stream had made when this was last written
    _big("created_at"),
)

# A gateway that lives counts up its beats; one whose beats stand still is dead.
process = Table("process", metadata, Column("id", String(32), primary_key=True), _big("beat"))

# One row for every request in every outcome.
generation = Table(
    "generation",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("request_id", String(128), nullable=False),
    Column("session_id", String(256), nullable=False),
    Column("step", Integer, nullable=False),
    Column("key_hash", String(64), nullable=False),
    Column("dialect", String(16), nullable=False),
    Column("model_requested", String(256), nullable=False),
    Column("model_served", String(256)),
    Column("provider", String(128)),
    Column("endpoint", String(256)),
    Column("byok_id", String(64)),
    Column("response_id", String(256)),  # of a stored response, which later requests may name
    _flag("is_free"),
    _flag("is_streamed"),
    Column("attempts", _JSON, nullable=False),
    Column("ttft_ms", Integer),
    _big("duration_ms"),
    _big("tokens_prompt"),
    _big("tokens_cached"),
    _big("tokens_cache_write"),
    _big("tokens_completion"),
    _big("tokens_reasoning"),
    Column("usage_source", String(16), nullable=False),
    _big("cost_prompt"),
    _big("cost_completion"),
    _big("cache_saving"),
    _big("upstream_prompt"),
    _big("upstream_completion"),
    Column("outcome", String(16), nullable=False),
    _big("status"),
    Column("error_code", String(64)),
    Column("parts", _JSON),  # how many leading parts are those of the step before, and the new ones
    Column("wire", _JSON, nullable=False),
    _big("created_at"),
    Index("generation_by_session", "key_hash", "session_id", "step"),
    Index("generation_by_time", "created_at"),
    Index("generation_by_response", "response_id"),
)

session = Table(
    "session",
    metadata,
    Column("key_hash", String(64), primary_key=True),
    Column("id", String(256), primary_key=True),
    _big("steps"),  # rows in the ledger
    _big("turns"),  # of those, the ones that an endpoint answered
    Column("pinned_endpoint", String(256)),
    Column("pinned_replica", String(256)),
    _big("used_at"),
    _big("later_prompt"),  # tokens of its turns after the first
    _big("later_cached"),
    Column("parts", _JSON, nullable=False),  # of its last turn: sizes and digests, never text
)

byok_key = Table(
    "byok_key",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("provider", String(128), nullable=False),
    Column("name", String(256)),
    Column("label", String(64), nullable=False),
    Column("sort_order", Integer, nullable=False),
    _flag("is_fallback"),
    _flag("is_required"),
    _flag("is_byok_only"),
    _flag("disabled"),
    Column("allowed_models", _JSON),
    Column("allowed_api_key_hashes", _JSON),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("nonce", LargeBinary, nullable=False),
    Column("master_key_id", String(16), nullable=False),
    _big("created_at"),
)
