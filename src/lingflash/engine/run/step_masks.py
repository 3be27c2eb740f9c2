"""The masks of a step: which tokens the grammars of its sequences allow.

They are computed in a thread while the model runs; both give up the interpreter lock. What a mask
costs is up to who wrote the grammar, and the grammar library's limits do not hold for all of it, so
nobody waits for one for long:

- A step waits for a mask until that has used MASK_WAIT_S of processor time, and for all together at
  most STEP_WAIT_S. A sequence without a mask gets no token in this step. It gives up its memory and
  is computed again when its mask is there, which its thread goes on with; samples do not change.
- A grammar of which a mask took longer than SLOW_MASK_S is slow: from then on its tokens are taken
  and its masks made beside the steps, and its sequences are in none until that is done.
- A sequence that has used MASK_BUDGET_S beyond what is usual is ended alone.

Copies of one compiled grammar wait for each other inside the library, with the interpreter lock
when they take tokens. So they are slow together, and late together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lingflash.core.errors import EngineError, InvalidRequestError
from lingflash.core.priority import lower_priority
from lingflash.engine.schedule.sequence import Sequence
from lingflash.engine.schedule.step import StepResult
from lingflash.structured.masks import Mask, TokenMatcher, mask_words, unpack_mask

MASK_WAIT_S = 0.02
STEP_WAIT_S = 0.06
_NICE = 10  # of threads that no step waits for


class _Pools:
    """The threads that make masks; both are started when they are first needed."""

    def __init__(self) -> None:
        self._of_steps: ThreadPoolExecutor | None = None
        self._beside: ThreadPoolExecutor | None = None

    def of_steps(self) -> ThreadPoolExecutor:
        """One thread, for which a step waits."""
        if self._of_steps is None:
            self._of_steps = ThreadPoolExecutor(1, "masks")
        return self._of_steps

    def leave(self) -> None:
        """Let that thread finish what it does alone; the next work gets another."""
        if self._of_steps is not None:
            self._of_steps.shutdown(wait=False)
            self._of_steps = None

    def beside(self) -> ThreadPoolExecutor:
        """Threads that give way to steps."""
        if self._beside is None:
            self._beside = ThreadPoolExecutor(
                2, "slow-masks", initializer=lower_priority, initargs=(_NICE,)
            )
        return self._beside


_pools = _Pools()


def fill_mask(mask: Mask, sequence: Sequence, matcher: TokenMatcher, num_more: int = 0) -> bool:
    """Write the mask of a sequence's next token; whether it allows any.

    Args:
        mask: uint32 [mask_words(vocab_size)].
        sequence: whose stop tokens may end it.
        matcher: its own, or a copy.
        num_more: tokens that the matcher has taken beyond the sequence's.
    """
    too_short = len(sequence.output_token_ids) + num_more < sequence.sampling.min_tokens
    return matcher.fill(mask, () if too_short else sequence.stop_token_ids)


def fill_mask_soon(
    mask: Mask, sequence: Sequence, matcher: TokenMatcher, num_more: int
) -> bool | None:
    """The same in the masks' thread; None if it takes too long, and then it is a slow grammar."""
    work = _pools.of_steps().submit(fill_mask, mask, sequence, matcher, num_more)
    if not wait_for((work,), timeout=STEP_WAIT_S).done:
        matcher.mark_slow()
        _pools.leave()
        return None
    return work.result()


def _beside_steps(matcher: TokenMatcher, token: int | None = None) -> None:
    """Take a token, if there is one, and make the next mask, while steps go on without this."""
    matcher.is_busy = True
    _pools.beside().submit(_prepare, matcher, token)


def _prepare(matcher: TokenMatcher, token: int | None = None) -> None:
    start_s = time.thread_time()
    try:
        if token is None or matcher.consume(token):
            matcher.prepare()
    finally:
        matcher.charge(time.thread_time() - start_s)
        matcher.is_busy = False


class _TimedThread:
    """What a thread of a pool is at, so that another can tell when it has been long at it."""

    def __init__(self) -> None:
        self.native_id = threading.get_native_id()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._since_s = 0.0

    def begin(self) -> None:
        """Something new."""
        self._since_s = time.clock_gettime(self._clock)

    def spent_s(self) -> float:
        """Processor time since it began."""
        return time.clock_gettime(self._clock) - self._since_s


Group = tuple[int, Sequence, Seq[int]]


