"""Speculative decoding: the MTP layer guesses tokens, the model verifies them in one forward.

A step of a sequence runs its last token and the drafts after it. Each row of logits is sampled as
if the drafts before it were tokens, with that position's noise: while a row gives the draft that
follows, the next row is what a step of its own would have said. So an answer does not depend on
speculation, whatever the drafts.

The MTP layer has one row per token in its own latent cache. Row p is made of token p and the
hidden state of token p - 1, and lies at token p's place, so that a block's rows depend on the
block's own tokens and those before it, as everything else that is shared by the prefix cache does.

    token            t0   t1   t2   t3   t4          after a step that ran t0..t3 and sampled t4
    hidden state     h0   h1   h2   h3
    MTP row           -   t1   t2   t3   t4          row 4 is asked for the guess at t5
                          h0   h1   h2   h3

Further guesses feed the layer its own output: their rows are written over when the tokens are
certain. A sequence whose rows have a gap, because nobody speculated for a while, goes on with the
rows after the gap alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lingflash.cache.lease import Lease
from lingflash.core.anchors import ANCHOR, last_anchor
from lingflash.engine.run.sampler import choose_tokens
from lingflash.engine.run.step_masks import StepMasks, fill_mask_soon
from lingflash.engine.schedule.sequence import DraftedSequence, Sequence
from lingflash.engine.schedule.step import ScheduledSequence, SchedulerOutput, StepResult
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.forward_batch import CacheTensors, make_mtp_batch
from lingflash.structured.masks import TokenMatcher, mask_words, unpack_mask


def accept_drafts(
    sampled: Seq[StepResult],
    group: tuple[int, Sequence, Seq[int]],
    masks: StepMasks | None,
) -> StepResult:
    """Join a sequence's rows of results up to the first draft that was not sampled.

    Logits that are not finite in any row make the whole an error: 0 times NaN is NaN, so a draft's
    may have reached the rows before it.

    Args:
        sampled: results of all rows of logits.
        group: the sequence's first row; the sequence, whose matcher takes the tokens; its drafts,
            each the input of one more row.
        masks: of this step, if any sequence follows a grammar.
    """
    first_row, sequence, drafts = group
    for result in sampled[first_row : first_row + len(drafts) + 1]:
        if result.error is not None:
            return result
    accepted = []
    for i in range(len(drafts) + 1):
        result = sampled[first_row + i]
        if masks is not None:
            result = masks.advance(first_row + i, sequence, result)
        accepted.append(result)
        if (
            i == len(drafts)
            or result.error is not None
            or result.is_complete
            or result.token_id != drafts[i]
            or result.token_id in sequence.stop_token_ids
        ):
            break
    if len(accepted) == 1:
        return accepted[0]
    return replace(accepted[0], following=accepted[1:])


class Speculator:
    """Keeps the MTP layer's rows and makes drafts.

    Args:
        model: with an MTP layer.
    """

    def __init__(self, model: BailingHybrid, cache: CacheTensors, num_blocks: int) -> None:
        self._model, self._cache = model, cache
        self._block_size = cache.latents.shape[2]
        self._has_rows = bytearray(num_blocks)  # blocks whose rows have all been written

    def forget_blocks(self, blocks: Seq[int]) -> None:
        """These have a new owner, and no rows."""
        for block in blocks:
            self._has_rows[block] = False

    @torch.inference_mode()
    def advance(self, output: SchedulerOutput, hidden: Tensor, results: Seq[StepResult]) -> None:
        """Write the rows of the tokens that have become certain, then make drafts.

        Args:
            hidden: [T_pad, D], the model's hidden states of all its tokens.
            results: of its sequences, not yet committed.
        """
        writes = _Writes()
        first_hidden = 0
        for item, result in zip(output.scheduled, results, strict=True):
            if result.error is None:
                self._plan_rows(writes, item, result, first_hidden, output.num_draft_tokens)
            first_hidden += item.num_tokens
        if not writes.token_ids:
            return
        source = self._hidden_before(writes, hidden)
        self._keep_anchors(writes, hidden)
        asked = [i for i, draft in enumerate(writes.drafts) if draft is not None]
        out = self._forward(writes, asked, source)
        for sequence, lo, hi in zip(writes.sequences, writes.starts, writes.ends, strict=True):
            sequence.mtp_end = hi
            self._mark(sequence, lo, hi)
        self._make_drafts(writes, asked, out)

    def _plan_rows(
        self,
        writes: _Writes,
        item: ScheduledSequence,
        result: StepResult,
        first_hidden: int,
        num_drafts: int,
    ) -> None:
        """Add one sequence's rows, if it has any, and what it may draft."""
        sequence = item.sequence
        lease = sequence.lease
        assert lease is not None
        new = [r.token_id for r in (result, *result.following) if r.token_id is not None]
        end = item.start + item.num_certain + len(result.following)
        writes.anchors(lease, item.start, end, first_hidden)
        known = sequence.num_tokens + len(new)
        room = len(lease.blocks) * self._block_size
        hi = min(end + (known > end), room)
        lo = self._next_row(sequence, lease, item.start)
        if lo >= hi:
            return
        draft = None
        last = result.following[-1] if result.following else result
        may_go_on = not last.is_complete and bool(new) and new[-1] not in sequence.stop_token_ids
        if hi == known and may_go_on:
            # A draft can bring one token more, and all but the last draft need a row.
            count = num_drafts if sequence.may_draft else 0
            count = min(count, sequence.max_total_tokens - known - 1, room - known + 1)
            if count > 0:
                draft = _Draft(sequence, new, count)
        tokens = (sequence.tokens(lo, hi - lo) + new)[: hi - lo]
        if lo > sequence.num_tokens:
            tokens = new[lo - sequence.num_tokens :][: hi - lo]
        writes.add(sequence, lease, tokens, lo, hi, draft)
        # Row p reads the hidden state of token p - 1; that before this step's first is kept apart.
        writes.sources += [first_hidden + p - 1 - item.start for p in range(lo, hi)]
        if lo == item.start:
            writes.kept.append((len(writes.sources) - (hi - lo), lease.state_slot, lo))

    def _next_row(self, sequence: Sequence, lease: Lease, start: int) -> int:
        """Position of the first row to write now; sets where the sequence's rows begin."""
        if sequence.mtp_end < 0:
            first = start
            if start == lease.num_hit_tokens:
                while first and self._has_rows[lease.blocks[first // self._block_size - 1]]:
                    first -= self._block_size
            # There is no row 0, and without the rows before it nobody kept what row `start` reads.
            sequence.mtp_first = max(first, 1) if first < start else start + 1
            sequence.mtp_end = max(start, sequence.mtp_first)
        elif sequence.mtp_end < start or (sequence.mtp_end == start and start % ANCHOR):
            sequence.mtp_first = sequence.mtp_end = start + 1  # after a gap
        return sequence.mtp_end

    def _hidden_before(self, writes: _Writes, hidden: Tensor) -> Tensor:
        """The hidden state that each row reads, [rows, D]."""
        rows = [max(row, 0) for row in writes.sources]
        source = hidden.index_select(0, torch.tensor(rows, device=hidden.device))
        if writes.kept:
            assert self._cache.anchor_hidden is not None
            where, slots, positions = zip(*writes.kept, strict=True)
            places = [position // ANCHOR % 2 for position in positions]
            kept = self._cache.anchor_hidden[places, list(slots)]
            source[list(where)] = kept.to(source.dtype)
        return source

    def _keep_anchors(self, writes: _Writes, hidden: Tensor) -> None:
        """Keep the hidden states before anchors, for checkpoints."""
        if writes.anchor_rows:
            assert self._cache.anchor_hidden is not None
            slots, places, rows = zip(*writes.anchor_rows, strict=True)
            self._cache.anchor_hidden[list(places), list(slots)] = hidden[list(rows)].float()

    def _forward(self, writes: _Writes, asked: Seq[int], source: Tensor) -> Tensor:
        """Write all rows; the layer's output in the last rows of those asked, [len(asked), D]."""
        batch = make_mtp_batch(
            writes.token_ids,
            writes.starts,
            [sequence.mtp_first for sequence in writes.sequences],
            writes.block_tables,
            asked,
            block_size=self._block_size,
            device=self._model.device,
        )
        return self._model.mtp_forward(source, batch.token_ids, batch, self._cache)

    def _mark(self, sequence: Sequence, lo: int, hi: int) -> None:
        """Note which blocks are complete now that rows lo .. hi - 1 are written."""
        size, lease = self._block_size, sequence.lease
        assert lease is not None
        for index in range(lo // size, hi // size):
            if sequence.mtp_first <= max(index * size, 1):
                self._has_rows[lease.blocks[index]] = True

    def _make_drafts(self, writes: _Writes, asked: Seq[int], out: Tensor) -> None:
        """Guess token by token, all sequences together, each as often as it may."""
        drafts: list[_Draft] = []
        for i in asked:
            draft = writes.drafts[i]
            assert draft is not None
            drafts.append(draft)
        while drafts:
            chosen = self._choose(out, drafts)
            going = [
                i
                for i, (draft, token) in enumerate(zip(drafts, chosen, strict=True))
                if token is not None and draft.take(token)
            ]
            if not going:
                break
            if len(going) < len(drafts):
                out = out[going]
            drafts = [drafts[i] for i in going]
            places = [draft.sequence.num_tokens + len(draft.tokens) - 1 for draft in drafts]
            chain = _Writes()
            for draft, place in zip(drafts, places, strict=True):
                lease = draft.sequence.lease
                assert lease is not None
                chain.add(draft.sequence, lease, draft.tokens[-1:], place, place + 1, draft)
            out = self._forward(chain, range(len(drafts)), out)
        for i in asked:
            draft = writes.drafts[i]
            assert draft is not None
            draft.sequence.draft_tokens = draft.tokens[draft.num_new :]

    def _choose(self, out: Tensor, drafts: Seq[_Draft]) -> list[int | None]:
        """One guess per draft by its sequence's own rules; None where its grammar is complete."""
        rows = [DraftedSequence(draft.sequence, draft.tokens) for draft in drafts]
        forbidden: dict[int, Tensor] = {}
        forced: dict[int, int | None] = {}
        vocab_size = self._model.config.vocab_size
        for i, draft in enumerate(drafts):
            if draft.matcher is None:
                continue
            mask = np.zeros(mask_words(vocab_size), np.uint32)
            is_any = fill_mask_soon(mask, draft.sequence, draft.matcher, len(draft.tokens))
            if is_any is None:
                draft.sequence.may_draft = False
                forced[i] = None
                continue
            allowed = unpack_mask(mask[None], vocab_size)[0]
            if not is_any or draft.matcher.error is not None:
                forced[i] = None
            elif allowed.sum() == 1:
                forced[i] = int(allowed.argmax())
            else:
                forbidden[i] = torch.from_numpy(~allowed).to(out.device)
        if len(forced) == len(drafts):  # the grammar alone decides
            return [forced[i] for i in range(len(drafts))]
        guesses = choose_tokens(self._model.logits(out), rows, forbidden)
        return [forced.get(i, guess) for i, guess in enumerate(guesses)]


class _Draft:
    """Guesses of one sequence under way.

    Args:
        new: tokens that this step gave it, not yet committed.
        count: guesses to make, at most.
    """

    __slots__ = ("_end", "matcher", "num_new", "sequence", "tokens")

    def __init__(self, sequence: Sequence, new: list[int], count: int) -> None:
        self.sequence = sequence
        self.tokens = list(new)
        self.num_new = len(new)
        self._end = len(new) + count
        # A copy: what guesses do to it, an error included, must not be seen.
        matcher = sequence.matcher
        self.matcher: TokenMatcher | None = None if matcher is None else matcher.copy()

    def take(self, token: int) -> bool:
        """Add a guess; whether there can be another."""
        if token in self.sequence.stop_token_ids:
            return False  # verifying the end saves nothing
        if self.matcher is not None and (
            not self.matcher.consume(token) or self.matcher.error is not None
        ):
            return False
        self.tokens.append(token)
        return len(self.tokens) < self._end


class _Writes:
    """Rows to write in one call of the layer, sequence by sequence.

    Fields run in parallel over the sequences: their rows' tokens, first position and the one after
    the last, blocks, and what is to be drafted from the last row.
    """

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.token_ids: list[list[int]] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.block_tables: list[list[int]] = []
        self.drafts: list[_Draft | None] = []
        self.sources: list[int] = []  # row of the step's hidden states, for each row
        self.kept: list[tuple[int, int, int]] = []  # row, state slot, position: from anchor_hidden
        self.anchor_rows: list[tuple[int, int, int]] = []  # state slot, place, hidden row

    def add(
        self,
        sequence: Sequence,
        lease: Lease,
        token_ids: list[int],
        lo: int,
        hi: int,
        draft: _Draft | None,
    ) -> None:
        """Append a sequence's rows lo .. hi - 1."""
        self.sequences.append(sequence)
        self.token_ids.append(token_ids)
        self.starts.append(lo)
        self.ends.append(hi)
        self.block_tables.append(lease.blocks)
        self.drafts.append(draft)

    def anchors(self, lease: Lease, start: int, end: int, first_hidden: int) -> None:
        """Note the last two tokens before anchors among positions start .. end - 1."""
        last = last_anchor(end)
        for anchor in (last - ANCHOR, last):
            if start < anchor:
                place = anchor // ANCHOR % 2
                row = first_hidden + anchor - 1 - start
                self.anchor_rows.append((lease.state_slot, place, row))
