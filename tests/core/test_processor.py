"""The class of a processor from its flags, and one below it by a variable."""

from __future__ import annotations

import pytest

from lingflash.core.errors import ConfigError
from lingflash.core.processor import choose_processor, processor

AVX2 = {"sse2", "avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
AMX = AVX512 | {"amx_tile", "amx_int8", "amx_bf16"}


@pytest.mark.parametrize(
    ("flags", "best", "why"),
    [
        (AMX, "amx", "the best class"),
        (AMX - {"amx_bf16"}, "avx512", "amx needs amx_bf16"),
        (AVX512, "avx512", "amx needs amx_bf16 amx_int8 amx_tile"),
        (AVX512 - {"avx512vl"}, "avx2", "avx512 needs avx512vl"),
        (AVX2 - {"fma"}, "plain", "avx2 needs fma"),
        (set(), "plain", "as the compiler can"),
    ],
)
def test_class_when_flags_are_missing_then_the_best_without_them_and_why(flags, best, why):
    found = choose_processor({}, frozenset(flags))
    assert (found.best, found.used) == (best, best)
    assert why in found.why


def test_class_when_the_variable_names_one_below_then_that_is_used():
    found = choose_processor({"LINGFLASH_CPU_KERNELS": "avx2"}, frozenset(AMX))
    assert (found.best, found.used) == ("amx", "avx2")
    assert found.why == "by LINGFLASH_CPU_KERNELS; the processor is amx"


@pytest.mark.parametrize("given", ["amx", "AVX2", "", "sse"])
def test_class_when_the_variable_names_none_that_is_here_then_the_error_lists_them(given):
    with pytest.raises(ConfigError) as error:
        choose_processor({"LINGFLASH_CPU_KERNELS": given}, frozenset(AVX512))
    assert str(error.value) == (
        f"LINGFLASH_CPU_KERNELS is {given!r}; allowed on this processor: auto, avx512, avx2, plain."
    )


def test_processor_when_the_variable_is_set_then_follows_it(monkeypatch):
    monkeypatch.setenv("LINGFLASH_CPU_KERNELS", "plain")
    assert processor().used == "plain"
