"""A measurement on several GPUs: every rank makes the same calls, rank 0 keeps the numbers."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from lingflash.bench.on_gpu.gpu import time_s
from lingflash.core.errors import ConfigError, EngineError
from lingflash.kernels.graph_capture import capture_graph
from lingflash.models.config import ModelConfig
from lingflash.models.cuda_decoder import MAX_DECODE_SEQS
from lingflash.parallel.mesh import Mesh
from lingflash.parallel.shard import Shard
from lingflash.records.record import Record

_TIMEOUT_S = 120.0


def on_ranks(size: int, hidden_size: int, measure: Callable[[Mesh], Record]) -> Record:
    """Run a measurement on so many GPUs at once; the record of the first, finished.

    Args:
        size: ranks, a GPU for each.
        hidden_size: of the model, for the sums that GPUs make in each other's memory.
        measure: picklable; makes the same exchanges on every rank.

    Raises:
        ConfigError: there are not enough GPUs.
        EngineError: a rank ended before the others.
    """
    if torch.cuda.device_count() < size:
        raise ConfigError(
            f"--tensor-parallel-size is {size}, but torch sees {torch.cuda.device_count()} GPUs; "
            "allowed: at most as many.",
            param="tensor_parallel_size",
        )
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="lingflash-") as folder:
        given = f"file://{folder}/meet", hidden_size, measure
        others = [
            context.Process(target=_follow, args=(Shard(rank, size), *given), daemon=True)
            for rank in range(1, size)
        ]
        for process in others:
            process.start()
        mesh = Mesh(Shard(0, size))
        for process in others:
            threading.Thread(target=_watch, args=(process, mesh), daemon=True).start()
        try:
            record = _take_part(mesh, *given)
        finally:
            for process in others:
                process.join(timeout=30)
                process.kill()
        if any(process.exitcode for process in others):
            raise EngineError("A rank has failed; its error is above.")
    record.finish()
    return record


def _take_part(
    mesh: Mesh, meeting: str, hidden_size: int, measure: Callable[[Mesh], Record]
) -> Record:
    torch.cuda.set_device(mesh.shard.rank)
    device = torch.device("cuda", mesh.shard.rank)
    mesh.connect(meeting, device, _TIMEOUT_S, MAX_DECODE_SEQS * hidden_size)
    record = measure(mesh)
    torch.cuda.synchronize()
    mesh.close()
    return record


def _follow(shard: Shard, meeting: str, hidden_size: int, measure: Callable[[Mesh], Any]) -> None:
    """Main program of the other ranks, which print nothing but errors."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        _take_part(Mesh(shard), meeting, hidden_size, measure)


def _watch(process: Any, mesh: Mesh) -> None:
    """Thread: end all waiting for a rank that has failed."""
    process.join()
    if process.exitcode:
        mesh.abandon()


def time_exchanges(
    record: Record, mesh: Mesh, config: ModelConfig, num_seqs: int, repeats: int
) -> None:
    """Add what the exchanges of a decode step take by themselves, one after the other.

    Args:
        record: gets "sums bN", in the GPUs' memory or by NCCL as the step makes them, "NCCL sums
            bN", "gather bN" and "NCCL gather bN" for the logits, each milliseconds of a step.
        config: the model's, or a rank's share.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    choices = config.num_experts_per_tok + config.num_shared_experts
    device = torch.device("cuda")
    stream = torch.zeros(num_seqs, hidden, dtype=torch.bfloat16, device=device)
    attention = torch.zeros(num_seqs, 1, hidden, device=device)
    experts = torch.zeros(num_seqs, choices if num_seqs > 1 else 1, hidden, device=device)
    words = torch.zeros(num_seqs, config.vocab_size // mesh.shard.size, device=device)
    by_nccl = Mesh(mesh.shard)

    def sums(mesh: Mesh) -> None:
        mesh.sum(stream)
        for _ in range(layers):
            mesh.add_sum(attention, stream)
            mesh.add_sum(experts, stream)

    cases: dict[str, Callable[[], object]] = {
        f"sums b{num_seqs}": lambda: sums(mesh),
        f"NCCL sums b{num_seqs}": lambda: sums(by_nccl),
        f"gather b{num_seqs}": lambda: mesh.gather(words),
        f"NCCL gather b{num_seqs}": lambda: by_nccl.gather(words),
    }
    for name, run in cases.items():
        replay = _captured(run)
        samples = [time_s(replay, warmups=not i) * 1e3 for i in range(repeats)]
        print(name, f"{record.add(name, 'ms', samples).median:.4f} ms", flush=True)


def time_prompt_sums(
    record: Record, mesh: Mesh, config: ModelConfig, num_tokens: int, repeats: int
) -> None:
    """Add what the sums of a prompt's piece take by themselves: "sums of N tokens"."""
    x = torch.zeros(num_tokens, config.hidden_size, dtype=torch.bfloat16, device="cuda")

    def run() -> None:
        for _ in range(2 * config.num_hidden_layers + 1):
            mesh.sum(x)

    samples = [time_s(run, warmups=not i) * 1e3 for i in range(repeats)]
    name = f"sums of {num_tokens} tokens"
    print(name, f"{record.add(name, 'ms', samples).median:.2f} ms", flush=True)


def _captured(run: Callable[[], object]) -> Callable[[], None]:
    """The same launches as a graph, tried once."""
    return capture_graph(run)[0].replay
