"""Keeps the replicas as they should be: so many, of this configuration, alive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from lingflash.cluster.autoscaler import Autoscaler, predicted_first_token_s
from lingflash.cluster.config import ClusterConfig
from lingflash.cluster.members import Generation, Member, Report
from lingflash.cluster.placer import Placer, ReplicaGone
from lingflash.cluster.rollout import next_rollout
from lingflash.core.errors import NotFoundError
from lingflash.core.log import log_event
from lingflash.protocol.replicas import Replica

logger = logging.getLogger("lingflash.cluster")

_EVERY_S = 0.5
# For so long replicas that ran before are waited for, before the directory answers without them.
_ADOPTION_S = 10.0
# A replica that was heard and says nothing for so long hangs, or its machine cannot be reached.
_SILENT_S = 20.0
# Pauses after replicas that ended before they were ever ready.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class Controller:
    """One cluster's replicas.

    Args:
        placer: connected.
        every_s: from one look at all replicas to the next.

    `knows_all` is False until replicas of a process before this one were heard.
    """

    def __init__(self, config: ClusterConfig, placer: Placer, every_s: float = _EVERY_S) -> None:
        self.config = config
        self.generation = Generation(0, config.digest)
        self.last_error: str | None = None
        self.predicted_s: float | None = 0.0
        self._placer = placer
        self._every_s = every_s
        self._scaler = Autoscaler(config.scale, config.scale.min)
        self._members: dict[str, Member] = {}
        self._reports: dict[str, tuple[float, asyncio.Task[Report]]] = {}
        self._drains: dict[str, asyncio.Task[None]] = {}
        self._pause_s = 0.0
        self._paused_until_s = 0.0
        self._is_ending = False
        self._adopted: set[str] = set()
        self._adopted_s = 0.0
        self.knows_all = False

    @property
    def wanted(self) -> int:
        """How many replicas there should be."""
        return 0 if self._is_ending else self._scaler.wanted

    @property
    def is_empty(self) -> bool:
        """Whether no replica is left."""
        return not self._members

    @property
    def is_ending(self) -> bool:
        """Whether all replicas are drained, for good."""
        return self._is_ending

    @property
    def keeps_replicas(self) -> bool:
        """Whether replicas go on when this process ends."""
        return self._placer.keeps_replicas

    def members(self) -> Sequence[Member]:
        """All replicas, in the order of their ids."""
        return [self._members[name] for name in sorted(self._members)]

    def entries(self) -> list[Replica]:
        """The directory."""
        return [entry for each in self.members() if (entry := each.entry()) is not None]

    def nodes(self) -> Sequence[dict[str, Any]]:
        """Machines, as Ray knows them."""
        return self._placer.nodes()

    def replace(self, replica: str) -> None:
        """Put another in a replica's place, and drain it.

        Raises:
            NotFoundError: there is none.
        """
        if replica not in self._members:
            known = ", ".join(sorted(self._members)) or "none"
            raise NotFoundError(f"There is no replica {replica[:100]!r}; there are: {known}.")
        self._members[replica].is_leaving = True

    def restart(self) -> None:
        """Put others in the place of all, a few at a time."""
        self.generation = Generation(self.generation.number + 1, self.generation.digest)

    def end(self) -> None:
        """Drain all and start no more."""
        self._is_ending = True

    def kill_all(self) -> None:
        """End all replicas at once."""
        for name in list(self._members):
            self._remove(name, "killed", None)

    async def run(self) -> None:
        """Look after the replicas until cancelled; what goes wrong with one is logged."""
        self._adopt()
        try:
            while True:
                await self.step()
                await asyncio.sleep(self._every_s)
        finally:
            await self._cancel_tasks()

    async def step(self) -> None:
        """Look at every replica once, and do what is next."""
        now_s = time.monotonic()
        for member in self.members():
            self._ask(member.id, now_s)
        waiting = [task for _, task in self._reports.values()]
        if waiting:  # what answers at once is seen now, the rest at the next step
            await asyncio.wait(waiting, timeout=self._every_s)
        now_s = time.monotonic()
        for member in self.members():
            self._hear(member, now_s)
        unheard = [n for n, m in self._members.items() if m.state == "placing"]
        is_late = now_s - self._adopted_s > _ADOPTION_S
        self.knows_all = self.knows_all or is_late or self._adopted.isdisjoint(unheard)
        self._scale(now_s)
        self._roll(now_s)

    def _adopt(self) -> None:
        for name in self._placer.adopt():
            # Its report says of which generation it is; until then it is taken for ours.
            self._members[name] = Member(name, self.generation, time.monotonic())
            log_event(logger, "replica_adopted", {"replica": name})
        self._adopted, self._adopted_s = set(self._members), time.monotonic()
        self._scaler.wanted = max(self._scaler.wanted, len(self._members))

    def _ask(self, name: str, now_s: float) -> None:
        if name not in self._reports:
            asking = asyncio.get_running_loop().create_task(self._placer.report(name))
            self._reports[name] = (now_s, asking)

    def _hear(self, member: Member, now_s: float) -> None:
        """What a replica has answered, or that it has not."""
        asked_s, task = self._reports[member.id]
        if not task.done():
            if member.state != "placing" and now_s - asked_s > _SILENT_S:
                self._remove(member.id, "silent", f"it said nothing for {_SILENT_S:g} s")
            return
        del self._reports[member.id]
        try:
            report = task.result()
        except ReplicaGone as gone:
            self._remove(member.id, "gone", str(gone))
            return
        if report.end is not None and member.state != "draining":
            self._remove(member.id, "ended", report.end)
            return
        member.generation = report.generation
        self._take_number(report.generation)
        if member.take(report, now_s):
            self._tell(member)
            if member.state == "ready":
                self._pause_s = 0.0
        limit_s = self.config.replica.start_timeout_s
        if report.health.draining and member.state != "draining":
            # Whoever began that, another process of ours or a hand, it will not serve again.
            self._begin_drain(member, now_s)
        elif member.state in ("starting", "unready") and now_s - member.since_s > limit_s:
            self._remove(member.id, "late", f"it was not ready for {limit_s:g} s")

    def _take_number(self, other: Generation) -> None:
        """Go on from the restarts that another process counted."""
        if other.number > self.generation.number and other.digest == self.generation.digest:
            self.generation = other

    def _remove(self, name: str, why: str, error: str | None) -> None:
        """Forget a replica and see to it that it has ended."""
        member = self._members.pop(name)
        if (draining := self._drains.pop(name, None)) is not None:
            draining.cancel()
        if (asked := self._reports.pop(name, None)) is not None:
            asked[1].add_done_callback(_forget)
            asked[1].cancel()
        self._placer.kill(name)
        is_failure = error is not None and member.state != "draining"
        fields = {"replica": name, "why": why, "was": member.state, "node": member.node}
        level = logging.WARNING if is_failure else logging.INFO
        log_event(logger, "replica_removed", {**fields, "error": error}, level=level)
        if is_failure:
            self.last_error = f"{name}: {error}"
            if member.state in ("placing", "starting"):
                longer_s = max(2 * self._pause_s, _FIRST_PAUSE_S)
                self._pause_s = min(longer_s, _LONGEST_PAUSE_S)
                self._paused_until_s = time.monotonic() + self._pause_s

    def _scale(self, now_s: float) -> None:
        ready = {each.id: each for each in self._members.values() if each.state == "ready"}
        healths = {name: each.health for name, each in ready.items()}
        rates = [each.rate.per_s for each in ready.values()]
        self.predicted_s = predicted_first_token_s(healths.values(), rates)
        before = self._scaler.wanted
        after = self._scaler.decide(now_s, healths, self.predicted_s)
        if after != before:
            fields = {"from": before, "to": after, "predicted_s": self.predicted_s}
            log_event(logger, "scaled", fields)

    def _roll(self, now_s: float) -> None:
        surge = self.config.scale.surge
        rollout = next_rollout(self._members.values(), self.wanted, self.generation, surge)
        for name in rollout.drains:
            self._begin_drain(self._members[name], now_s)
        if now_s < self._paused_until_s:
            return
        for _ in range(rollout.starts):
            name = f"replica-{uuid4().hex[:8]}"
            self._members[name] = Member(name, self.generation, now_s)
            self._tell(self._members[name])
            self._placer.place(name, self.generation)

    def _begin_drain(self, member: Member, now_s: float) -> None:
        if member.url is None:  # it never served anybody
            self._remove(member.id, "withdrawn", None)
            return
        member.enter("draining", now_s)
        self._tell(member)
        draining = self._drain(member.id)
        self._drains[member.id] = asyncio.get_running_loop().create_task(draining)

    async def _drain(self, name: str) -> None:
        await asyncio.sleep(self.config.replica.notice_s)
        with contextlib.suppress(ReplicaGone):
            await self._placer.drain(name)
        del self._drains[name]
        self._remove(name, "drained", None)

    def _tell(self, member: Member) -> None:
        fields = {"replica": member.id, "state": member.state, "url": member.url}
        sequences = member.health.sequences if member.state == "draining" else None
        log_event(
            logger, "replica", {**fields, "node": member.node or None, "sequences": sequences}
        )

    async def _cancel_tasks(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._drains.values()]
        tasks += [task for _, task in self._reports.values()]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _forget(task: asyncio.Task[Any]) -> None:
    """Nobody asks any more how it ended."""
    if not task.cancelled():
        task.exception()
