"""Which prompts a step computes: those begun, and those admitted, each in chunks.

One owner's go in the order of arrival. Several have their shares (shares.py): whose turn it is goes
next, and who holds more than its share gives some back to who has less.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

from lingflash.cache.manager import CacheManager
from lingflash.core.anchors import last_anchor
from lingflash.engine.schedule.prefix_keeper import PrefixKeeper
from lingflash.engine.schedule.sequence import Sequence
from lingflash.engine.schedule.shares import Shares

# For so many steps others may go past one that has found no memory, with at most so many tokens to
# come: they have given theirs back when it could begin.
_PATIENCE_STEPS = 64


class Prompts:
    """Chooses among the scheduler's sequences, whose lists it shares.

    Args:
        shares: the owners.
        cache: the memory.
        prefixes: what is known of beginnings.
        running: in the order of admission.
        waiting: in the order of arrival.
        max_num_seqs: slots.
        preempt: takes a running one's memory.
        save_slot: see Scheduler.
    """

    def __init__(
        self,
        shares: Shares,
        cache: CacheManager,
        prefixes: PrefixKeeper,
        running: list[Sequence],
        waiting: deque[Sequence],
        max_num_seqs: int,
        *,
        preempt: Callable[[Sequence], None],
        save_slot: int | None = None,
    ) -> None:
        self._shares, self._cache, self._prefixes = shares, cache, prefixes
        self._running, self._waiting, self._max_num_seqs = running, waiting, max_num_seqs
        self._preempt, self._save_slot = preempt, save_slot
        # What a chosen sequence is to leave, and where (see ScheduledSequence); at most one's.
        self.saves: dict[Sequence, tuple[int, int]] = {}
        self._step = 0
        self._blocked_since: dict[str, int] = {}  # owners whose next one has found no memory

    def begin_step(self, step: int) -> None:
        """Take a slot from the owner that has most above its share, if another is owed one."""
        self._step = step
        waiting = {sequence.owner for sequence in self._waiting}
        self._blocked_since = {n: at for n, at in self._blocked_since.items() if n in waiting}
        self._shares.begin_step(step, self._slots())
        if len(self._running) >= self._max_num_seqs and self.owes_slot():
            name = self._shares.most_above(self._slots(), self._shares.num_slots)
            assert name is not None
            self._preempt(self._youngest(name))
        self._shares.take_turns(self._running)

    def owes_slot(self) -> bool:
        """Whether one that waits has less than its share of the slots, and another has more."""
        slots, share = self._slots(), self._shares.num_slots
        return self._shares.most_above(slots, share) is not None and any(
            slots[sequence.owner] < share for sequence in self._waiting
        )

    def victim(self) -> Sequence:
        """Who loses its memory when a sequence that runs finds none."""
        held = self._held()
        return self._youngest(max(held, key=held.__getitem__))

    def add(
        self,
        chosen: dict[Sequence, int],
        budget: int,
        running: list[Sequence],
        waiting: Iterable[Sequence],
    ) -> bool:
        """Give what is left of a step to prompts.

        Args:
            chosen: tokens of each sequence in the step; is added to.
            budget: tokens that are left.
            running, waiting: who may be chosen.

        Returns:
            Whether one found no memory; then nobody is admitted after it.
        """
        self.saves = {}
        if self._shares.are_needed:
            return self._add_by_share(chosen, budget, running, list(waiting))
        for sequence in running if len(chosen) < len(running) else ():
            if sequence not in chosen and budget > 0 and _can_go_on(sequence):
                chosen[sequence] = self._chunk(sequence, budget)
                budget -= chosen[sequence]
        if budget <= 0 or len(self._running) >= self._max_num_seqs:
            return False
        for sequence in list(waiting):
            if budget <= 0 or len(self._running) >= self._max_num_seqs:
                break
            if not self._may_begin(sequence):
                continue
            if not self._begin(sequence):
                return True
            chosen[sequence] = self._chunk(sequence, budget)
            budget -= chosen[sequence]
        return False

    def _add_by_share(
        self,
        chosen: dict[Sequence, int],
        budget: int,
        running: Iterable[Sequence],
        waiting: list[Sequence],
    ) -> bool:
        """The same, each chunk to the owner whose turn it is."""
        shares, slots = self._shares, self._slots()
        budget = min(budget, shares.step_tokens)
        wanted = Counter(sequence.owner for sequence in self._waiting)
        for sequence, count in chosen.items():
            shares.serve(sequence.owner, count)
        queues: dict[str, deque[Sequence]] = {}
        for sequence in running:
            if sequence in chosen or sequence in shares.resting:
                continue
            if _can_go_on(sequence):
                queues.setdefault(sequence.owner, deque()).append(sequence)
        for sequence in waiting:
            queues.setdefault(sequence.owner, deque()).append(sequence)
        shares.rest(queues)
        may_admit = True
        lost: list[Sequence] = []  # their memory, in this step
        while queues and budget > 0:
            name = shares.next_of(queues)
            sequence = queues[name].popleft()
            if not queues[name]:
                del queues[name]
            if sequence.lease is None:
                has_slot = len(self._running) < self._max_num_seqs
                may_pass = may_admit or self._may_pass(sequence)
                if not (may_pass and has_slot and shares.may_begin(name, slots, wanted)):
                    queues.pop(name, None)  # all that follow wait, too
                    continue
                if sequence in lost or not self._may_begin(sequence):
                    continue
                has_begun = self._begin(sequence)
                if not has_begun and may_admit and self._take_blocks(sequence, lost):
                    budget += sum(chosen.pop(victim, 0) for victim in lost)
                    slots = self._slots()
                    has_begun = self._begin(sequence)
                if not has_begun:
                    may_admit = False
                    self._blocked_since.setdefault(name, self._step)
                    continue
                self._blocked_since.pop(name, None)
                slots[name] += 1
                wanted[name] -= 1
            count = self._chunk(
                sequence, min(budget, shares.longest_chunk(len(queues.keys() - {name})))
            )
            chosen[sequence] = count
            budget -= count
            shares.serve(name, count)
        return not may_admit

    def _may_pass(self, sequence: Sequence) -> bool:
        """Whether one that waits may go past another's that has found no memory.

        Not if that owner's own stands there. It is short, leaves its owner below half its share of
        the blocks, and nobody has waited for long: after that what is given back is for who waits.
        """
        since = self._blocked_since
        if sequence.owner in since or self._step - min(since.values()) > _PATIENCE_STEPS:
            return False
        if sequence.max_total_tokens - sequence.num_tokens > _PATIENCE_STEPS:
            return False
        share = self._shares.part_of(self._cache.num_blocks)
        wanted = self._cache.blocks_for(sequence.max_total_tokens)
        return 2 * (self._held()[sequence.owner] + wanted) <= share

    def _may_begin(self, sequence: Sequence) -> bool:
        """Not if it waits for a mask, or had better wait for what another is just computing."""
        return not (
            sequence.waits_for_mask or self._prefixes.can_share_soon(sequence, self._running)
        )

    def _begin(self, sequence: Sequence) -> bool:
        """Admit one that waits; False if it finds too little memory."""
        if self._prefixes.admit(sequence) is None:
            return False
        self._waiting.remove(sequence)
        self._running.append(sequence)
        return True

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        """How many tokens of a sequence to compute next; ends where a checkpoint will be wanted.

        Where one sequence's states can be left on the way, a step may go on after such a place:
        a step of its own for the last tokens of a prompt would read most of the weights again.
        """
        start = sequence.num_computed
        end = min(sequence.num_tokens, start + budget)
        for place in sorted(set(self._prefixes.cuts(sequence))):
            # The states that a step leaves are those of its last anchor, wherever it ends.
            if not start < place < last_anchor(end):
                continue
            if self._save_slot is None or self.saves:
                return place - start
            self.saves[sequence] = place, self._save_slot
        return end - start

    def _take_blocks(self, sequence: Sequence, lost: list[Sequence]) -> bool:
        """Preempt the youngest of who hold most above their share, for one that holds less.

        Args:
            sequence: waits, and found too little memory.
            lost: who was preempted; is added to.

        Returns:
            Whether there may be enough now; if there cannot be, nobody is preempted.
        """
        held, shares = self._held(), self._shares
        share = shares.part_of(self._cache.num_blocks)
        wanted = self._cache.blocks_for(sequence.num_tokens)
        above = {
            name: count - share
            for name, count in held.items()
            if count > share and not shares.is_in_peace(name)
        }
        free = self._cache.num_free_blocks
        if held[sequence.owner] + wanted > share or free + sum(above.values()) < wanted:
            return False
        while self._cache.num_free_blocks < wanted and above:
            name = max(above, key=above.__getitem__)
            victim = self._youngest(name)
            assert victim.lease is not None
            above[name] -= len(victim.lease.blocks)
            if above[name] <= 0:
                del above[name]
            shares.lost(name, victim.num_computed)
            self._preempt(victim)
            lost.append(victim)
        return True

    def _slots(self) -> Counter[str]:
        return Counter(sequence.owner for sequence in self._running)

    def _held(self) -> Counter[str]:
        """Blocks by owner; a shared one counts for each that reads it."""
        held: Counter[str] = Counter()
        for sequence in self._running:
            if sequence.lease is not None:
                held[sequence.owner] += len(sequence.lease.blocks)
        return held

    def _youngest(self, owner: str) -> Sequence:
        return next(s for s in reversed(self._running) if s.owner == owner)


def _can_go_on(sequence: Sequence) -> bool:
    return sequence.lease is not None and not sequence.waits_for_mask
