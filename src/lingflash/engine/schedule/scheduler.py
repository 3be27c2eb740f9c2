"""What runs in the next step, decided in plain Python: no I/O, no clock of its own, no torch.

A step computes some tokens of some sequences. Sequences that decode come first, one token each;
what is left of the token budget goes to prompts, in the order of arrival, in chunks. A prompt is
admitted only with blocks for all of its tokens and a state slot. When a decoding sequence needs a
block and none is free, the youngest sequence gives up its memory and is computed again later (its
samples do not change: noise is keyed by position).

    add -> waiting -> [schedule -> model -> commit]* -> one event with a finish reason
                ^---------- preempted ----------'

Where the model can run behind the host, the step after a decode step is chosen before that one's
tokens are known (schedule_ahead). Until a step is committed its tokens are in flight: they count
nowhere, and the memory of a sequence that has ended meanwhile stays its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from lingflash.cache.manager import CacheManager
from lingflash.core.anchors import last_anchor
from lingflash.core.errors import (
    DeadlineExceededError,
    EngineError,
    InvalidRequestError,
    LingflashError,
    NonFiniteLogitsError,
    QueueFullError,
)
from lingflash.core.types import (
    EngineRequest,
    EngineStats,
    FinishReason,
    SamplingParams,
    TokenEvent,
)
from lingflash.engine.schedule.counters import Counters
from lingflash.engine.schedule.finish import last_event, progress_event, take_result
from lingflash.engine.schedule.prefix_keeper import PrefixKeeper
from lingflash.engine.schedule.prompts import Prompts
from lingflash.engine.schedule.sequence import Sequence, check_limits, sequences_of
from lingflash.engine.schedule.shares import Shares
from lingflash.engine.schedule.step import ScheduledSequence, SchedulerOutput, StepResult
from lingflash.engine.schedule.suspects import Suspects, forget_attempt
from lingflash.structured.masks import TokenMatcher

_NOT_MADE = EngineError("The step was not made.")


class Scheduler:
    """All sequences of the engine and the memory they hold.

    Args:
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens in a step.
        max_num_shared_tokens: of prompts in a step while several keys are served, and four times
            the sequences that decode in it; None if no fewer.
        max_num_waiting: requests that wait at once; one more is refused.
        max_model_len: prompt and answer together.
        vocab_size: token ids are below it.
        stop_token_ids: the model's own.
        save_slot: a state slot beyond those of sequences, in which a step can leave one sequence's
            states as they were within its tokens; None if it cannot.
    """

    def __init__(
        self,
        cache: CacheManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_num_shared_tokens: int | None = None,
        max_num_waiting: int,
        max_model_len: int,
        vocab_size: int,
        stop_token_ids: Iterable[int],
        save_slot: int | None = None,
    ) -> None:
        if cache.blocks_for(max_model_len) > cache.num_blocks or cache.num_slots < 1:
            raise ValueError("the cache cannot hold one sequence of max_model_len tokens.")
        self.cache = cache
        self.max_num_seqs = min(max_num_seqs, cache.num_slots)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_waiting = max_num_waiting
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.stop_token_ids = frozenset(stop_token_ids)
        self.prefixes = PrefixKeeper(cache)
        self.num_draft_tokens = 0  # of each sequence and step; may change at any time
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in the order of admission, oldest first
        self._by_request: dict[str, list[Sequence]] = {}
        self._counters = Counters()
        self._has_deadlines = False
        self._lacks_memory = False  # the first that waits found too little, and none was freed
        self.suspects = Suspects()
        self.shares = Shares(
            self.max_num_seqs, max_num_batched_tokens, max_num_shared_tokens, max_num_waiting
        )
        self._prompts = Prompts(
            self.shares,
            cache,
            self.prefixes,
            self._running,
            self._waiting,
            self.max_num_seqs,
            preempt=self._preempt,
            save_slot=save_slot,
        )

    @property
    def num_running(self) -> int:
        """Sequences that hold memory."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._waiting or self._running)

    def stats(self) -> EngineStats:
        """Gauges and counters as of now."""
        return self._counters.stats(self.cache, self.prefixes, self._running, self._waiting)

    def validate(self, request: EngineRequest) -> None:
        """Refuse what can never be served.

        Raises:
            InvalidRequestError: with the field at fault.
        """
        check_limits(request, self.vocab_size, self.max_model_len)
        if request.request_id in self._by_request:
            raise InvalidRequestError(
                f"Request id {request.request_id!r} is already running.", param="request_id"
            )

    def add(
        self, request: EngineRequest, now_s: float, matcher: TokenMatcher | None = None
    ) -> None:
        """Queue a request.

        Args:
            matcher: of the request's grammar, at its start.

        Raises:
            InvalidRequestError: it can never be served.
            QueueFullError: too many wait already.
        """
        self.validate(request)
        # What can start at once does not wait, so a queue limit of 0 still serves.
        idle, n = max(self.max_num_seqs - len(self._running), 0), request.sampling.n
        is_full = len(self._waiting) + n > self.max_num_waiting + idle
        if is_full and not self.shares.may_wait(request.owner, n, self._waiting):
            raise QueueFullError(
                f"{len(self._waiting)} sequences wait already (--max-num-waiting "
                f"{self.max_num_waiting}); try again later."
            )
        sequences = sequences_of(request, self.stop_token_ids, self.max_model_len, now_s, matcher)
        self._by_request[request.request_id] = list(sequences)
        self._waiting.extend(sequences)
        self.shares.joined(request.owner, n)
        self._has_deadlines |= request.timeout_s is not None

    def abort(self, request_id: str) -> list[TokenEvent]:
        """End a request's sequences and free what they hold; unknown ids give no events."""
        return [
            self._finish(sequence, "aborted")
            for sequence in list(self._by_request.get(request_id, ()))
        ]

    def fail(self, sequences: Iterable[Sequence], error: LingflashError) -> list[TokenEvent]:
        """End these sequences with an error."""
        return [self._finish(sequence, "error", error) for sequence in sequences]

    def expire(self, now_s: float) -> list[TokenEvent]:
        """End sequences whose deadline has passed."""
        if not self._has_deadlines:
            return []
        every = [*self._waiting, *self._running]
        self._has_deadlines = any(s.deadline_s is not None for s in every)
        late = [s for s in every if s.deadline_s is not None and now_s >= s.deadline_s]
        error = DeadlineExceededError("The request did not finish before its deadline.")
        return self.fail(late, error)

    def schedule(self) -> SchedulerOutput:
        """Choose the next step's tokens and lease memory for them."""
        if not self.suspects:
            return self._schedule(self._running, self._waiting)
        output = self._schedule(*self.suspects.turn(self._running, self._waiting))
        if not output.scheduled:  # the suspect finds no memory, or there is nobody else
            output = self._schedule(*self.suspects.turn(self._running, self._waiting))
        return output

    def _schedule(self, running: list[Sequence], waiting: Iterable[Sequence]) -> SchedulerOutput:
        """The same among these."""
        output = SchedulerOutput(num_draft_tokens=self.num_draft_tokens)
        chosen: dict[Sequence, int] = {}
        if self.shares.are_needed:
            self._prompts.begin_step(self._counters.steps)
        num_preemptions = self._counters.preemptions
        budget = self._add_decoding(chosen, running)
        if self.num_draft_tokens:
            budget = self._add_drafts(chosen, budget)
        # Right after a preemption the memory just freed belongs to those who needed it.
        may_admit = num_preemptions == self._counters.preemptions
        can_begin = waiting if may_admit else ()
        self._lacks_memory |= self._prompts.add(chosen, budget, running, can_begin)
        scheduled, may_draft = output.scheduled, bool(self.num_draft_tokens)
        for sequence, count in chosen.items():
            start, num_tokens = sequence.num_computed, sequence.num_tokens
            wants_token = start + count >= num_tokens < sequence.max_total_tokens
            item = ScheduledSequence(sequence, start, count, wants_token)
            item.save = self._prompts.saves.get(sequence)
            if sequence.draft_tokens:
                item.draft_tokens = sequence.draft_tokens[: max(start + count - num_tokens, 0)]
                sequence.draft_tokens = []
                output.has_drafts |= bool(item.draft_tokens)
            if may_draft and wants_token and not item.draft_tokens:
                self._look_ahead(sequence)
            sequence.num_in_flight += count
            scheduled.append(item)
        if chosen:  # after the last block was leased
            output.memory_ops = self.cache.take_ops()
        return output

    def schedule_ahead(self, previous: SchedulerOutput) -> SchedulerOutput | None:
        """Choose the step after one that is under way, before that one's tokens are known.

        Its sequences go on by a token each, but for those that have ended or will by their length.
        One that turns out to have ended by its token is computed in vain.

        Args:
            previous: the last step, not committed: a token of each sequence, each to be followed
                by one that the device draws.

        Returns:
            None if schedule() is to decide when `previous` is committed: nothing goes on, one that
            waits may be admitted, or there are too few blocks.
        """
        alive = [item for item in previous.scheduled if not item.sequence.has_ended]
        # The token in flight has the place after the item's own, and there must be one more.
        going = [item for item in alive if item.start + 2 < item.sequence.max_total_tokens]
        if not going or len(alive) < len(self._running):
            return None
        is_full = self._lacks_memory or len(self._running) >= self.max_num_seqs
        if self._waiting and (not is_full or len(going) < len(previous.scheduled)):
            return None
        is_shared = self.shares.are_needed
        if is_shared and self._waiting and (self._lacks_memory or self._prompts.owes_slot()):
            return None
        output = SchedulerOutput()
        for item in going:
            lease = item.sequence.lease
            assert lease is not None
            # Blocks that some got before another found none are of use to them all the same.
            if not self.cache.grow(lease, item.start + 2):
                return None
            output.scheduled.append(ScheduledSequence(item.sequence, item.start + 1, 1, True))
        for item in going:
            item.sequence.num_in_flight += 1
            if is_shared:
                self.shares.serve(item.sequence.owner, 1)
        output.memory_ops = self.cache.take_ops()
        return output

    def _add_decoding(self, chosen: dict[Sequence, int], running: list[Sequence]) -> int:
        """Give each decoding sequence a token, or the youngest's memory; the budget left."""
        budget = self.max_num_batched_tokens
        block_size = self.cache.block_size
        resting = self.shares.resting
        for sequence in [s for s in running if s not in resting] if resting else list(running):
            lease, num_tokens = sequence.lease, sequence.num_tokens
            # All but the last token are computed. (Nothing here is called that need not be: it is
            # done for each sequence of each step.)
            if lease is None or num_tokens - sequence.num_computed != 1:
                continue
            if sequence.matcher is not None and sequence.waits_for_mask:
                continue
            if num_tokens > len(lease.blocks) * block_size:
                while sequence.lease is not None and not self.cache.grow(lease, num_tokens):
                    is_shared = self.shares.are_needed
                    victim = self._prompts.victim() if is_shared else self._running[-1]
                    budget += chosen.pop(victim, 0)
                    self._preempt(victim)
                if sequence.lease is None:
                    continue
            chosen[sequence] = 1
            budget -= 1
        return budget

    def _add_drafts(self, chosen: dict[Sequence, int], budget: int) -> int:
        """Let decoding sequences bring their drafts, as far as there is room; the budget left."""
        for sequence in chosen:
            drafts = len(sequence.draft_tokens)
            if drafts:
                # The step may give one token more than there are drafts.
                limit = sequence.max_total_tokens - sequence.num_tokens - 1
                room = self._look_ahead(sequence) - sequence.num_tokens
                drafts = max(min(drafts, budget, limit, room), 0)
                chosen[sequence] += drafts
                budget -= drafts
        return budget

    def _look_ahead(self, sequence: Sequence) -> int:
        """Lease blocks for drafts if any are free; how many tokens the lease holds.

        A step verifies drafts and then makes new ones, each in a row of the MTP layer's cache.
        """
        lease = sequence.lease
        assert lease is not None
        wanted = sequence.num_tokens + 2 * self.num_draft_tokens
        self.cache.grow(lease, min(wanted, sequence.max_total_tokens))
        return len(lease.blocks) * self.cache.block_size

    def step_failed(self, output: SchedulerOutput, error: LingflashError) -> list[TokenEvent]:
        """The step was not (fully) made: end its sequences, and trust nothing that they computed.

        Of two steps under way the later one is to be told of first.
        """
        events = []
        for item in output.scheduled:
            if not self._land(item, StepResult(error=error)):
                events += self.fail([item.sequence], error)
        self._doubt_cache(output)
        return events

    def take_back(self, output: SchedulerOutput) -> list[ScheduledSequence]:
        """The step was not (fully) made: it is as if it had not been scheduled.

        What it has left in latents and tails is written again by the next attempt. A sequence whose
        states it may have folded loses its memory, is computed again, and is suspected. Of two
        steps under way the later one is to be taken back first.

        Returns:
            What can be scheduled again as it is.
        """
        in_doubt = self._doubt_cache(output)
        items: list[ScheduledSequence] = []
        for item in reversed(output.scheduled):
            sequence, end = item.sequence, item.start + item.num_certain
            if self._land(item, StepResult(error=_NOT_MADE)) or sequence.lease is None:
                continue
            forget_attempt(sequence)
            if in_doubt or last_anchor(end) != sequence.anchor:
                self._preempt(sequence)
                self.suspects.add(sequence, end)
            else:
                items.append(item)
        return items[::-1]

    def _doubt_cache(self, output: SchedulerOutput) -> bool:
        """Trust nothing that is cached if memory was to be moved before a step and may not be."""
        if output.memory_ops:
            self.cache.step_failed(output.memory_ops)
        return bool(output.memory_ops)

    def again(self, items: list[ScheduledSequence], num_draft_tokens: int) -> SchedulerOutput:
        """Schedule some of what was taken back."""
        for item in items:
            item.sequence.num_in_flight += item.num_tokens
        has_drafts = any(item.draft_tokens for item in items)
        return SchedulerOutput(items, self.cache.take_ops(), num_draft_tokens, has_drafts)

    def schedule_probe(self) -> SchedulerOutput:
        """A step of one token that nobody asked for; empty if there is no memory for it."""
        request = EngineRequest(
            request_id="", prompt_token_ids=[0], sampling=SamplingParams(seed=0, max_tokens=1)
        )
        (probe,) = sequences_of(request, frozenset(), self.max_model_len, 0.0)
        self._by_request[""] = [probe]
        self.shares.joined("", 1)
        self._waiting.appendleft(probe)
        output = self._schedule([], [probe])
        if not output.scheduled:
            self.abort("")
        return output

    def commit(self, output: SchedulerOutput, results: Iterable[StepResult]) -> list[TokenEvent]:
        """Take in what the model said; returns the events to send."""
        self._counters.steps += 1
        events = []
        for item, result in zip(output.scheduled, results, strict=True):
            event = None if self._land(item, result) else self._commit_one(item, result)
            if event is not None:
                events.append(event)
        return events

    def _land(self, item: ScheduledSequence, result: StepResult) -> bool:
        """Count an item's tokens as in flight no more; True if its sequence had ended before.

        Then what it gave is of no use, but the tokens that it computed are the sequence's own, and
        the states in the slot are those after them: they are kept as at any end.
        """
        sequence = item.sequence
        sequence.num_in_flight -= item.num_tokens
        if not sequence.has_ended:
            return False
        if not sequence.num_in_flight:
            if result.error is None:
                self._advance(sequence, item.start + item.num_certain)
            self._release(sequence, is_sound=sequence.ended_soundly and result.error is None)
        return True

    @staticmethod
    def _advance(sequence: Sequence, end: int) -> None:
        """The tokens up to `end` are computed, none of them a draft."""
        sequence.num_computed = end
        sequence.anchor = last_anchor(end)

    def _commit_one(self, item: ScheduledSequence, result: StepResult) -> TokenEvent | None:
        sequence = item.sequence
        prompt_len = len(sequence.prompt_token_ids)
        drafts = item.draft_tokens
        num_certain = item.num_tokens - len(drafts)
        end = item.start + num_certain
        self._counters.prompt_tokens += max(min(end, prompt_len) - item.start, 0)
        if result.error is not None:
            # What may be a draft's fault is computed again, from the start and without any.
            if result.is_late or (drafts and isinstance(result.error, NonFiniteLogitsError)):
                sequence.may_draft &= result.is_late
                self._preempt(sequence)
                return None
            return self._finish(sequence, "error", result.error)
        self._advance(sequence, end)
        if self.suspects:
            self.suspects.clear(sequence)
        sequence.prompt_logprobs.extend(result.prompt_logprobs)
        # Worth keeping: the end of a prompt, and where a chunk was cut on purpose.
        ends_prompt = num_certain > 1 and end == sequence.num_tokens
        is_cut = sequence.anchor in self.prefixes.cuts(sequence)
        self.prefixes.keep(sequence, checkpoint=ends_prompt or is_cut, saved=item.save)
        if end < sequence.num_tokens:
            return progress_event(sequence, end)
        if not item.wants_token:
            return self._finish(sequence, "length")
        num_generated = len(sequence.output_token_ids)
        event = take_result(sequence, result)
        self._counters.generated_tokens += len(sequence.output_token_ids) - num_generated
        num_accepted = sequence.num_computed - end
        if event.finish_reason is not None:
            self._end(sequence, is_sound=event.error_code is None)
        elif num_accepted:
            self.prefixes.keep(sequence, checkpoint=False)
        if drafts:
            event.drafts = num_accepted, len(drafts) - num_accepted
            self._counters.drafted += len(drafts)
            self._counters.accepted += num_accepted
        return event

    def _finish(
        self, sequence: Sequence, reason: FinishReason, error: LingflashError | None = None
    ) -> TokenEvent:
        """End a sequence without a token of this step."""
        self._end(sequence, is_sound=error is None)
        return last_event(sequence, reason, error)

    def _end(self, sequence: Sequence, *, is_sound: bool) -> None:
        """Take a sequence out and free its memory, now or when it is out of use."""
        sequence.has_ended, sequence.ended_soundly = True, is_sound
        self.suspects.discard(sequence)
        if sequence.lease is None:
            self._waiting.remove(sequence)
            self._lacks_memory = False  # the next in the queue may need less
        else:
            self._running.remove(sequence)
            if not sequence.num_in_flight:
                self._release(sequence, is_sound=is_sound)
        self.shares.left(sequence.owner)
        siblings = self._by_request[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._by_request[sequence.request_id]

    def _release(self, sequence: Sequence, *, is_sound: bool) -> None:
        """Free an ended sequence's memory; what it computed is kept unless it is in doubt."""
        assert sequence.lease is not None
        end_tokens: list[int] = []
        if is_sound:
            self.prefixes.keep(sequence, checkpoint=True)
            end_tokens = self.prefixes.end_tokens(sequence)
        self.cache.release(sequence.lease, keep_prefix=is_sound, end_tokens=end_tokens)
        sequence.lease = None
        self._lacks_memory = False

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's memory away; it goes to the head of the queue."""
        assert sequence.lease is not None
        self.cache.release(sequence.lease)
        sequence.lease = None
        self._lacks_memory = False
        sequence.num_computed = sequence.last_checkpoint = 0
        sequence.prompt_logprobs = []
        sequence.num_preemptions += 1
        self._counters.preemptions += 1
        self._running.remove(sequence)
        self._waiting.appendleft(sequence)
