"""Who is next where several keys share an engine: each gets its share, and none more than it wants.

A request's owner is its key. While there is only one, requests go first come, first served, and
nothing here is asked. With several:

- Prompts have fewer tokens of a step than they might, and where those are few, fewer sequences
  decode in it: whoever decodes, or has a short prompt, waits for all of it. An owner with more than
  its share of those has them take turns.
- The next chunk of a prompt, or the next admission, is that of the owner with the fewest tokens
  served, and no prompt takes all of a step while another owner has one (start-time fair queueing,
  Goyal 1996: who had nothing to do starts level with who has least of the others, so that nobody
  saves up).
- Each may run its share of the slots. What others leave, it may have, too; when they come back,
  they get a slot a step from whoever holds most above its share. A few slots are kept free for
  owners that were here lately, so that not each of their requests takes one away.
- Each may hold its share of the blocks in the same way; after an owner lost some, as many steps
  pass until the next loss as it takes to compute twice what was lost.
- One that finds no memory holds the door until it does; what is short and needs little may go past
  for a while, so that memory which is too little for the one is of use to the others (prompts.py).
- Each may have its share of the queue waiting, however full others have made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lingflash.engine.schedule.sequence import Sequence

# Of a step's tokens a prompt takes at most all but one part of so many, where another owner waits.
_CHUNK_PARTS = 8
# Of the slots this part at most is kept free for owners that have none in use.
_KEPT_PARTS = 4
# A sequence that decodes takes a step as long as so many tokens of a prompt, or longer (measured
# on a CPU with ling-nano: 1.8 to 2.2 ms against 0.5).
_ROW_TOKENS = 4
# For so many steps an owner that has left is expected back.
_LINGER_STEPS = 512
# Steps between two losses of blocks, at most.
_MOST_PEACE_STEPS = 64
# What an owner had while others wanted little is held against it up to so many steps' tokens.
_MOST_STEPS_AHEAD = 16


@dataclass(slots=True)
class _Owner:
    """What is known of an owner.

    Args:
        num_live: sequences that wait or run.
        served: tokens, from where it started level with the others.
        is_backlogged: it had something to choose from when it was last looked at.
        peak: most slots that it used at once lately.
        left_at: step in which its last sequence ended.
        peace_until: step from which it may lose blocks again.
    """

    num_live: int = 0
    served: int = 0
    is_backlogged: bool = False
    peak: int = 0
    left_at: int = 0
    peace_until: int = 0


class Shares:
    """The owners of a scheduler's sequences.

    Args:
        max_num_seqs: slots.
        step_tokens: of a step.
        shared_tokens: of prompts in a step while there are several; None if no fewer.
        max_num_waiting: requests that wait at once.

    Attributes:
        resting: sequences that could decode and do not, in this step.
    """

    def __init__(
        self, max_num_seqs: int, step_tokens: int, shared_tokens: int | None, max_num_waiting: int
    ) -> None:
        self._max_num_seqs = self._step_rows = max_num_seqs
        self.step_tokens = min(shared_tokens or step_tokens, step_tokens)
        if shared_tokens is not None:
            self._step_rows = max(shared_tokens // _ROW_TOKENS, 1)
        self.resting: frozenset[Sequence] = frozenset()
        self._turns: Counter[str] = Counter()  # of each owner's sequences, while some rest
        self._max_num_waiting = max_num_waiting
        self._owners: dict[str, _Owner] = {}
        self._virtual = 0  # tokens that had been served to whom the last chunk went
        self._step = self._window_at = 0
        self._num_live = 0  # owners

    @property
    def are_needed(self) -> bool:
        """Whether there are several owners, or were lately."""
        return len(self._owners) > 1

    def joined(self, name: str, num_sequences: int) -> None:
        """A request has come."""
        owner = self._owners.setdefault(name, _Owner())
        self._num_live += not owner.num_live
        owner.num_live += num_sequences

    def left(self, name: str) -> None:
        """A sequence has ended."""
        owner = self._owners[name]
        owner.num_live -= 1
        if not owner.num_live:
            self._num_live -= 1
            owner.left_at, owner.is_backlogged = self._step, False
            if len(self._owners) == 1:
                self._owners.clear()
                self.resting = frozenset()
                self._turns.clear()

    def may_wait(self, name: str, num_sequences: int, waiting: Iterable[Sequence]) -> bool:
        """Whether an owner may have more waiting although the queue is full."""
        owner = self._owners.get(name)
        num_owners = self._num_live + (owner is None or not owner.num_live)
        if num_owners == 1:
            return False
        num_waiting = sum(sequence.owner == name for sequence in waiting)
        return num_waiting + num_sequences <= self._max_num_waiting // num_owners

    def begin_step(self, step: int, slots: Counter[str]) -> None:
        """Note who uses how many slots; forget owners that do not come back."""
        self._step = step
        is_new_window = step - self._window_at > _LINGER_STEPS
        if is_new_window:
            self._window_at = step
        for name, owner in list(self._owners.items()):
            if owner.num_live:
                owner.peak = slots[name] if is_new_window else max(owner.peak, slots[name])
            elif step - owner.left_at > _LINGER_STEPS:
                del self._owners[name]

    def take_turns(self, running: Iterable[Sequence]) -> None:
        """Choose who rests in this step: what each owner has above its share of what decodes."""
        self.resting = frozenset()
        if self._num_live < 2:
            return
        rows: dict[str, list[Sequence]] = {}
        for sequence in running:
            if sequence.is_decoding and not sequence.waits_for_mask:
                rows.setdefault(sequence.owner, []).append(sequence)
        left, resting = self._step_rows, []
        for num_done, name in enumerate(sorted(rows, key=lambda n: len(rows[n]))):
            own, share = rows[name], max(left // (len(rows) - num_done), 1)
            left -= min(len(own), share)
            if len(own) > share:
                first = self._turns[name] % len(own)
                own = own[first:] + own[:first]
                resting += own[share:]
                self._turns[name] = first + share
        self.resting = frozenset(resting)

    def part_of(self, amount: int) -> int:
        """An owner's share of so much."""
        return max(amount // max(self._num_live, 1), 1)

    @property
    def num_slots(self) -> int:
        """Share of the slots."""
        return self.part_of(self._max_num_seqs)

    def most_above(self, held: Counter[str], share: int) -> str | None:
        """The owner that holds most above a share, if any does."""
        name = max(held, key=held.__getitem__, default=None)
        return name if name is not None and held[name] > share else None

    def may_begin(self, name: str, slots: Counter[str], wanted: Counter[str]) -> bool:
        """Whether an owner may have one more slot.

        Args:
            name: of the owner.
            slots: in use, by owner.
            wanted: sequences that wait, by owner.
        """
        if self._num_live > 1 and slots[name] < self.num_slots:
            return True
        due = kept = 0
        for other, owner in self._owners.items():
            if other != name:
                below = max(self.num_slots - slots[other], 0)
                now = min(below, wanted[other])
                due += now
                kept += max(min(below, owner.peak - slots[other]) - now, 0)
        due += min(kept, self._max_num_seqs // _KEPT_PARTS)
        return sum(slots.values()) + due < self._max_num_seqs

    def next_of(self, names: Collection[str]) -> str:
        """Whose turn it is among these, who all have something to do."""
        for name in names:
            owner = self._owners[name]
            if not owner.is_backlogged:
                owner.is_backlogged = True
                owner.served = max(owner.served, self._virtual)
        name = min(names, key=lambda n: self._owners[n].served)
        least = self._owners[name].served
        self._virtual = max(self._virtual, least)
        most = least + _MOST_STEPS_AHEAD * self.step_tokens
        for other in names:
            self._owners[other].served = min(self._owners[other].served, most)
        return name

    def rest(self, names: Collection[str]) -> None:
        """These have nothing more to do."""
        for name, owner in self._owners.items():
            if name not in names:
                owner.is_backlogged = False

    def longest_chunk(self, num_others: int) -> int:
        """Most tokens of a prompt in a step where so many other owners have one."""
        most = self.step_tokens
        return most - most // _CHUNK_PARTS if num_others else most

    def serve(self, name: str, num_tokens: int) -> None:
        """Count tokens that an owner gets in a step."""
        self._owners[name].served += num_tokens

    def is_in_peace(self, name: str) -> bool:
        """Whether an owner lost blocks too lately to lose some again."""
        return self._step < self._owners[name].peace_until

    def lost(self, name: str, num_tokens: int) -> None:
        """An owner lost blocks with so many computed tokens to another."""
        owner = self._owners[name]
        steps = max(owner.peace_until - self._step, 0)
        steps += max(-(-2 * num_tokens // self.step_tokens), 1)
        owner.peace_until = self._step + min(steps, _MOST_PEACE_STEPS)
