"""The watches of all directories in the gateway's file, over its reloads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from lingflash.gateway.config.load import KnownDirectory
from lingflash.gateway.directory.make import make_directory
from lingflash.gateway.directory.watch import Watch

_FIRST_ANSWERS_S = 3.0


class Watches(Mapping[str, Watch]):
    """Each directory's watch by its name; they ask from `start` to `close`."""

    def __init__(self, directories: Mapping[str, KnownDirectory]) -> None:
        self._known: dict[str, KnownDirectory] = {}
        self._watches: dict[str, Watch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_started = False
        self.take(directories)

    def __getitem__(self, name: str) -> Watch:
        return self._watches[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._watches)

    def __len__(self) -> int:
        return len(self._watches)

    def take(self, directories: Mapping[str, KnownDirectory]) -> None:
        """Watch these from now on; one that is as it was goes on with what it knows."""
        for name in [n for n, known in self._known.items() if directories.get(n) != known]:
            del self._known[name], self._watches[name]
            if (task := self._tasks.pop(name, None)) is not None:
                task.cancel()
        for name, known in directories.items():
            if name not in self._known:
                self._known[name] = known
                every_s = known.table.every_s
                self._watches[name] = Watch(name, make_directory(known), every_s)
                self._begin(name)

    async def start(self) -> None:
        """Begin to ask; returns when each has answered, or could not in a moment."""
        self._is_started = True
        refreshes = [each.refresh() for each in self._watches.values()]
        if refreshes:
            tasks = [asyncio.ensure_future(each) for each in refreshes]
            _, late = await asyncio.wait(tasks, timeout=_FIRST_ANSWERS_S)
            for each in late:
                each.cancel()
        for name in self._watches:
            self._begin(name)

    def close(self) -> None:
        """Ask no more."""
        self._is_started = False
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    def _begin(self, name: str) -> None:
        if self._is_started and name not in self._tasks:
            running = self._watches[name].run()
            self._tasks[name] = asyncio.get_running_loop().create_task(running)
