"""Batches of packed dialogues from worker processes, the same for the same seed and index."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lingflash.train.data.agent import agent_dialogue
from lingflash.train.data.chinese import chinese_dialogue
from lingflash.train.data.dialogue import copy_dialogue, plain_dialogue, tool_dialogue
from lingflash.train.data.long_prompt import with_long_prompt
from lingflash.train.data.python_code import code_dialogue
from lingflash.train.data.render import Dialogue, render_segments
from lingflash.train.data.thinking import with_thinking
from lingflash.train.data.words import Words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORE = -100
PAD_ID = 1


@dataclass(slots=True)
class Batch:
    """Rows of packed documents.

    Args:
        tokens: int32 [B, T + 2], the last two columns only serve as targets and embeddings ahead.
        document: int32 [B, T], number of the document a token belongs to, -1 for padding.
        index: int64 [K], flat positions (row * T + column) whose next token is trained.
        labels: int64 [K], that token, -100 for unused entries.
        labels_ahead: int64 [K], the token after it, -100 if it is not trained.
    """

    tokens: NDArray[np.int32]
    document: NDArray[np.int32]
    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    labels_ahead: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Shape and mixture of the batches.

    Args:
        rows: B.
        row_tokens: T.
        loss_fraction: K is this part of B * T.
        copy_steps: batches in which copying exercises prevail.
        short_steps: batches in which dialogues are short, counted from the start.
        long_part: part of the later dialogues that get a system prompt of an agent's length.
    """

    rows: int = 4
    row_tokens: int = 16_384
    loss_fraction: float = 0.29
    copy_steps: int = 250
    short_steps: int = 500
    long_part: float = 0.02
    seed: int = 1

    @property
    def loss_tokens(self) -> int:
        """K, a multiple of 8."""
        return int(self.rows * self.row_tokens * self.loss_fraction) // 8 * 8


def draw_dialogue(rng: random.Random, words: Words, config: StreamConfig, index: int) -> Dialogue:
    """Draw a dialogue of the mixture that batch `index` has."""
    x = rng.random()
    if index < config.copy_steps:
        return copy_dialogue(rng, words) if x < 0.6 else tool_dialogue(rng, words, 2)
    if index < config.short_steps:
        return copy_dialogue(rng, words) if x < 0.2 else tool_dialogue(rng, words, 3)
    if x < 0.03:
        return copy_dialogue(rng, words)
    if x < 0.06:
        return plain_dialogue(rng, words)
    if x < 0.08 and config.row_tokens >= 2048:
        return tool_dialogue(rng, words, rng.randint(8, 24), rng.choice((1, 1, 2, 4)))
    dialogue = _mixed(rng, words)
    if x < 0.14 and any(m["role"] == "assistant" for m in dialogue.messages):
        dialogue = with_thinking(dialogue)
    if x > 1 - config.long_part:
        # About three characters make a token; what does not fit into a row is dropped.
        return with_long_prompt(rng, words, dialogue, int(2.6 * config.row_tokens))
    return dialogue


def _mixed(rng: random.Random, words: Words) -> Dialogue:
    x = rng.random()
    if x < 0.18:
        return chinese_dialogue(rng, words)
    if x < 0.33:
        return code_dialogue(rng, words)
    if x < 0.51:
        return agent_dialogue(rng, words, rng.choice((1, 1, 1, 1, 2, 4)))
    return tool_dialogue(rng, words, 4)


def encode(tokenizer: Tokenizer, dialogues: list[Dialogue]) -> list[tuple[list[int], list[bool]]]:
    """Tokenize dialogues; the flag of a token tells whether it is trained."""
    segments = [render_segments(d.messages, d.tools, d.thinking) for d in dialogues]
    flat = [text for document in segments for text, _ in document]
    ids = [e.ids for e in tokenizer.encode_batch_fast(flat, add_special_tokens=False)]
    encoded: list[tuple[list[int], list[bool]]] = []
    at = 0
    for document in segments:
        tokens: list[int] = []
        trained: list[bool] = []
        for _, flag in document:
            tokens += ids[at]
            trained += [flag] * len(ids[at])
            at += 1
        encoded.append((tokens, trained))
    return encoded


