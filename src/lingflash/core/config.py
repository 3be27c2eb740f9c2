"""Settings of the engine, as one frozen value that every flag and keyword ends up in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from lingflash.core.anchors import ANCHOR
from lingflash.core.errors import ConfigError

Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "bfloat16", "float32"]

BUNDLED_MODEL = "ling-nano"

ROW_MULTIPLE = 16
"""For batch invariance the rows of every matrix product are padded to a multiple of this.

MKL has kernels of their own for few rows, and how few differs between processors: 8 rows were
enough on one, not on another.
"""

MAX_SPECULATIVE_TOKENS = 4
"""Most drafts of a sequence and step: the tail beside a state is made for as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How a model is loaded and served. Names match the command's flags.

    Args:
        model: a folder in Hugging Face layout, a hub id, or "ling-nano", the bundled model.
        device: "auto" takes CUDA if there is one.
        dtype: "auto" is bfloat16 on CUDA and float32 on the CPU.
        max_model_len: context limit in tokens; None is the model's own, or less if memory is short.
        rope_scaling: replaces config.json's entry, such as {"rope_type": "yarn", "factor": 2.0,
            "original_max_position_embeddings": 131072}.
        max_num_seqs: sequences that run at once, one state slot each.
        max_num_batched_tokens: tokens computed in one step.
        max_num_waiting: requests that may wait; one more is refused.
        memory_fraction: part of the device's memory (on the CPU: of the memory available at
            start-up) that weights, states and cache may use together.
        block_size: tokens in a block of the paged cache; prefixes are found again block by block.
        prefix_caching: keep computed prefixes and state checkpoints for later requests.
        tensor_parallel_size: GPUs of this host (on the CPU: processes) to split the model over.
        cache_self_test: show at start-up that a prompt is found again and answered alike.
        host_cache_gib: memory of the host for what the device's cache has no room for; None is as
            much as the device's cache, up to a quarter of the host's memory, on CUDA, and none on
            the CPU, whose memory it would share, or with several ranks.
        num_speculative_tokens: drafts of each sequence and step from the MTP layer, 0 to 4. They
            are made only while that is measured to be faster. "auto" is 0 so far: on a CPU they do
            not pay, on CUDA it was not measured.
        batch_invariant: bitwise equal logits whatever the batch; CPU and float32 only, slower.
        seed: first number of the per-request seeds, for repeatable runs; None draws one.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str = BUNDLED_MODEL
    device: Device = "auto"
    dtype: Dtype = "auto"
    max_model_len: int | None = None
    rope_scaling: dict[str, Any] | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_num_waiting: int = 512
    memory_fraction: float = 0.8
    block_size: int = 16
    prefix_caching: bool = True
    cache_self_test: bool = True
    host_cache_gib: float | None = None
    tensor_parallel_size: int = 1
    num_speculative_tokens: int | Literal["auto"] = "auto"
    batch_invariant: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{flag} is {getattr(self, name)!r}; allowed: {allowed}.", param=name
                )

        check(self.device in ("auto", "cuda", "cpu"), "device", "auto, cuda, cpu")
        check(self.dtype in ("auto", "bfloat16", "float32"), "dtype", "auto, bfloat16, float32")
        check(self.max_model_len is None or self.max_model_len >= 1, "max_model_len", "1 or more")
        check(1 <= self.max_num_seqs <= 4096, "max_num_seqs", "1 to 4096")
        check(
            self.max_num_batched_tokens >= self.max_num_seqs,
            "max_num_batched_tokens",
            f"at least --max-num-seqs ({self.max_num_seqs}): each may decode one token a step",
        )
        check(self.max_num_waiting >= 0, "max_num_waiting", "0 or more")
        check(0.0 < self.memory_fraction <= 1.0, "memory_fraction", "above 0, at most 1")
        check(
            self.block_size > 0 and self.block_size % ANCHOR == 0,
            "block_size",
            f"a positive multiple of {ANCHOR}, the distance of state anchors",
        )
        check(
            self.host_cache_gib is None or self.host_cache_gib >= 0,
            "host_cache_gib",
            "0 (no host tier) or more",
        )
        check(
            self.prefix_caching or not self.host_cache_gib,
            "host_cache_gib",
            "0 without the prefix cache; leave --no-prefix-caching away",
        )
        check(
            self.tensor_parallel_size == 1 or not self.host_cache_gib,
            "host_cache_gib",
            "0 with --tensor-parallel-size; the host tier serves one process so far",
        )
        check(
            1 <= self.tensor_parallel_size <= 64,
            "tensor_parallel_size",
            "1 to 64, and at most the model's group_norm_size",
        )
        check(
            self.num_speculative_tokens == "auto"
            or self.num_speculative_tokens in range(MAX_SPECULATIVE_TOKENS + 1),
            "num_speculative_tokens",
            f"auto, or 0 (off) to {MAX_SPECULATIVE_TOKENS}",
        )
        check(
            self.tensor_parallel_size == 1 or self.num_speculative_tokens in ("auto", 0),
            "num_speculative_tokens",
            "auto or 0 with --tensor-parallel-size; drafts are made in one process so far",
        )
        if self.batch_invariant and (self.device == "cuda" or self.dtype == "bfloat16"):
            raise ConfigError(
                "--batch-invariant runs on the CPU in float32; leave --device and --dtype at auto, "
                "or set cpu and float32.",
                param="batch_invariant",
            )
        if self.batch_invariant and self.tensor_parallel_size > 1:
            raise ConfigError(
                "--batch-invariant runs in one process: a sum over several depends on its size; "
                "leave --tensor-parallel-size at 1.",
                param="tensor_parallel_size",
            )


def parse_num_speculative_tokens(text: str) -> int | Literal["auto"]:
    """Read --num-speculative-tokens.

    Raises:
        ConfigError: it is neither "auto" nor an integer.
    """
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"--num-speculative-tokens is {text!r}; allowed: auto, or 0 (off) to "
            f"{MAX_SPECULATIVE_TOKENS}.",
            param="num_speculative_tokens",
        ) from None


def parse_rope_scaling(text: str) -> dict[str, Any]:
    """Read --rope-scaling's JSON.

    Raises:
        ConfigError: it is not a JSON object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"--rope-scaling is not JSON ({error}); give an object such as "
            '{"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 131072}.',
            param="rope_scaling",
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"--rope-scaling is {text!r}; a JSON object is needed.", param="rope_scaling"
        )
    return value
