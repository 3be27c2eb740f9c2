"""A process that times one model in vLLM for `ling bench curves --measure`, by vLLM's interpreter.

    PYTHON peer_vllm.py FOLDER '{"lengths": [1024], "batch": 32, "repeats": 3, "longest": 1184}'

The folder holds a config.json; weights are random. It prints a line of JSON for each length and
phase, and imports nothing of lingflash.
"""

# vLLM is not among our dependencies.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM_STEPS, TIMED_STEPS = 16, 128
# As ours: see dummy_model.py.
WEIGHT_STD = 0.02
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_DEEP_GEMM": "0", "HF_HUB_OFFLINE": "1",
}  # fmt: skip


def fill(model: Any) -> None:
    """Routers that choose by the token: vLLM's own values are so small that their bias decides."""
    for name, weight in model.named_parameters():
        if name.endswith("gate.weight") and weight.dim() == 2:
            weight.data.normal_(0.0, WEIGHT_STD)
        elif name.endswith(("e_score_correction_bias", "expert_bias")):
            weight.data.normal_(0.0, WEIGHT_STD / 10)


class Peer:
    """One model in vLLM's engine, in this process."""

    def __init__(self, folder: str, batch: int, longest: int) -> None:
        from vllm import LLM, SamplingParams

        self.llm = LLM(
            model=folder, load_format="dummy", skip_tokenizer_init=True, trust_remote_code=True,
            dtype="bfloat16", max_model_len=longest, max_num_seqs=batch,
            max_num_batched_tokens=8192, enable_prefix_caching=False,
            mamba_cache_dtype="float32", gpu_memory_utilization=0.93,
            compilation_config={
                "cudagraph_capture_sizes": sorted({1, batch}),
                "cudagraph_mode": "FULL_AND_PIECEWISE",
            },
        )  # fmt: skip
        self.llm.apply_model(fill)
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        self.words = config["vocab_size"]
        self.params = SamplingParams
        self.random = random.Random(0)
        self.count = 0

    def add(self, length: int, most: int) -> None:
        """A prompt of its own, of random words."""
        words = [self.random.randrange(self.words) for _ in range(length)]
        params = self.params(temperature=1.0, ignore_eos=True, detokenize=False, max_tokens=most)
        self.count += 1
        prompt = {"prompt_token_ids": words}
        self.llm.llm_engine.add_request(str(self.count), prompt, params)

    def decode(self, length: int, batch: int) -> float:
        """Tokens per second of steps in which all sequences decode."""
        for _ in range(batch):
            # Those whose prompt is read first have answered for longest; none may end before.
            self.add(length, 2 * (WARM_STEPS + TIMED_STEPS) + self._prompt_steps(length, batch))
        started: set[str] = set()
        while len(started) < batch:
            started |= {out.request_id for out in self.llm.llm_engine.step()}
        for _ in range(WARM_STEPS):
            self.llm.llm_engine.step()
        begin = time.perf_counter()
        tokens = sum(len(self.llm.llm_engine.step()) for _ in range(TIMED_STEPS))
        seconds = time.perf_counter() - begin
        if tokens != batch * TIMED_STEPS:
            raise RuntimeError(f"{tokens} tokens in {TIMED_STEPS} steps of {batch} sequences")
        self.llm.llm_engine.abort_request([str(self.count - i) for i in range(batch)])
        self._drain()
        return tokens / seconds

    def prefill(self, length: int) -> float:
        """Tokens per second of a prompt alone, up to its first token."""
        self.add(length, 1)
        begin = time.perf_counter()
        self._drain()
        return length / (time.perf_counter() - begin)

    def _prompt_steps(self, length: int, batch: int) -> int:
        return length * batch // 8192 + batch

    def _drain(self) -> None:
        while self.llm.llm_engine.has_unfinished_requests():
            self.llm.llm_engine.step()


def main() -> None:
    """Time what the command line asks for."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM prints
    folder, asked = sys.argv[1], json.loads(sys.argv[2])
    os.environ.update(SETTINGS)

    def say(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    peer = Peer(folder, asked["batch"], asked["longest"])
    say(vllm=version("vllm"))
    for length in asked["lengths"]:
        rates = [peer.decode(length, asked["batch"]) for _ in range(asked["repeats"] + 1)]
        say(phase="decode", length=length, rates=rates[1:])
    for length in asked["lengths"]:
        rates = [peer.prefill(length) for _ in range(asked["repeats"] + 1)]
        say(phase="prefill", length=length, rates=rates[1:])


if __name__ == "__main__":
    main()