class StepMasks:
    """The masks of one step, under way.

    Args:
        groups: sequences that follow a grammar, each with its first row of logits and its drafts,
            whose rows follow.
        vocab_size: V.
    """

    def __init__(self, groups: list[Group], vocab_size: int) -> None:
        self._groups = groups
        self._vocab_size = vocab_size
        self._rows = [first + i for first, _, drafts in groups for i in range(len(drafts) + 1)]
        self._place = {row: i for i, row in enumerate(self._rows)}
        self._with_drafts = {first + i for first, _, ds in groups if ds for i in range(len(ds) + 1)}
        self._masks: Mask = np.zeros((len(self._rows), mask_words(vocab_size)), np.uint32)
        self._allowed: dict[int, bool] = {}
        self._late: set[int] = set()  # first rows
        self._lock = threading.Lock()
        self._turn = 0  # of the threads that work on this step one after the other
        self._thread: _TimedThread | None = None
        self._at: Group | None = None
        self._todo: list[Group] = []
        for group in groups:
            matcher = _matcher_of(group)
            if matcher.is_slow and not matcher.is_prepared:
                group[1].may_draft = False
                self._late.add(group[0])
                _beside_steps(matcher)
            else:
                self._todo.append(group)
        self._future: Future[None] = _pools.of_steps().submit(self._work, 0)

    @classmethod
    def start(cls, groups: Seq[Group], vocab_size: int) -> StepMasks | None:
        """Begin to compute the masks; None if no sequence has a grammar."""
        constrained = [group for group in groups if group[1].matcher is not None]
        return cls(constrained, vocab_size) if constrained else None

    def _work(self, turn: int) -> None:
        """Thread: group after group, until none is left or another thread has taken over."""
        thread = _TimedThread()
        while True:
            with self._lock:
                if turn != self._turn:
                    return
                group = self._at = self._todo.pop(0) if self._todo else None
                if group is None:
                    return
                self._thread = thread
                thread.begin()
            found = self._fill(group)
            _matcher_of(group).charge(thread.spent_s())
            with self._lock:
                if turn == self._turn:
                    self._allowed.update(found)
                    continue
            # Too late for this step: for the sequence's next one.
            _prepare(_matcher_of(group))
            return

    def _fill(self, group: Group) -> dict[int, bool]:
        first, sequence, drafts = group
        matcher = _matcher_of(group)
        masks = iter(self._masks[self._place[first] :])
        mask = next(masks)
        found = {first: fill_mask(mask, sequence, matcher)}
        taken = 0
        for i, token in enumerate(drafts, 1):
            # After a draft that is not allowed nothing is accepted: the masks stay empty. The
            # bit is asked first, since a matcher that refuses a token is of no more use.
            allowed = bool(mask[token >> 5] >> np.uint32(token & 31) & 1)
            allowed &= token not in sequence.stop_token_ids
            mask = next(masks)
            found[first + i] = False
            if allowed and taken == i - 1 and matcher.consume(token):
                taken = i
                found[first + i] = fill_mask(mask, sequence, matcher, i)
        if drafts:
            matcher.rollback(taken)
        return found

    def settle(self) -> None:
        """Let no thread be at work on this step any more, which has failed, unless beside it."""
        self._wait()

    def _wait(self) -> None:
        """Until each mask is there or late."""
        end_s = time.monotonic() + STEP_WAIT_S
        while True:
            wait_s = min(MASK_WAIT_S, max(end_s - time.monotonic(), 0.0))
            if wait_for((self._future,), timeout=wait_s).done:
                return self._future.result()
            is_over = time.monotonic() >= end_s
            with self._lock:
                thread = self._thread
                # By the thread's own time: on a busy machine everything takes long.
                is_long = thread is not None and thread.spent_s() >= MASK_WAIT_S
                if (is_over or is_long) and not self._go_on_without(is_over=is_over):
                    return None

    def _go_on_without(self, *, is_over: bool) -> bool:
        """Leave the mask under way to its thread; whether there are others to wait for."""
        self._turn += 1
        late = self._todo if is_over else []
        for group in late:  # so that it is there next time, however busy the machine is
            _beside_steps(_matcher_of(group))
        if self._at is not None:
            _pools.leave()
            assert self._thread is not None
            lower_priority(_NICE, self._thread.native_id)
            stuck = _matcher_of(self._at)
            stuck.is_busy = True
            stuck.mark_slow()
            late = [*late, *(g for g in self._groups if _matcher_of(g).lexer is stuck.lexer)]
        self._late.update(group[0] for group in late)
        self._todo = [group for group in self._todo if group[0] not in self._late]
        self._at = self._thread = None
        if self._todo:
            self._future = _pools.of_steps().submit(self._work, self._turn)
        return bool(self._todo)

    def forbidden(self, device: torch.device) -> dict[int, Tensor]:
        """Wait for the masks.

        Returns:
            For each row that follows a grammar and is not complete: bool [V], True where no token
            is allowed.
        """
        self._wait()
        refused = torch.from_numpy(~unpack_mask(self._masks, self._vocab_size)).to(device)
        return {row: refused[i] for i, row in enumerate(self._rows) if self._allowed.get(row)}

    def advance(self, row: int, sequence: Sequence, result: StepResult) -> StepResult:
        """Move a sequence's matcher on by the token sampled in a row.

        Returns:
            The result, which says now whether the sequence is complete.
        """
        matcher = sequence.matcher
        if result.error is not None or matcher is None:
            return result
        if row in self._late:
            return StepResult(error=EngineError("The mask was not there in time."), is_late=True)
        if not self._allowed[row]:
            result = StepResult(is_complete=True)
        elif result.token_id not in sequence.stop_token_ids:
            assert result.token_id is not None
            if matcher.is_slow:
                sequence.may_draft = False
                if matcher.is_spent:
                    return _too_complex()
                if row not in self._with_drafts:
                    _beside_steps(matcher, result.token_id)
                    return result
            if matcher.consume(result.token_id):
                result = replace(result, is_complete=matcher.is_complete)
        return _too_complex() if matcher.error is not None else result


def _too_complex() -> StepResult:
    return StepResult(
        error=InvalidRequestError(
            "The grammar became too complex while the answer was written; make it simpler."
        )
    )


def _matcher_of(group: Group) -> TokenMatcher:
    matcher = group[1].matcher
    assert matcher is not None
    return matcher
