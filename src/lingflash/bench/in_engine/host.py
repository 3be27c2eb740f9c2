"""`ling bench host`: what one step costs outside the model, with a model that does nothing.

    schedule -> batch tensors -> [forward, logits: nothing] -> sample -> commit -> message

On a GPU this is the time that the device would wait; the sampler then runs on the device, too. How
much of it is left where steps overlap is measured with a device that only takes time.
"""

from __future__ import annotations

import itertools
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lingflash.bench.in_engine.ceilings import sample_ceilings
from lingflash.bench.in_engine.in_process import random_prompts
from lingflash.core.config import EngineConfig
from lingflash.core.hub import resolve_model
from lingflash.core.types import EngineRequest, SamplingParams, TokenEvent
from lingflash.engine.loop import EngineLoop
from lingflash.engine.memory.plan import MemoryPlan
from lingflash.engine.run.cuda_graphs import DecodeGraphs
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.engine.run.sampler import sample
from lingflash.engine.schedule.step import PendingStep, SchedulerOutput, StepResult
from lingflash.link import messages
from lingflash.link.frames import HEADER_BYTES
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.config import load_model_config
from lingflash.models.cuda_decoder import CudaDecoder
from lingflash.models.forward_batch import CacheTensors, ForwardBatch, Trace
from lingflash.records.record import Record, require

_TARGET_MS = 1.0
_PROMPT_LEN = 128
_BLOCK_SIZE = 64
_CPU = torch.device("cpu")
DEVICE_MS = 2.5
"""What a step takes on the device that TimedRunner stands for: about a decode step of batch 1."""

SAMPLING: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0, ignore_eos=True, seed=0),
    "sampled": SamplingParams(temperature=0.8, ignore_eos=True, seed=0),
    "sampled top_p 0.9": SamplingParams(temperature=0.8, top_p=0.9, ignore_eos=True, seed=0),
}


class IdleModel(BailingHybrid):
    """A model of the right shape without weights: hidden states are zeros, logits one fixed draw.

    Args:
        folder: whose config.json gives the shape.
    """

    def __init__(self, folder: Path, max_rows: int) -> None:
        # Not super().__init__: it would allocate weights.
        self.config = load_model_config(folder)
        self.dtype, self.device = torch.float32, _CPU
        self.mtp = None
        generator = torch.Generator().manual_seed(0)
        self._logits = torch.randn(max_rows, self.config.vocab_size, generator=generator)
        self._hidden = torch.zeros(1, self.config.hidden_size)

    def forward(
        self, batch: ForwardBatch, cache: CacheTensors, trace: Trace | None = None
    ) -> Tensor:
        """Zeros [T_pad, D], or [R, D] of batch.final's rows, a view."""
        rows = batch.token_ids if batch.final is None else batch.final.rows
        return self._hidden.expand(rows.shape[0], -1)

    def logits(self, hidden_states: Tensor, row_multiple: int = 1) -> Tensor:
        """The same random rows each time, float32 [R, V]."""
        return self._logits[: hidden_states.shape[0]]


class TimedRunner(ModelRunner):
    """Decode steps as on a GPU, whose inputs are made here and which take a fixed time there.

    The kernels' launches, some 0.1 ms for a graph and the draw, are left out.
    """

    _free_at = 0.0

    def __init__(self, model: BailingHybrid, plan: MemoryPlan, **options: Any) -> None:
        super().__init__(model, plan, **options)
        self.can_overlap = True
        self._graphs = DecodeGraphs(
            CudaDecoder.__new__(CudaDecoder),  # launches nothing
            self.cache,
            max_num_seqs=plan.num_state_slots,
            max_model_len=plan.max_model_len,
            block_size=plan.block_size,
            use_graphs=False,
        )

    def launch(self, output: SchedulerOutput) -> PendingStep:
        if output.num_tokens > len(output.scheduled):
            return super().launch(output)
        self.memory.run(output.memory_ops)
        self._graphs.stage(output.scheduled, draws=True)
        self._free_at = max(time.perf_counter(), self._free_at) + DEVICE_MS / 1e3
        return PendingStep(partial(self._wait, output, self._free_at), is_under_way=True)

    def _wait(self, output: SchedulerOutput, done_at: float) -> list[StepResult]:
        while time.perf_counter() < done_at:  # as the wait for an event does
            pass
        return [StepResult(token_id=1) for _ in output.scheduled]


