"""Which replicas to start and which to drain next. Pure: by what is known of each, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lingflash.cluster.members import Generation, Member

_LEAST_LOSS = ("placing", "starting", "unready", "ready")


@dataclass(frozen=True, slots=True)
class Rollout:
    """What to do now.

    Args:
        starts: replicas to start.
        drains: ids of those to drain.
    """

    starts: int
    drains: list[str]


def next_rollout(
    members: Iterable[Member], wanted: int, generation: Generation, surge: int
) -> Rollout:
    """The next thing to do on the way to `wanted` replicas of a generation.

    Old ones are replaced a few at a time, so that as many are ready as are wanted; one fewer where
    there is no room for a surge.

    Args:
        surge: replicas beyond `wanted` while old ones are there.
    """
    here = [each for each in members if each.state != "draining"]
    old = [each for each in here if each.is_leaving or each.generation != generation]
    new = [each for each in here if each not in old]
    surplus = sorted(new, key=_loss)[: max(len(new) - wanted, 0)]
    room = wanted + (surge if old else 0) - len(here)
    starts = max(min(wanted - len(new), room), 0)
    # As many old ones may go as leave enough that are ready.
    num_ready = sum(each.state == "ready" for each in here if each not in surplus)
    spare = num_ready - wanted + (0 if surge else 1)
    drains = [each.id for each in surplus]
    for each in sorted(old, key=_loss):
        if each.state == "ready":
            spare -= 1
            if spare < 0:
                break
        drains.append(each.id)
    return Rollout(starts, drains)


def _loss(member: Member) -> tuple[int, int, str]:
    """How much would be lost with it: nothing before it serves, then sessions."""
    return (_LEAST_LOSS.index(member.state), member.health.sessions, member.id)
