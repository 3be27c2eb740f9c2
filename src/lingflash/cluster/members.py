"""What is known of each replica."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lingflash.cluster.autoscaler import PromptRate
from lingflash.protocol.replicas import Health, Replica

State = Literal["placing", "starting", "ready", "unready", "draining"]
"""placing: Ray has not answered for it yet; unready: it was ready, and is not."""


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """What a replica was started as; one that has another is to be replaced.

    Args:
        number: counts `ling cluster restart`.
        digest: of the configuration.
    """

    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica says of itself.

    Args:
        node: the machine's address.
        url: where its server listens, once that is known.
        end: why its server has ended, with its last lines; None while it runs.
    """

    generation: Generation
    node: str
    url: str | None
    health: Health
    end: str | None = None


@dataclass(slots=True)
class Member:
    """A replica, as the controller knows it.

    Args:
        since_s: when it came into its state.
        is_leaving: it is to be replaced, whatever its generation.
    """

    id: str
    generation: Generation
    since_s: float
    state: State = "placing"
    node: str = ""
    url: str | None = None
    health: Health = field(default_factory=lambda: Health(ready=False))
    rate: PromptRate = field(default_factory=PromptRate)
    is_leaving: bool = False

    def take(self, report: Report, now_s: float) -> bool:
        """Take a report in; tell whether the state has changed."""
        self.node, self.url, self.health = report.node, report.url or self.url, report.health
        self.rate.note(now_s, report.health)
        if self.state == "draining":
            return False
        if report.health.ready:
            state: State = "ready"
        elif self.state in ("ready", "unready"):
            state = "unready"
        else:
            state = "starting"
        return self.enter(state, now_s)

    def enter(self, state: State, now_s: float) -> bool:
        """Come into a state; tell whether it is another."""
        if state == self.state:
            return False
        self.state, self.since_s = state, now_s
        return True

    def entry(self) -> Replica | None:
        """Its entry in the directory; None while nobody knows where it is."""
        if self.url is None:
            return None
        is_draining = self.state == "draining"
        return Replica(
            url=self.url,
            model=self.health.model,
            capacity=self.health.capacity,
            tokens_in_flight=self.health.tokens_in_flight,
            ready=self.state == "ready",
            draining=is_draining,
        )
