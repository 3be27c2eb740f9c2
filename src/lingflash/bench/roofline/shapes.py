"""Shapes of the compared models, and what a decode step reads and a prompt token computes.

From their published config.json; totals of parameters agree with what is published. Rooflines
assume: weights read once a step, routing uniform and independent, launches, activations and
all-reduces free; states float32, the cache and the head BF16; what a rank cannot split (MLA's
latents, fewer key heads than ranks) is on each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Tokens of a chunk of linear attention, which has a quadratic part inside.
_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One model. Weights are counted, embedding apart.

    Args:
        layers: weights of all layers that every token multiplies, without routed experts.
        experts, chosen: of each MoE layer; a token takes `chosen`.
        expert: weights of one.
        state_bytes: of a sequence's recurrent states in float32.
        kv_bytes: of a token's cache in all layers, BF16.
        kv_heads: among which ranks split the cache; 1 for latents.
        attention: operations per token of prompt and of length that scores and values take, causal.
        recurrent: operations per token of the linear attention itself.
    """

    name: str
    layers: float
    num_moe: int
    experts: int
    chosen: int
    expert: float
    head: float
    state_bytes: float
    kv_bytes: float
    kv_heads: int
    attention: float
    recurrent: float

    def distinct_experts(self, batch: int) -> float:
        """Of a layer, that a step of so many sequences touches, expected."""
        return self.experts * (1 - (1 - self.chosen / self.experts) ** batch)

    @property
    def total(self) -> float:
        """Weights in all, but for the embedding."""
        return self.layers + self.num_moe * self.experts * self.expert + self.head

    @property
    def active(self) -> float:
        """Weights that a token multiplies."""
        return self.layers + self.num_moe * self.chosen * self.expert + self.head

    def step_bytes(self, batch: int, context: float, weight_bytes: float, ranks: int) -> float:
        """Of a decode step, on the rank that moves most."""
        experts = self.num_moe * self.distinct_experts(batch) * self.expert
        split = weight_bytes * (self.layers + experts) + 2 * self.head
        split += batch * 2 * self.state_bytes
        cache = batch * context * self.kv_bytes / min(ranks, self.kv_heads)
        return split / ranks + cache

    def prefill_flops(self, length: int) -> tuple[float, float]:
        """Per token of a prompt, head apart: in products with weights, and in attention."""
        weights = 2 * (self.active - self.head)
        return weights, self.attention * length + self.recurrent


def _linear(layers: int, heads: int, keys: int, values: int) -> float:
    """Operations of a recurrence with a state of keys x values for each head."""
    return layers * heads * (4 * keys * values + _CHUNK * (keys + values))


def _ling() -> Shape:
    hidden, heads, width = 4096, 32, 128
    lightning = 5 * hidden * heads * width
    mla = hidden * (1536 + 576) + 1536 * heads * 192 + 512 * heads * 256 + heads * 128 * hidden
    expert = 3 * hidden * 1024
    router = 256 * hidden
    return Shape(
        name="Ling-2.6-flash",
        layers=28 * lightning + 4 * mla + 3 * hidden * 9216 + 31 * (expert + router),
        num_moe=31, experts=256, chosen=8, expert=expert, head=157_184 * hidden,
        state_bytes=28 * heads * width * width * 4, kv_bytes=4 * 576 * 2, kv_heads=1,
        attention=4 * heads * (192 + 128), recurrent=_linear(28, heads, width, width),
    )  # fmt: skip


def _glm() -> Shape:
    hidden = 4096
    attention = 2 * hidden * 96 * 128 + 2 * hidden * 8 * 128
    expert = 3 * hidden * 1408
    return Shape(
        name="GLM-4.5-Air",
        layers=46 * attention + 3 * hidden * 10_944 + 45 * (expert + 128 * hidden),
        num_moe=45, experts=128, chosen=8, expert=expert, head=151_552 * hidden,
        state_bytes=0, kv_bytes=46 * 2 * 8 * 128 * 2, kv_heads=8,
        attention=46 * 96 * 2 * 128, recurrent=0,
    )  # fmt: skip


def _qwen() -> Shape:
    hidden = 3072
    # Gated DeltaNet: 16 key heads, 64 value heads, a gate as wide as the values.
    delta = hidden * (2 * 16 * 128 + 2 * 64 * 128 + 2 * 64) + 64 * 128 * hidden
    full = hidden * (2 * 32 * 256 + 2 * 2 * 256) + 32 * 256 * hidden
    expert = 3 * hidden * 1024
    return Shape(
        name="Qwen3.5-122B-A10B",
        layers=36 * delta + 12 * full + 48 * (expert + 256 * hidden),
        num_moe=48, experts=256, chosen=8, expert=expert, head=248_320 * hidden,
        state_bytes=36 * 64 * 128 * 128 * 4, kv_bytes=12 * 2 * 2 * 256 * 2, kv_heads=2,
        attention=12 * 32 * 2 * 256, recurrent=_linear(36, 64, 128, 128),
    )  # fmt: skip


def _nemotron() -> Shape:
    hidden = 4096
    mamba = hidden * (2 * 128 * 64 + 2 * 8 * 128 + 128) + 128 * 64 * hidden
    full = 2 * hidden * 32 * 128 + 2 * hidden * 2 * 128
    # Experts work on a latent of 1024 and are not gated; the shared one is as wide as the stream.
    around = 2 * hidden * 1024 + 2 * hidden * 5376 + 512 * hidden
    return Shape(
        name="Nemotron-3-Super",
        layers=40 * mamba + 8 * full + 40 * around,
        num_moe=40, experts=512, chosen=22, expert=2 * 1024 * 2688, head=131_072 * hidden,
        state_bytes=40 * 128 * 64 * 128 * 4, kv_bytes=8 * 2 * 2 * 128 * 2, kv_heads=2,
        attention=8 * 32 * 2 * 128, recurrent=_linear(40, 128, 64, 128),
    )  # fmt: skip


_MAKERS: tuple[Callable[[], Shape], ...] = (_glm, _ling, _qwen, _nemotron)
SHAPES = {shape.name: shape for shape in (make() for make in _MAKERS)}


@dataclass(frozen=True, slots=True)
class Device:
    """What one GPU can do at most: bytes/s, and operations/s in BF16 and FP8 that are reached."""

    name: str
    read: float
    bf16: float
    fp8: float


DEVICES = {
    "h20": Device("H20", 4.0e12, 140e12, 280e12),
    "h20-3e": Device("H20-3e", 4.8e12, 140e12, 280e12),
    "h200": Device("H200", 4.8e12, 700e12, 1300e12),
}


def decode_rate(
    shape: Shape, device: Device, *, batch: int, output: int, prompt: int, weight_bytes: int,
    ranks: int,
) -> float:  # fmt: skip
    """Tokens per second of all sequences, on average over an output of this length."""
    step = shape.step_bytes(batch, prompt + output / 2, weight_bytes, ranks)
    return batch * device.read / step


def prefill_rate(
    shape: Shape, device: Device, *, length: int, weight_bytes: int, ranks: int
) -> float:
    """Tokens per second of prompts of this length; attention is computed in BF16."""
    weights, attention = shape.prefill_flops(length)
    product = device.fp8 if weight_bytes == 1 else device.bf16
    return ranks / (weights / product + attention / device.bf16)
