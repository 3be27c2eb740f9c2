"""Which class of processor this is: it decides which compiled kernels a CPU runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from lingflash.core.errors import ConfigError
from lingflash.core.settings import one_of, setting, settings_of

CpuClass = Literal["amx", "avx512", "avx2", "plain"]
CLASSES: tuple[CpuClass, ...] = ("amx", "avx512", "avx2", "plain")
"""From the most able on; each has what those after it have."""

_AVX2 = {"avx2", "fma", "f16c"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_NEEDS: dict[CpuClass, set[str]] = {
    "amx": _AVX512 | {"amx_tile", "amx_int8", "amx_bf16"},
    "avx512": _AVX512,
    "avx2": _AVX2,
    "plain": set(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSettings:
    """A setting of a process, not of an engine: its kernels are compiled and loaded once."""

    cpu_kernels: str = setting(
        "auto",
        "Kernels of a class below the processor's own: auto, amx, avx512, avx2 or plain.",
        bound=one_of(("auto", *CLASSES)),
    )


@dataclass(frozen=True, slots=True)
class Processor:
    """What a machine computes with.

    Args:
        name: the maker's.
        flags: instruction sets, as Linux calls them.
        best: the best class that it has.
        used: the class whose kernels run: `best`, or what LINGFLASH_CPU_KERNELS says.
    """

    name: str
    flags: frozenset[str]
    best: CpuClass
    used: CpuClass

    @property
    def why(self) -> str:
        """Why `used` is the class, for people."""
        if self.used != self.best:
            return f"by {_variable()}; the processor is {self.best}"
        if self.best == CLASSES[0]:
            return "the best class"
        if not self.flags:
            return f"on {platform.machine()} as the compiler can"
        better = CLASSES[CLASSES.index(self.best) - 1]
        return f"{better} needs {' '.join(sorted(_NEEDS[better] - self.flags))}"


def choose_processor(environ: Mapping[str, str], flags: frozenset[str] | None = None) -> Processor:
    """The class of a processor and the one to use.

    Args:
        environ: such as os.environ.
        flags: of the processor; of this machine's by default.

    Raises:
        ConfigError: LINGFLASH_CPU_KERNELS is no class, or one that the processor has not.
    """
    if flags is None:
        flags = frozenset(_cpuinfo().get("flags", "").split())
    best: CpuClass = next(each for each in CLASSES if _NEEDS[each] <= flags)
    allowed = CLASSES[CLASSES.index(best) :]
    given = environ.get(_variable(), "auto")
    named: CpuClass | None = next((each for each in allowed if each == given), None)
    used = best if given == "auto" else named
    if used is None:
        raise ConfigError(
            f"{_variable()} is {given!r}; allowed on this processor: auto, {', '.join(allowed)}.",
            param=_variable(),
        )
    return Processor(_cpuinfo().get("model name", platform.machine()), flags, best, used)


def processor() -> Processor:
    """This machine's.

    Raises:
        ConfigError: see choose_processor.
    """
    return choose_processor(os.environ)


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    """Of the first processor; empty where Linux does not tell."""
    found: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def cpu_name() -> str:
    """Name, family, model and the wide instruction sets, for records."""
    info = _cpuinfo()
    if not info:
        return platform.processor() or "unknown"
    flags = info.get("flags", "").split()
    sets = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    wide = [flag for flag in sets if flag in flags]
    place = f"family {info.get('cpu family')} model {info.get('model')}"
    return f"{info.get('model name', 'unknown')} ({place}{', ' if wide else ''}{' '.join(wide)})"


def _variable() -> str:
    return settings_of(CpuSettings)["cpu_kernels"].variable
