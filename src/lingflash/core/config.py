"""Settings of the engine, as one frozen value that every flag and keyword ends up in."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

from lingflash.core.anchors import ANCHOR
from lingflash.core.errors import ConfigError
from lingflash.core.settings import (
    Bound,
    at_least,
    between,
    check_settings,
    one_of,
    require,
    setting,
)

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


_CPU_SHARED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a model is loaded and run; its fields are the flags of `ling serve` and LLM's keywords.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str = setting(
        BUNDLED_MODEL,
        "Folder in Hugging Face layout, a hub id, or the bundled model.",
        flag="MODEL",
    )
    _: KW_ONLY
    device: Device = setting("auto", "auto, cuda or cpu.", bound=one_of(get_args(Device)))
    # "auto" is bfloat16 on CUDA and float32 on the CPU.
    dtype: Dtype = setting("auto", "auto, bfloat16 or float32.", bound=one_of(get_args(Dtype)))
    max_model_len: int | None = setting(
        None,
        "Context limit in tokens; the model's own, or what fits, if left out.",
        bound=at_least(1),
    )
    # Replaces config.json's entry.
    rope_scaling: dict[str, Any] | None = setting(
        None,
        "Stretch the context with YaRN; changes short answers too.",
        parse=parse_rope_scaling,
        metavar="JSON",
    )
    # One state slot each.
    max_num_seqs: int = setting(64, "Sequences that run at once.", bound=between(1, 4096))
    max_num_batched_tokens: int = setting(2048, "Tokens computed in one step.")
    # Of 64 a CPU computes a prompt in half as long again as of 2048; a GPU would read all weights
    # for them. A sequence that decodes costs a CPU as much as four tokens of a prompt.
    max_num_shared_tokens: int | None = setting(
        None,
        "Of those, tokens of prompts while several keys are served, and four times the sequences "
        "that decode; 64 on a CPU and no fewer than alone on a GPU, if left out.",
        bound=at_least(1),
    )
    max_num_waiting: int = setting(
        512, "Requests that may wait; one more gets a 429.", bound=at_least(0)
    )
    # Of the device's memory; on the CPU of the memory available at start-up.
    memory_fraction: float = setting(
        0.8,
        "Part of the free memory that weights, states and cache may use.",
        bound=Bound(lambda value: 0.0 < value <= 1.0, "above 0, at most 1"),
    )
    # Prefixes are found again block by block.
    block_size: int = setting(
        16,
        "Tokens in a block of the paged cache.",
        bound=Bound(
            lambda value: value > 0 and value % ANCHOR == 0,
            f"a positive multiple of {ANCHOR}, the distance of state anchors",
        ),
    )
    # Of this host; on the CPU it is processes.
    tensor_parallel_size: int = setting(
        1,
        "GPUs to split the model over.",
        bound=between(1, 64, ", and at most the model's group_norm_size"),
    )
    # Drafts are made only while that is measured to be faster. "auto" is 0 so far: on a CPU they do
    # not pay, on CUDA it was not measured.
    num_speculative_tokens: int | Literal["auto"] = setting(
        "auto",
        "Drafts per step from the MTP layer: auto, or 0 to 4.",
        bound=Bound(
            lambda value: value == "auto" or value in range(MAX_SPECULATIVE_TOKENS + 1),
            f"auto, or 0 (off) to {MAX_SPECULATIVE_TOKENS}",
        ),
        parse=parse_num_speculative_tokens,
    )
    batch_invariant: bool = setting(False, "Bitwise equal logits whatever the batch (CPU, slower).")
    prefix_caching: bool = setting(True, "Keep computed prefixes for later requests.")
    cache_self_test: bool = setting(True, "Show at start-up that a prompt is found again.")
    # None is as much as the device's cache, up to a quarter of the host's memory, on CUDA, and none
    # on the CPU, whose memory it would share, or with several ranks.
    host_cache_gib: float | None = setting(
        None,
        "Host memory for prefixes that the GPU has no room for; on the CPU none if left out.",
        bound=at_least(0, "no host tier"),
    )
    # First number of the per-request seeds; None draws one.
    # Counted up with every request, it stays what a request may give.
    seed: int | None = setting(
        None,
        "Of requests that give none, for repeatable runs.",
        bound=between(-(2**62), 2**62),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        require(
            self,
            self.max_num_batched_tokens >= self.max_num_seqs,
            "max_num_batched_tokens",
            f"at least --max-num-seqs ({self.max_num_seqs}): each may decode one token a step",
        )
        require(
            self,
            self.prefix_caching or not self.host_cache_gib,
            "host_cache_gib",
            "0 without the prefix cache; leave --no-prefix-caching away",
        )
        require(
            self,
            self.tensor_parallel_size == 1 or not self.host_cache_gib,
            "host_cache_gib",
            "0 with --tensor-parallel-size; the host tier serves one process so far",
        )
        require(
            self,
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

    def shared_tokens_on(self, device: str) -> int | None:
        """What `max_num_shared_tokens` is on a device; None is no bound."""
        given = self.max_num_shared_tokens
        return _CPU_SHARED_TOKENS if given is None and device == "cpu" else given
