"""What a model needs and what is left for its cache, counted before anything is loaded."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lingflash.core.config import EngineConfig
from lingflash.core.errors import ConfigError, NotEnoughMemoryError
from lingflash.core.hub import resolve_model
from lingflash.engine.memory.weight_bytes import count_weights, fitting_format
from lingflash.engine.run.cuda_graphs import graph_sizes
from lingflash.kernels.lightning_attn import ANCHOR
from lingflash.kernels.mla.gpu_plan import MOST_EXPANDED_KEYS
from lingflash.models.checkpoint import TensorEntry, read_checkpoint
from lingflash.models.config import ModelConfig, load_model_config
from lingflash.parallel.shard import Shard

log = logging.getLogger(__name__)

# Drafts of "auto": some only where speculation was measured to be faster. On a CPU it is slower
# (docs/LOG.md), on a GPU it has not been measured yet.
_AUTO_DRAFTS = {"cpu": 0, "cuda": 0}
# Activations of one step, logits and allocator slack, per token of --max-num-batched-tokens: the
# widest are the expert rows (topk x 3 x width) beside a few copies of the residual stream, in
# float32.
_ACTIVATION_COPIES = 16
# State checkpoints beyond this many for each sequence that can run are of little use.
_CHECKPOINTS_PER_SEQ = 8
# The most of the host's memory that the host tier takes unasked.
_HOST_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class SequenceBytes:
    """What one sequence takes on one rank.

    Args:
        state: recurrent states and tails.
        tail: of which tails.
        latent: of one token, in the paged cache.
        num_drafts: most drafts of a step.
    """

    state: int
    tail: int
    latent: int
    num_drafts: int

    @classmethod
    def of(
        cls, model: ModelConfig, num_latent_layers: int, item: int, num_drafts: int = 0
    ) -> SequenceBytes:
        """Count them from the shapes; `item` is the size of a latent's number."""
        heads, d = model.num_attention_heads, model.head_dim
        tail = len(model.lightning_layers) * heads * 2 * (ANCHOR + num_drafts) * d * 4
        state = len(model.lightning_layers) * heads * d * d * 4 + tail
        if num_drafts:
            state += 2 * model.hidden_size * 4  # CacheTensors.anchor_hidden, also in a checkpoint
        return cls(state, tail, num_latent_layers * model.latent_dim * item, num_drafts)

    def kept_blocks(self, block_size: int) -> tuple[int, int]:
        """Blocks that a state checkpoint takes, and the states of a sequence's end.

        With drafts no ends are kept: the MTP layer goes on only from anchors.
        """
        block = block_size * self.latent
        end_blocks = 0 if self.num_drafts else -(-self.state // block)
        return -(-(self.state - self.tail) // block), end_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes of everything that one rank allocates, and the context that fits.

    Args:
        device: where the model runs, "cpu" or "cuda".
        dtype: of weights and latents.
        available_bytes: memory that may be used in all, after --memory-fraction.
        weights_bytes: the model.
        workspace_bytes: activations of one step.
        state_bytes_per_seq: one sequence's recurrent states and tails.
        tail_bytes_per_seq: of which tails.
        latent_bytes_per_token: one token's place in the paged cache.
        num_blocks: blocks of the paged cache.
        block_size: tokens in a block.
        num_state_slots: sequences that run at once.
        num_ranks: processes that share the model, each with this plan.
        checkpoint_blocks: blocks that one state checkpoint takes; 0 without a prefix cache.
        end_blocks: blocks that the states of a sequence's end take, tails included; 0 without a
            prefix cache, or with speculation, whose layer goes on only from an anchor.
        num_host_blocks: blocks of the host tier.
        num_speculative_tokens: most drafts of a sequence and step, 0 for no speculation.
        max_model_len: context limit that was asked for or that fits.
        wanted_model_len: context limit before it was cut to what fits.
    """

    device: str
    dtype: torch.dtype
    available_bytes: int
    weights_bytes: int
    workspace_bytes: int
    state_bytes_per_seq: int
    tail_bytes_per_seq: int
    latent_bytes_per_token: int
    num_blocks: int
    block_size: int
    num_state_slots: int
    max_model_len: int
    wanted_model_len: int
    num_ranks: int = 1
    checkpoint_blocks: int = 0
    end_blocks: int = 0
    num_host_blocks: int = 0
    num_speculative_tokens: int = 0

    @property
    def block_bytes(self) -> int:
        """One block of the paged cache, on the device or on the host."""
        return self.block_size * self.latent_bytes_per_token

    @property
    def states_bytes(self) -> int:
        """All running sequences' recurrent states."""
        return self.num_state_slots * self.state_bytes_per_seq

    @property
    def cache_bytes(self) -> int:
        """The paged cache, of latents and state checkpoints."""
        return self.num_blocks * self.block_bytes

    @property
    def host_cache_bytes(self) -> int:
        """The host tier."""
        return self.num_host_blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.workspace_bytes + self.states_bytes + self.cache_bytes

    def as_dict(self) -> dict[str, int]:
        """Label to bytes, for EngineInfo."""
        return {
            "available": self.available_bytes,
            "weights": self.weights_bytes,
            "workspace": self.workspace_bytes,
            "states": self.states_bytes,
            "cache": self.cache_bytes,
            "host cache": self.host_cache_bytes,
        }

    def render(self) -> str:
        """A few lines for people."""
        tokens = self.num_blocks * self.block_size
        lines = [
            f"memory plan ({self.device}, {str(self.dtype).removeprefix('torch.')}"
            f"{f', each of {self.num_ranks} ranks' if self.num_ranks > 1 else ''}): "
            f"{_size(self.total_bytes)} of {_size(self.available_bytes)} allowed",
            f"  weights    {_size(self.weights_bytes)}",
            f"  workspace  {_size(self.workspace_bytes)}",
            f"  states     {_size(self.states_bytes)}   {self.num_state_slots} sequences x "
            f"{_size(self.state_bytes_per_seq).strip()}",
            f"  cache      {_size(self.cache_bytes)}   {tokens:,} tokens x "
            f"{self.latent_bytes_per_token:,} bytes; a state checkpoint takes "
            f"{self.checkpoint_blocks * self.block_size:,} tokens' place",
            f"  context    {self.max_model_len:,} tokens",
        ]
        if self.num_host_blocks:
            lines.insert(-1, f"  host cache {_size(self.host_cache_bytes)}")
        if self.max_model_len < self.wanted_model_len:
            lines[-1] += f" (the model's {self.wanted_model_len:,} do not fit)"
        return "\n".join(lines)


def _size(num_bytes: int) -> str:
    return (
        f"{num_bytes / 2**30:8.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:8.2f} MiB"
    )


def resolve_device(config: EngineConfig) -> torch.device:
    """The device a config means.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    if config.batch_invariant:
        return torch.device("cpu")
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        built = "built without CUDA" if torch.version.cuda is None else "sees no usable GPU"
        raise ConfigError(
            f"--device is cuda, but torch {torch.__version__} {built}; use --device cpu, or "
            "install a CUDA build and check nvidia-smi.",
            param="device",
        )
    return torch.device("cuda" if config.device != "cpu" and has_cuda else "cpu")


def resolve_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """The dtype a config means on a device."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def available_memory_bytes(device: torch.device) -> int:
    """Memory that is free on a device now; on the CPU as Linux estimates it."""
    if device.type == "cuda":
        # An engine that this process had before refers to itself in circles.
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _cgroup_limit())
    except OSError:
        pass
    import psutil  # other systems only

    return int(psutil.virtual_memory().available)


def _cgroup_limit() -> int:
    """Memory a container still allows; very large where there is no limit."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            return int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):
            continue
    return 1 << 62


def plan_memory(config: EngineConfig) -> MemoryPlan:
    """Count the bytes that serving with this config takes.

    Raises:
        ModelLoadError: the checkpoint cannot be read.
        ConfigError: --max-model-len is over the model's own context, or the device is not there.
        NotEnoughMemoryError: weights and one sequence do not fit; says what would.
    """
    folder = resolve_model(config.model)
    device = resolve_device(config)
    available = int(available_memory_bytes(device) * config.memory_fraction)
    if device.type == "cpu":
        available //= config.tensor_parallel_size  # its ranks share the memory
    return plan_checkpoint(
        config,
        load_model_config(folder, config.rope_scaling),
        read_checkpoint(folder),
        device=device,
        available=available,
    )


def plan_checkpoint(
    config: EngineConfig,
    whole: ModelConfig,
    entries: Mapping[str, TensorEntry],
    *,
    device: torch.device,
    available: int,
) -> MemoryPlan:
    """Count the bytes of a checkpoint that is known by its headers; the plan of one rank.

    Args:
        config: settings.
        whole: the model's shape.
        entries: its tensors.
        device: where it would run.
        available: bytes that may be used there.

    Raises:
        ModelLoadError, ConfigError, NotEnoughMemoryError: see plan_memory.
    """
    dtype = resolve_dtype(config, device)
    shard = Shard(0, config.tensor_parallel_size)
    weights, scratch = count_weights(whole, entries, dtype, shard)
    model = whole.share(shard)
    own_len = model_context(model)
    wanted = config.max_model_len or own_len
    if wanted > own_len:
        raise ConfigError(
            f"--max-model-len is {wanted}, the model's context {own_len}. To stretch it, give "
            '--rope-scaling \'{"rope_type": "yarn", "factor": F, '
            f'"original_max_position_embeddings": {model.max_position_embeddings}}}\'.',
            param="max_model_len",
        )
    item = dtype.itemsize
    mtp_prefix = f"model.layers.{model.num_hidden_layers}."
    has_mtp = any(name.startswith(mtp_prefix) for name in entries)
    num_latent_layers = len(model.mla_layers) + has_mtp
    num_drafts = 0
    if config.tensor_parallel_size == 1:
        num_drafts = resolve_num_speculative_tokens(config, device, has_mtp, mtp_prefix)
    heads, d = model.num_attention_heads, model.head_dim
    each = SequenceBytes.of(model, num_latent_layers, item, num_drafts)
    state, latent = each.state, each.latent
    widest = max(
        model.hidden_size,
        model.num_experts_per_tok * 3 * model.moe_intermediate_size // 4,
        heads * d,
    )
    workspace = config.max_num_batched_tokens * widest * 4 * _ACTIVATION_COPIES
    workspace += 128 * model.vocab_size * 4 * 3 + scratch
    # Rotary tables: cosines and sines per position, two tables if the two kinds differ.
    widths = {model.linear_rotary_dim, model.qk_rope_head_dim}
    workspace += wanted * sum(widths) * 4
    block_bytes = config.block_size * latent
    if device.type == "cuda":
        workspace += _decode_graph_bytes(model, config.max_num_seqs, wanted // config.block_size)
        workspace += state + block_bytes  # the graphs' padding
        workspace += _prefill_bytes(model, wanted, config.max_num_seqs)
    left = available - weights - workspace - config.max_num_seqs * state
    checkpoint_blocks = end_blocks = 0
    if config.prefix_caching:
        checkpoint_blocks, end_blocks = each.kept_blocks(config.block_size)
    useful = -(-wanted // config.block_size) + _CHECKPOINTS_PER_SEQ * checkpoint_blocks
    host_bytes = _host_cache_bytes(
        config, device, min(left, config.max_num_seqs * useful * block_bytes)
    )
    if device.type == "cpu":
        left -= host_bytes
    num_blocks = min(left // block_bytes, config.max_num_seqs * useful)
    fitting = min(wanted, max(num_blocks, 0) * config.block_size)
    needed = wanted if config.max_model_len else min(wanted, config.block_size)
    if fitting < needed:
        blocks = -(-needed // config.block_size) * block_bytes
        one = weights + workspace + state + blocks
        most_seqs = (available - weights - workspace - blocks) // state
        if fitting > 0:
            advice = f"; a context of {fitting:,} tokens (--max-model-len) fits as it is"
        elif most_seqs > 0:
            advice = f"; --max-num-seqs {most_seqs} fits"
        else:
            # The workspace counts what quantized weights take while they are used; so does this.
            budget = available - (workspace - scratch) - state - blocks
            fits = fitting_format(whole, entries, dtype, shard, budget)
            advice = "; lower --max-num-batched-tokens or --max-model-len"
            if fits is not None:
                advice = f"; converted with ling convert {fits} one sequence fits"
        if most_seqs <= 0 and device.type == "cuda":
            advice += ", or split the model with --tensor-parallel-size"
        raise NotEnoughMemoryError(
            f"{config.model} does not fit: weights {_size(weights).strip()}, workspace "
            f"{_size(workspace).strip()}, {config.max_num_seqs} states "
            f"{_size(config.max_num_seqs * state).strip()} and a context of {needed:,} tokens "
            f"{_size(needed * latent).strip()}, but {_size(available).strip()} may be used "
            f"(--memory-fraction {config.memory_fraction}). With --max-num-seqs 1 it takes "
            f"{_size(one).strip()}{advice}."
        )
    return MemoryPlan(
        device=device.type,
        dtype=dtype,
        available_bytes=available,
        weights_bytes=weights,
        workspace_bytes=workspace,
        state_bytes_per_seq=state,
        tail_bytes_per_seq=each.tail,
        latent_bytes_per_token=latent,
        num_blocks=num_blocks,
        block_size=config.block_size,
        num_state_slots=config.max_num_seqs,
        num_ranks=shard.size,
        checkpoint_blocks=checkpoint_blocks,
        end_blocks=end_blocks,
        num_host_blocks=host_bytes // block_bytes,
        num_speculative_tokens=num_drafts,
        max_model_len=fitting,
        wanted_model_len=wanted,
    )


def _prefill_bytes(model: ModelConfig, max_model_len: int, max_num_seqs: int) -> int:
    """What the kernels for prompts take besides activations: expanded keys and values, in BF16."""
    keys = max(max_model_len, min(MOST_EXPANDED_KEYS, max_num_seqs * max_model_len))
    heads, width = model.num_attention_heads, model.qk_nope_head_dim + model.v_head_dim
    return keys * heads * width * 2


def _decode_graph_bytes(model: ModelConfig, max_num_seqs: int, blocks_per_seq: int) -> int:
    """What the captured decode steps hold: activations of the largest, and block tables.

    Graphs share memory. Per row: the experts' parts of two layers, the projections, the logits.
    """
    rows = graph_sizes(max_num_seqs)[-1]
    choices = model.num_experts_per_tok + model.num_shared_experts
    row = choices * (2 * 4 * model.hidden_size + 2 * model.moe_intermediate_size)
    row += 2 * 8 * model.num_attention_heads * model.head_dim + 16 * model.hidden_size
    row += 5 * model.vocab_size + 4 * model.num_attention_heads * model.kv_lora_rank * 64
    return 2 * rows * row + 2 * 8 * (max_num_seqs + 1) * (blocks_per_seq + 1)


def resolve_num_speculative_tokens(
    config: EngineConfig, device: torch.device, has_mtp: bool, mtp_prefix: str
) -> int:
    """The number of drafts a config means for a checkpoint.

    Raises:
        ConfigError: drafts were asked for and the checkpoint has no MTP layer.
    """
    wanted = config.num_speculative_tokens
    if wanted == "auto":
        if not has_mtp:
            log.info(
                "Speculative decoding is unavailable: the checkpoint has no tensors of the MTP "
                "layer (%s...).",
                mtp_prefix,
            )
            return 0
        return _AUTO_DRAFTS[device.type]
    if wanted and not has_mtp:
        raise ConfigError(
            f"--num-speculative-tokens is {wanted}, but {config.model} has no tensors of the MTP "
            f"layer ({mtp_prefix}...), which makes the drafts; use a checkpoint that has them, or "
            "0.",
            param="num_speculative_tokens",
        )
    return wanted


def _host_cache_bytes(config: EngineConfig, device: torch.device, device_bytes: int) -> int:
    """Size of the host tier.

    Raises:
        NotEnoughMemoryError: the host has not so much.
    """
    if not config.prefix_caching or config.tensor_parallel_size > 1:
        return 0
    free = available_memory_bytes(torch.device("cpu"))
    if config.host_cache_gib is None:
        wanted = max(min(device_bytes, int(free * _HOST_SHARE)), 0)
        return wanted if device.type == "cuda" else 0
    wanted = int(config.host_cache_gib * 2**30)
    if wanted > free:
        raise NotEnoughMemoryError(
            f"--host-cache-gib is {config.host_cache_gib:g}, but the host has only "
            f"{_size(free).strip()} free."
        )
    return wanted


def model_context(model: ModelConfig) -> int:
    """Context the model is made for: config.json's, or what YaRN stretches to."""
    if model.rope_scaling is None:
        return model.max_position_embeddings
    stretched = int(model.rope_scaling.factor * model.rope_scaling.original_max_position_embeddings)
    return max(stretched, model.max_position_embeddings)