def make_loop(
    folder: Path,
    num_seqs: int,
    max_model_len: int,
    runner_type: type[ModelRunner] = ModelRunner,
) -> EngineLoop:
    """An engine with an idle model and memory for num_seqs sequences of max_model_len tokens."""
    model = IdleModel(folder, num_seqs)
    plan = MemoryPlan.for_sizes(
        model,
        num_blocks=num_seqs * -(-max_model_len // _BLOCK_SIZE),
        block_size=_BLOCK_SIZE,
        num_seqs=num_seqs,
        max_model_len=max_model_len,
    )
    config = EngineConfig(
        device="cpu",
        dtype="float32",
        max_num_seqs=num_seqs,
        max_num_batched_tokens=max(2048, num_seqs),
        max_model_len=max_model_len,
        block_size=_BLOCK_SIZE,
    )
    runner = runner_type(model, plan, batch_invariant=False, stop_token_ids=[])
    return EngineLoop(config, runner)


def fill(loop: EngineLoop, num_seqs: int, sampling: SamplingParams) -> None:
    """Add sequences and run their prompts, so that every further step decodes all of them."""
    prompts = random_prompts(num_seqs, _PROMPT_LEN, loop.info.vocab_size, seed=1)
    for i, prompt in enumerate(prompts):
        request_id = f"host-{i:020d}"  # as long as the server's ids
        loop.add(EngineRequest(request_id=request_id, prompt_token_ids=prompt, sampling=sampling))
    while len(loop.step()) < num_seqs:
        pass


def time_parts(loop: EngineLoop) -> tuple[dict[str, float], list[TokenEvent]]:
    """One step taken apart: milliseconds of each part, without sampling; and its events."""
    runner, scheduler = loop.runner, loop.scheduler
    marks = [time.perf_counter()]
    output = scheduler.schedule()
    marks.append(time.perf_counter())
    runner.memory.run(output.memory_ops)
    _, wanting = runner.general.build_batch(output)
    marks.append(time.perf_counter())
    results = [StepResult(token_id=1) for _ in wanting]
    marks.append(time.perf_counter())
    events = scheduler.commit(output, results)
    marks.append(time.perf_counter())
    message = messages.frame(messages.Events(events))
    marks.append(time.perf_counter())
    # What the server does with it, in its own process.
    messages.from_engine_decoder.decode(message[HEADER_BYTES:])
    marks.append(time.perf_counter())
    parts = [1e3 * (b - a) for a, b in itertools.pairwise(marks)]
    names = ("schedule", "build batch", "results", "commit", "encode", "decode in the server")
    found: dict[str, float] = dict(zip(names, parts, strict=True))
    found["total"] = sum(parts[:5])
    return found, events


def time_step(loop: EngineLoop) -> float:
    """Milliseconds of one whole step with sampling, as the engine process runs it."""
    start = time.perf_counter()
    events = loop.step()
    messages.frame(messages.Events(events))
    return 1e3 * (time.perf_counter() - start)


def time_sampler(loop: EngineLoop) -> float:
    """Milliseconds of the sampler alone, on one step's logits."""
    output = loop.scheduler.schedule()
    sequences = [item.sequence for item in output.scheduled]
    logits = loop.runner.model.logits(torch.zeros(len(sequences), 1))
    start = time.perf_counter()
    results = sample(logits, sequences)
    seconds = time.perf_counter() - start
    loop.scheduler.commit(output, results)
    return 1e3 * seconds


def run_host(
    *,
    model: str,
    num_seqs: int,
    num_steps: int,
    threads: int | None,
    out: Path | None,
    allow_dirty: bool,
) -> Record:
    """Time steps in which every sequence decodes one token.

    Raises:
        ConfigError: a value is out of range.
    """
    require(1 <= num_seqs <= 4096, "--num-seqs", num_seqs, "1 to 4096")
    require(num_steps >= 10, "--steps", num_steps, "10 or more")
    require(threads is None or threads >= 1, "--threads", threads, "1 or more")
    torch.set_num_threads(threads or 1)
    record = Record("host", out, allow_dirty)
    folder = resolve_model(model)
    sample_ceilings(record)
    max_model_len = _PROMPT_LEN + 3 * num_steps + 16
    record.settings = {
        "num_seqs": num_seqs,
        "num_steps": num_steps,
        "prompt_len": _PROMPT_LEN,
        "vocab_size": load_model_config(folder).vocab_size,
        "block_size": _BLOCK_SIZE,
    }
    loop = make_loop(folder, num_seqs, max_model_len)
    fill(loop, num_seqs, SAMPLING["greedy"])
    parts: dict[str, list[float]] = {}
    for _ in range(num_steps):
        for name, value in time_parts(loop)[0].items():
            parts.setdefault(name, []).append(value)
    total = record.add("step without model and sampler", "ms", parts.pop("total"))
    for name, values in parts.items():
        if name != "results":
            record.add(f"  of which {name}" if "server" not in name else name, "ms", values)
    whole: dict[str, float] = {}
    for name, sampling in SAMPLING.items():
        loop = make_loop(folder, num_seqs, max_model_len)
        fill(loop, num_seqs, sampling)
        steps = record.add(f"whole step, {name}", "ms", [time_step(loop) for _ in range(num_steps)])
        record.add(
            f"sampler alone, {name}",
            "ms",
            [time_sampler(loop) for _ in range(num_steps)],
        )
        whole[name] = steps.median
    for name, overlaps in (("one by one", False), ("overlapped", True)):
        loop = make_loop(folder, num_seqs, max_model_len, TimedRunner)
        loop.overlaps = overlaps
        fill(loop, num_seqs, SAMPLING["sampled"])
        loop.step()  # the first that finds one in flight is the next
        times = [time_step(loop) for _ in range(num_steps)]
        record.add(f"step with a device of {DEVICE_MS} ms, {name}", "ms", times)
    record.derived["99th percentile of the step without model and sampler, ms"] = (
        statistics.quantiles(total.samples, n=100)[98]
    )
    for name, value in (
        ("step without model and sampler, ms", total.median),
        ("whole step with the greedy sampler, ms", whole["greedy"]),
    ):
        record.promise(f"{name}, {num_seqs} sequences", value, _TARGET_MS, "at most")
    record.notes.append(
        "the model is replaced by one that returns fixed random logits; the sampler runs on the CPU"
    )
    record.finish()
    return record
