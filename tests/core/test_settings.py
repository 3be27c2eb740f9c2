"""Settings from the fields of a dataclass: bounds, messages, keywords, the docs' table."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass
from typing import ClassVar

import pytest

from lingflash.core.config import EngineConfig
from lingflash.core.errors import ConfigError
from lingflash.core.settings import (
    above,
    at_least,
    check_settings,
    one_of,
    require,
    setting,
    settings_of,
    takes_settings,
)
from settings_table import settings_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    VARIABLE_PREFIX: ClassVar[str] = "LINGFLASH_SAMPLE_"

    name: str = setting(MISSING, "Who.")
    mode: str = setting("a", "How.", bound=one_of(["a", "b"]))
    limit_s: float | None = setting(None, "When.", bound=above(0))
    cache_bytes: int = setting(
        2**20, "In MiB.", flag="--cache-mb", unit=2**20, bound=at_least(0, "none")
    )
    keys: tuple[str, ...] = setting(
        (), "Secret.", flag="--key", bound=one_of(["x", "y"]), is_secret=True
    )
    loud: bool = setting(True, "Loud.")
    inner: int = 3

    def __post_init__(self):
        check_settings(self)
        require(self, self.loud or self.mode == "a", "mode", "a without --loud")


@pytest.mark.parametrize(
    ("given", "message", "param"),
    [
        ({"mode": "c"}, "--mode is 'c'; allowed: a, b.", "mode"),
        ({"limit_s": 0}, "--limit-s is 0; allowed: above 0.", "limit_s"),
        ({"limit_s": float("nan")}, "--limit-s is nan; allowed: above 0.", "limit_s"),
        ({"limit_s": "soon"}, "--limit-s is 'soon'; allowed: above 0.", "limit_s"),
        ({"cache_bytes": -(2**19)}, "--cache-mb is -0.5; allowed: 0 (none) or more.", "cache_mb"),
        ({"keys": ("x", "z")}, "--key is '...'; allowed: x, y.", "key"),
        ({"mode": None}, "--mode is None; allowed: a, b.", "mode"),
        ({"mode": "b", "loud": False}, "--mode is 'b'; allowed: a without --loud.", "mode"),
    ],
)
def test_settings_when_one_is_out_of_bounds_then_flag_value_and_bound_are_named(
    given, message, param
):
    with pytest.raises(ConfigError) as caught:
        Sample(name="n", **given)
    assert (caught.value.message, caught.value.param) == (message, param)


def test_settings_when_in_bounds_or_left_out_then_taken():
    sample = Sample(name="n", mode="b", keys=("x", "y"), inner=4)
    assert sample.limit_s is None
    assert Sample(name="n", limit_s=0.5).limit_s == 0.5
    assert [each.name for each in settings_of(Sample).values()] == list(settings_of(Sample))
    assert "inner" not in settings_of(Sample)


def test_settings_table_then_a_row_for_each_setting():
    assert settings_table(Sample).split("\n") == [
        "| flag | variable | default | what it is |",
        "|---|---|---|---|",
        "| `--name` | `LINGFLASH_SAMPLE_NAME` |  | Who. |",
        "| `--mode` | `LINGFLASH_SAMPLE_MODE` | `a` | How. |",
        "| `--limit-s` | `LINGFLASH_SAMPLE_LIMIT_S` |  | When. |",
        "| `--cache-mb` | `LINGFLASH_SAMPLE_CACHE_MB` | `1.0` | In MiB. |",
        "| `--key` | `LINGFLASH_SAMPLE_KEY` |  | Secret. |",
        "| `--loud`, `--no-loud` | `LINGFLASH_SAMPLE_LOUD` | on | Loud. |",
    ]


class Taker:
    @takes_settings(Sample, without=("loud",))
    def __init__(self, sample: Sample) -> None:
        self.sample = sample


def test_takes_settings_when_a_keyword_is_unknown_then_the_nearest_is_named():
    assert Taker(name="n", mode="b").sample.mode == "b"
    with pytest.raises(ConfigError, match=r"^mod is no keyword of Taker; did you mean mode\?"):
        Taker(name="n", mod="b")
    with pytest.raises(ConfigError, match=r"^loud is no keyword of Taker\.$"):
        Taker(name="n", loud=True)
    with pytest.raises(ConfigError, match="allowed: a, b"):
        Taker(name="n", mode="c")


def test_llm_then_its_signature_is_the_settings_of_the_engine():
    from lingflash import LLM

    shown = inspect.signature(LLM).parameters
    fields = inspect.signature(EngineConfig).parameters
    assert list(shown) == [
        name for name in fields if name not in ("max_num_waiting", "max_num_shared_tokens")
    ]
    assert all(shown[name] == fields[name] for name in shown)
    with pytest.raises(ConfigError, match=r"max_num_seq is no keyword of LLM; .* max_num_seqs\?"):
        LLM(max_num_seq=1)  # pyright: ignore[reportCallIssue]