def pack(documents: list[tuple[list[int], list[bool]]], config: StreamConfig) -> Batch:
    """Put documents into rows, longest first, each into the fullest row that has room.

    Documents for which there is no room are left out.
    """
    b, t = config.rows, config.row_tokens
    tokens = np.full((b, t + 2), PAD_ID, dtype=np.int32)
    document = np.full((b, t), -1, dtype=np.int32)
    trained = np.zeros((b, t + 2), dtype=bool)
    used = [0] * b
    counts = [0] * b
    for ids, flags in sorted(documents, key=lambda d: -len(d[0])):
        rows = [r for r in range(b) if used[r] + len(ids) <= t]
        if not rows:
            continue
        row = max(rows, key=lambda r: used[r])
        start, end = used[row], used[row] + len(ids)
        tokens[row, start:end] = ids
        trained[row, start:end] = flags
        document[row, start:end] = counts[row]
        used[row] = end
        counts[row] += 1
    # A document starts with an untrained token, so that no target crosses documents by one.
    target = trained[:, 1 : t + 1]
    rows_at, columns = np.nonzero(target)
    k = config.loss_tokens
    if len(rows_at) > k:
        keep = np.sort(np.random.default_rng(config.seed).permutation(len(rows_at))[:k])
        rows_at, columns = rows_at[keep], columns[keep]
    index = np.zeros(k, dtype=np.int64)
    labels = np.full(k, IGNORE, dtype=np.int64)
    ahead = np.full(k, IGNORE, dtype=np.int64)
    n = len(rows_at)
    index[:n] = rows_at * t + columns
    labels[:n] = tokens[rows_at, columns + 1]
    ahead[:n] = np.where(trained[rows_at, columns + 2], tokens[rows_at, columns + 2], IGNORE)
    return Batch(tokens, document, index, labels, ahead)


def make_batch(tokenizer: Tokenizer, words: Words, config: StreamConfig, index: int) -> Batch:
    """Make batch number `index`; the same for the same config."""
    rng = random.Random(f"{config.seed}/{index}")
    documents: list[tuple[list[int], list[bool]]] = []
    total = 0
    goal = int(config.rows * config.row_tokens * 1.04)
    while total < goal:
        drawn = [draw_dialogue(rng, words, config, index) for _ in range(16)]
        for ids, flags in encode(tokenizer, drawn):
            if len(ids) <= config.row_tokens:
                documents.append((ids, flags))
                total += len(ids)
    return pack(documents, config)


def _work(
    path: str, config: StreamConfig, first: int, step: int, queue: Queue[Any], index_limit: int
) -> None:
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    words = Words(held_out=False)
    index = first
    while index < index_limit:
        queue.put(make_batch(tokenizer, words, config, index))
        index += step


class BatchStream:
    """Batches start, start + 1, ... from worker processes, in order.

    Args:
        workers: number of processes; 0 makes the batches in this one.
        ahead: batches that each worker keeps ready.
    """

    def __init__(
        self,
        tokenizer_path: Path,
        config: StreamConfig,
        workers: int,
        start: int = 0,
        ahead: int = 6,
    ) -> None:
        self._path = tokenizer_path
        self._config = config
        self._next = start
        self._start = start
        self._processes: list[Any] = []
        self._queues: list[Queue[Any]] = []
        context = get_context("spawn")
        for w in range(workers):
            queue: Queue[Any] = context.Queue(maxsize=ahead)
            process = context.Process(
                target=_work,
                args=(str(tokenizer_path), config, start + w, workers, queue, 1 << 60),
                daemon=True,
            )
            process.start()
            self._processes.append(process)
            self._queues.append(queue)

    @property
    def ready(self) -> int:
        """Batches waiting in the queues."""
        return sum(q.qsize() for q in self._queues)

    def __iter__(self) -> Iterator[Batch]:
        if not self._queues:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(self._path))
            words = Words(held_out=False)
            while True:
                yield make_batch(tokenizer, words, self._config, self._next)
                self._next += 1
        while True:
            queue = self._queues[(self._next - self._start) % len(self._queues)]
            yield queue.get(timeout=300)
            self._next += 1

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(timeout=5)
        self._processes, self._queues = [], []
