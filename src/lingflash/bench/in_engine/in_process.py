"""The engine in this process, timed: one prompt to its first token, or a batch that decodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lingflash.core.config import EngineConfig
from lingflash.core.errors import EngineError
from lingflash.core.hub import resolve_model
from lingflash.core.types import EngineRequest, SamplingParams, TokenEvent
from lingflash.engine.loop import EngineLoop
from lingflash.engine.memory.tensors import allocate_cache
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.models.checkpoint import read_checkpoint
from lingflash.models.config import load_model_config
from lingflash.models.forward_batch import make_forward_batch
from lingflash.quant.scheme import read_formats


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts of random token ids, the same for everyone who is given the seed."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, (count, length))
    return ids.tolist()


def make_request(
    request_id: str, prompt: list[int], max_tokens: int, *, temperature: float = 0.0, seed: int = 0
) -> EngineRequest:
    """A request for exactly so many tokens: no token ends the answer."""
    sampling = SamplingParams(
        temperature=temperature, max_tokens=max_tokens, ignore_eos=True, seed=seed
    )
    return EngineRequest(request_id=request_id, prompt_token_ids=prompt, sampling=sampling)


def step(loop: EngineLoop) -> list[TokenEvent]:
    """Run a step.

    Raises:
        EngineError: it failed.
    """
    events = loop.step()
    for event in events:
        if event.finish_reason == "error":
            raise EngineError(event.error_message or "the step failed")
    return events


def ask(loop: EngineLoop, request: EngineRequest) -> tuple[float, int, list[int]]:
    """Answer one request on an idle engine: seconds to the first token, tokens found, the answer.

    Raises:
        EngineError: the step failed.
    """
    seconds, num_found, answer = 0.0, 0, list[int]()
    start = time.perf_counter()
    loop.add(request)
    while loop.has_work:
        for event in step(loop):
            if event.token_ids and not answer:
                seconds, num_found = time.perf_counter() - start, event.num_cached_tokens
            answer += event.token_ids
    return seconds, num_found, answer


class TimedEngine:
    """EngineLoop with the fast mode's defaults, greedy, never stopped by a token.

    Args:
        max_model_len: longest prompt and answer together.
    """

    def __init__(self, model: str, max_model_len: int, max_num_seqs: int) -> None:
        config = EngineConfig(
            model=model,
            device="cpu",
            dtype="float32",
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            prefix_caching=False,  # a repeated prompt must be computed each time
        )
        self.loop = EngineLoop(config, ModelRunner.from_config(config))
        self._ids = itertools.count()

    def _request(self, prompt: list[int], max_tokens: int) -> EngineRequest:
        return make_request(f"bench-{next(self._ids)}", prompt, max_tokens)

    def prefill(self, prompt: list[int]) -> tuple[float, list[int]]:
        """Seconds from a prompt to its first token, and that token."""
        seconds, _, tokens = ask(self.loop, self._request(prompt, 1))
        return seconds, tokens

    def decode(self, prompts: Sequence[list[int]], num_steps: int) -> tuple[float, list[list[int]]]:
        """Seconds that num_steps tokens of every prompt take after the first, and the tokens."""
        tokens: dict[str, list[int]] = {}
        for prompt in prompts:
            request = self._request(prompt, num_steps + 1)
            self.loop.add(request)
            tokens[request.request_id] = []
        self._run(tokens, until=1)
        start = time.perf_counter()
        self._run(tokens, until=num_steps + 1)
        return time.perf_counter() - start, list(tokens.values())

    def _run(self, tokens: dict[str, list[int]], until: int) -> None:
        while min(map(len, tokens.values())) < until:
            for event in step(self.loop):
                tokens[event.request_id] += event.token_ids
        if max(map(len, tokens.values())) != until:
            raise EngineError("the prompts did not start to decode together; shorten them.")

    def logits(self, prompt: list[int]) -> Tensor:
        """Logits of every position of one prompt, float32 [T, V], in a memory of its own."""
        runner = self.loop.runner
        size = runner.plan.block_size
        cache = allocate_cache(runner.model, runner.plan)
        batch = make_forward_batch(
            [prompt],
            [0],
            [list(range(-(-len(prompt) // size)))],
            [0],
            [],
            block_size=size,
            device=torch.device("cpu"),
        )
        return runner.model.logits(runner.model.forward(batch, cache))


def prefill_flops(model: str, num_tokens: int) -> tuple[float, float]:
    """Operations that a prompt takes, and the active parameters per token.

    The rule: 2 x active parameters per token, plus the causal half of MLA's scores and values,
    heads x (key width + value width) x T x (T + 1) per MLA layer. Active are the matrices of the
    layers, the routed experts counted by the part that a token uses; the output head counts for
    one row, the embedding, the MTP layer, norms and the linear attention's products not at all.
    """
    folder = resolve_model(model)
    config = load_model_config(folder)
    active = head = 0.0
    entries = read_checkpoint(folder)
    formats = read_formats(config.quantization_config, entries)
    stored = {name for f in formats.values() for name in (f.values, f.scale)}
    shapes = {name: entry.shape for name, entry in entries.items() if name not in stored}
    shapes |= {name: f.shape for name, f in formats.items()}
    for name, shape in shapes.items():
        if len(shape) != 2:
            continue
        size = float(shape[0] * shape[1])
        if name.startswith(f"model.layers.{config.num_hidden_layers}."):
            continue
        if name == "lm_head.weight" or (config.tie_word_embeddings and "embed" in name):
            head = size
        elif ".mlp.experts." in name:
            active += size * config.num_experts_per_tok / config.num_experts
        elif name.startswith("model.layers."):
            active += size
    widths = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    attention = len(config.mla_layers) * config.num_attention_heads * widths
    attention *= num_tokens * (num_tokens + 1)
    return 2 * active * num_tokens + 2 * head + attention, active
