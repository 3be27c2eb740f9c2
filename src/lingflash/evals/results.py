"""The file of an evaluation: JSON lines, one for each item, which a killed run goes on with.

The first line says what was asked of whom. A line's `run` holds what differs from run to run
(seconds, failures, cached tokens); the rest is the same for the same answers. When all items are
there the lines are put into the task's order.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lingflash.core.errors import ConfigError

SCHEMA = 1


class ResultsFile:
    """Opens or makes a file; a line that a kill cut short is removed.

    Args:
        settings: what must be the same for a run to go on with the file.

    Raises:
        ConfigError: the file is another run's, or none.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        header = {"lingflash_eval": SCHEMA, **settings}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(path, "a+b")  # noqa: SIM115  (closed by close)
        except OSError as error:
            raise ConfigError(
                f"--out is {path}; it cannot be written: {error}.", param="out"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(
                f"--out is {path}, which another run is writing; wait for it, or name another one.",
                param="out",
            ) from None
        try:
            if not self._read(json.loads(json.dumps(header))):
                self._file.truncate(0)
                self._append(header)
        except BaseException:
            self._file.close()
            raise

    def _read(self, header: Mapping[str, Any]) -> bool:
        """Find the items that are there; false if the file is empty."""
        self._file.seek(0)
        place, first = 0, True
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                data = json.loads(line)
                if first:
                    self._check(data, header)
                elif isinstance(data["id"], str):
                    self._places[data["id"]] = place, len(line)
                else:
                    raise TypeError("id")
            except ConfigError:
                raise  # another run's
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
                raise ConfigError(
                    f"--out is {self.path}, which is no file of `ling eval`; name another one.",
                    param="out",
                ) from None
            first = False
            place += len(line)
        self._file.truncate(place)
        return not first

    def _check(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        if "lingflash_eval" not in found:
            raise KeyError("lingflash_eval")
        other = [name for name in wanted if found.get(name) != wanted[name]]
        if other:
            said = ", ".join(f"{n} {found.get(n)!r} and now {wanted[n]!r}" for n in other)
            raise ConfigError(
                f"{self.path} is another run's: {said}. Name another --out, or remove the file.",
                param="out",
            )

    def _append(self, data: Mapping[str, Any]) -> int:
        line = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "backslashreplace"
        )
        self._file.write(line + b"\n")
        self._file.flush()
        return len(line) + 1

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, data: Mapping[str, Any]) -> None:
        """Write an item's line, which is on its way to the disk when this returns."""
        place = self._file.seek(0, os.SEEK_END)
        self._places[data["id"]] = place, self._append(data)

    def lines(self, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Those of these items that are there, in this order."""
        for item_id in ids:
            if item_id in self._places:
                yield json.loads(self._line(item_id))

    def _line(self, item_id: str) -> bytes:
        place, size = self._places[item_id]
        self._file.seek(place)
        return self._file.read(size)

    def sort(self, ids: Sequence[str]) -> None:
        """Put the lines into this order, others behind them, all at once or not at all."""
        self._file.seek(0)
        fresh = self.path.with_name(self.path.name + ".sorted")
        with fresh.open("wb") as out:
            out.write(self._file.readline())
            places = {}
            for item_id in dict.fromkeys([*ids, *sorted(self._places)]):
                if item_id in self._places:
                    line = self._line(item_id)
                    places[item_id] = out.tell(), len(line)
                    out.write(line)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self.path)
        self._file.close()
        self._file = open(self.path, "a+b")  # noqa: SIM115
        self._places = places

    def close(self) -> None:
        """Let the file go."""
        self._file.close()
