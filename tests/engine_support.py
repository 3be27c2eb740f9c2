"""Helpers for tests that drive an engine in this process: small memory, recorded logits."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lingflash.core.config import EngineConfig
from lingflash.core.types import EngineRequest, SamplingParams, TokenEvent
from lingflash.engine.loop import EngineLoop
from lingflash.engine.memory.plan import MemoryPlan
from lingflash.engine.run import step_sampling
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.engine.schedule.step import SchedulerOutput
from models_support import load

_model = None


def shared_model():
    """The golden checkpoint, loaded once per process."""
    global _model
    if _model is None:
        _model = load()
    return _model


def new_engine(
    *,
    num_blocks: int = 64,
    block_size: int = 16,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    max_num_waiting: int = 256,
    max_model_len: int = 256,
    batch_invariant: bool = False,
    prefix_caching: bool = False,
    num_host_blocks: int = 0,
    num_speculative_tokens: int = 0,
    stop_token_ids: tuple[int, ...] = (511,),
    model=None,
    runner_type: type[ModelRunner] = ModelRunner,
) -> EngineLoop:
    model = model or shared_model()
    config = EngineConfig(
        model="golden",
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_waiting=max_num_waiting,
        batch_invariant=batch_invariant,
        block_size=block_size,
        prefix_caching=prefix_caching,
        seed=1,
    )
    plan = MemoryPlan.for_sizes(
        model,
        num_blocks=num_blocks,
        block_size=block_size,
        num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        prefix_caching=prefix_caching,
        num_host_blocks=num_host_blocks,
        num_speculative_tokens=num_speculative_tokens,
    )
    runner = runner_type(
        model, plan, batch_invariant=batch_invariant, stop_token_ids=list(stop_token_ids)
    )
    loop = EngineLoop(config, runner)
    if loop.speculation is not None:
        loop.speculation.is_adaptive = False  # timing must not decide what a test runs
    return loop


@dataclass
class Recorder:
    """Logits of every sampled position, by (request id, choice, position)."""

    logits: dict[tuple[str, int, int], torch.Tensor] = field(default_factory=dict)
    clashes: list[tuple[str, int, int]] = field(default_factory=list)

    def install(self, monkeypatch) -> None:
        original = step_sampling.sample

        def recording(logits, sequences, forbidden=None):
            for row, sequence in zip(logits, sequences, strict=True):
                key = (sequence.request_id, sequence.choice, sequence.num_tokens)
                if key in self.logits and not torch.equal(self.logits[key], row):
                    self.clashes.append(key)
                self.logits[key] = row.clone()
            return original(logits, sequences, forbidden)

        monkeypatch.setattr(step_sampling, "sample", recording)


def request(name: str, token_ids: list[int], **sampling) -> EngineRequest:
    return EngineRequest(
        request_id=name, prompt_token_ids=token_ids, sampling=SamplingParams(**sampling)
    )


def finish(loop: EngineLoop) -> list[TokenEvent]:
    events = []
    while loop.has_work:
        events += loop.step()
    return events


def tokens_of(events: list[TokenEvent]) -> dict[tuple[str, int], list[int]]:
    tokens: dict[tuple[str, int], list[int]] = {}
    for event in events:
        tokens.setdefault((event.request_id, event.choice), []).extend(event.token_ids)
    return tokens


def poison_rows(loop: EngineLoop, request_id: str) -> None:
    """Make the model give NaN logits for one request from now on."""
    general, original = loop.runner.general, loop.runner.model.logits

    class Poisoned:
        def __getattr__(self, name):
            return getattr(original.__self__, name)

        def logits(self, hidden, row_multiple=1):
            out = original(hidden, row_multiple)
            for row, who in enumerate(self.wanting):
                if who == request_id:
                    out[row, 3] = float("nan")
            return out

    poisoned = Poisoned()
    build = general.build_batch

    def building(output: SchedulerOutput):
        batch, wanting = build(output)
        poisoned.wanting = [output.scheduled[i].sequence.request_id for i in wanting]
        return batch, wanting

    general.build_batch = building
    general.model = poisoned


# What ling-nano answers with a call.
WEATHER_MESSAGES = [
    {"role": "user", "content": "What will the weather be like in Lisbon tomorrow?"}
]
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather forecast for a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "name of the city"},
                "day": {"type": "string", "enum": ["today", "tomorrow"]},
            },
            "required": ["city"],
        },
    },
}
