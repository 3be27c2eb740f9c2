"""The JSON that a benchmark leaves: numbers with everything needed to judge and repeat them."""

from __future__ import annotations

import datetime
import json
import os
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lingflash.core.errors import ConfigError
from lingflash.records.machine import (
    CpuClock,
    SourceState,
    command_line,
    describe_machine,
    others_busy_cores,
    source_state,
)

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Series:
    """One measured quantity.

    Args:
        samples: every measurement, in order; none was dropped.
    """

    unit: str
    samples: list[float]

    @property
    def median(self) -> float:
        """Middle sample."""
        return statistics.median(self.samples)

    def as_dict(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "median": round_to(self.median),
            "min": round_to(min(self.samples)),
            "max": round_to(max(self.samples)),
            "samples": [round_to(x) for x in self.samples],
        }


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A rate that bounds what is measured, sampled in the same run."""

    what: str
    samples: list[float]

    @property
    def median(self) -> float:
        """Middle sample."""
        return statistics.median(self.samples)

    def as_dict(self) -> dict[str, Any]:
        samples = [round_to(x) for x in self.samples]
        return {"what": self.what, "median": round_to(self.median), "samples": samples}


@dataclass(frozen=True, slots=True)
class Target:
    """A promise and whether it was kept.

    Args:
        kind: whether the limit is the most or the least that is allowed.
    """

    name: str
    value: float
    limit: float
    kind: Literal["at most", "at least"]

    @property
    def is_met(self) -> bool:
        """Whether the value is on the right side of the limit."""
        return self.value <= self.limit if self.kind == "at most" else self.value >= self.limit

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": round_to(self.value),
            "kind": self.kind,
            "limit": self.limit,
            "met": self.is_met,
        }


@dataclass(slots=True)
class Record:
    """A benchmark under way; make it before measuring, so that it notes how quiet the machine was.

    Args:
        case: name of the benchmark, also of its file.
        out: file to write, or None to print only.
        allow_dirty: write although src/ has uncommitted changes; the record says so.
        commit: of the sources, where they were copied without git's history.
        flag: by which `out` was given.

    Raises:
        ConfigError: the numbers could not be traced to a commit, and it was not allowed.
    """

    case: str
    out: Path | None
    allow_dirty: bool = False
    commit: str | None = None
    flag: str = "--out"
    settings: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Series] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ceilings: dict[str, Ceiling] = field(default_factory=dict)
    source: SourceState = field(init=False)
    _start: CpuClock | None = field(init=False)

    def __post_init__(self) -> None:
        self.source = SourceState(self.commit, False) if self.commit else source_state()
        self._start = CpuClock.now()
        if self.out is None:
            return
        if self.source.dirty and not self.allow_dirty:
            what = (
                "this is no git checkout"
                if self.source.commit == "unknown"
                else "src/ has uncommitted changes"
            )
            raise ConfigError(
                f"{self.flag} {self.out}: {what}, so the numbers could not be traced to a commit. "
                f"Commit first, leave {self.flag} away to print only, or give --allow-dirty (it is "
                "recorded).",
                param="out",
            )
        check_out(self.out, self.flag)

    def add(self, name: str, unit: str, samples: Sequence[float]) -> Series:
        """Keep a measured quantity."""
        series = self.results[name] = Series(unit, list(samples))
        return series

    def add_ceiling(self, name: str, what: str, sample: float) -> None:
        """Keep one more sample of a rate."""
        self.ceilings.setdefault(name, Ceiling(what, [])).samples.append(sample)

    def promise(
        self, name: str, value: float, limit: float, kind: Literal["at most", "at least"]
    ) -> None:
        """Hold a value against what was promised of it."""
        self.targets.append(Target(name, value, limit, kind))

    def as_dict(self) -> dict[str, Any]:
        """Everything, as it is written."""
        torch = sys.modules.get("torch")
        return {
            "schema": SCHEMA,
            "case": self.case,
            "command": command_line(),
            "commit": self.source.commit,
            "dirty": self.source.dirty,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "machine": describe_machine(),
            "others_busy_cores": others_busy_cores(self._start),
            "torch": None if torch is None else torch.__version__,
            "threads": None if torch is None else torch.get_num_threads(),
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "ceilings": {name: rate.as_dict() for name, rate in self.ceilings.items()} or None,
            "settings": self.settings,
            "targets": [target.as_dict() for target in self.targets],
            "derived": {name: round_to(value) for name, value in self.derived.items()},
            "results": {name: series.as_dict() for name, series in self.results.items()},
            "notes": self.notes,
        }

    def save(self) -> None:
        """Write what there is so far to the file, if one was named: a run may be cut short."""
        if self.out is not None:
            self.out.write_text(dump(self.as_dict()), encoding="utf-8")

    def finish(self) -> None:
        """Print a summary and write the file, if one was named."""
        print(render_text(self.as_dict()))
        self.save()
        if self.out is not None:
            print(f"written to {self.out}")


def dump(data: Mapping[str, Any]) -> str:
    """JSON for a file: indented, but a list of numbers on one line."""
    text = json.dumps(data, indent=1)
    return re.sub(r"\[[\s\d.,eE+-]+\]", lambda m: " ".join(m[0].split()), text) + "\n"


def render_text(data: Mapping[str, Any]) -> str:
    """A record as lines for people."""
    state = " (dirty)" if data["dirty"] else ""
    lines = [f"{data['case']}  commit {data['commit'][:12]}{state}  {data['machine']['cpu']}"]
    lines.append(
        f"  others kept {data['others_busy_cores']} of {data['machine']['cores']} cores busy"
    )
    width = max((len(name) for name in data["results"]), default=0)
    for name, series in data["results"].items():
        lines.append(
            f"  {name:<{width}}  {series['median']:>10.5g} {series['unit']}   "
            f"(min {series['min']:.5g}, max {series['max']:.5g}, {len(series['samples'])} samples)"
        )
    for name, value in data["derived"].items():
        lines.append(f"  {name}: {value}")
    for target in data["targets"]:
        word = "met" if target["met"] else "MISSED"
        lines.append(
            f"  target {word}: {target['name']} is {target['value']:.4g}, "
            f"promised {target['kind']} {target['limit']:g}"
        )
    lines += [f"  note: {note}" for note in data["notes"]]
    return "\n".join(lines)


def round_to(value: Any) -> Any:
    """Five significant digits of a float; anything else as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def require(ok: bool, flag: str, given: object, allowed: str) -> None:
    """Check a flag's value.

    Raises:
        ConfigError: it is not allowed; the message names the flag.
    """
    if not ok:
        raise ConfigError(
            f"{flag} is {given}; allowed: {allowed}.", param=flag.lstrip("-").replace("-", "_")
        )


def model_label(model: str) -> str:
    """A model's name without the folders above it."""
    return Path(model).name or model


def check_out(path: Path, flag: str) -> None:
    """See before the work whether a file could be written after it.

    Raises:
        ConfigError: its folder is not there, or it is one itself.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: the folder does not exist.", param="out")
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: it is a folder; name a file.", param="out")
