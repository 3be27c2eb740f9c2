"""What a model needs and what is left for its cache, counted before anything is loaded."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lingflash.core.config import EngineConfig
from lingflash.core.errors import ConfigError, NotEnoughMemoryError
from lingflash.core.hub import resolve_model
from lingflash.engine.memory.plan import MemoryPlan, SequenceBytes, format_size
from lingflash.engine.memory.tensors import MOST_PROMPT_ROWS, MOST_PROMPT_SEGMENTS, graph_sizes
from lingflash.engine.memory.weight_bytes import count_weights, fitting_format
from lingflash.kernels.mla.gpu_plan import EXPANDED_KEYS, MOST_EXPANDED_KEYS
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
# What NCCL takes of each of several GPUs for its buffers; a guess, not measured.
_NCCL_BYTES = 2**29
# State checkpoints beyond this many for each sequence that can run are of little use.
_CHECKPOINTS_PER_SEQ = 8
# The most of the host's memory that the host tier takes unasked.
_HOST_SHARE = 0.25


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
    try:  # without /proc the kernel tells what is free, if not what could be freed
        pages = os.sysconf("SC_AVPHYS_PAGES")
        return min(pages * os.sysconf("SC_PAGE_SIZE"), _cgroup_limit())
    except (ValueError, OSError):
        pass
    try:
        import psutil  # other systems only
    except ImportError:
        raise ConfigError(
            "Nothing here tells how much memory is free: there is no /proc/meminfo. Mount /proc, "
            "or install psutil."
        ) from None
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

    Raises:
        ModelLoadError, ConfigError, NotEnoughMemoryError: see plan_memory.
    """
    dtype = resolve_dtype(config, device)
    shard = Shard(0, config.tensor_parallel_size)
    weights, scratch = count_weights(whole, entries, dtype, shard)
    model = whole.share(shard)
    wanted = _wanted_context(config, model)
    mtp_prefix = f"model.layers.{model.num_hidden_layers}."
    has_mtp = any(name.startswith(mtp_prefix) for name in entries)
    num_drafts = 0
    if config.tensor_parallel_size == 1:
        num_drafts = resolve_num_speculative_tokens(config, device, has_mtp, mtp_prefix)
    each = SequenceBytes.of(model, len(model.mla_layers) + has_mtp, dtype, num_drafts)
    workspace = scratch + _workspace_bytes(config, model, wanted)
    block_bytes = config.block_size * each.latent
    if device.type == "cuda":
        workspace += _decode_graph_bytes(model, config.max_num_seqs, wanted // config.block_size)
        workspace += _prompt_graph_bytes(model)
        workspace += 2 * each.state + block_bytes  # the graphs' padding, states left within a step
        if shard.size > 1:
            workspace += _exchange_bytes(model, config.max_num_seqs)
        workspace += _prefill_bytes(model, wanted, config.max_num_seqs)
    left = available - weights - workspace - config.max_num_seqs * each.state
    checkpoint_blocks = end_blocks = 0
    if config.prefix_caching:
        checkpoint_blocks, end_blocks = each.kept_blocks(config.block_size)
    useful = -(-wanted // config.block_size) + _CHECKPOINTS_PER_SEQ * checkpoint_blocks
    useful *= config.max_num_seqs
    host_bytes = _host_cache_bytes(config, device, min(left, useful * block_bytes))
    if device.type == "cpu":
        left -= host_bytes
    num_blocks = min(left // block_bytes, useful)
    plan = MemoryPlan(
        device=device.type,
        dtype=dtype,
        available_bytes=available,
        weights_bytes=weights,
        workspace_bytes=workspace,
        state_bytes_per_seq=each.state,
        latent_bytes_per_token=each.latent,
        num_blocks=num_blocks,
        block_size=config.block_size,
        num_state_slots=config.max_num_seqs,
        num_ranks=shard.size,
        checkpoint_blocks=checkpoint_blocks,
        end_blocks=end_blocks,
        num_host_blocks=host_bytes // block_bytes,
        num_speculative_tokens=num_drafts,
        max_model_len=min(wanted, max(num_blocks, 0) * config.block_size),
        wanted_model_len=wanted,
    )
    needed = wanted if config.max_model_len else min(wanted, config.block_size)
    if plan.max_model_len < needed:
        # What quantized weights take while they are used is part of the workspace and of a format.
        raise _does_not_fit(
            config,
            plan,
            needed,
            lambda left: fitting_format(whole, entries, dtype, shard, left + scratch),
        )
    return plan


def _does_not_fit(
    config: EngineConfig, plan: MemoryPlan, needed: int, format_for: Callable[[int], str | None]
) -> NotEnoughMemoryError:
    """What is too large for a context of `needed` tokens, and what would fit.

    Args:
        format_for: options of `ling convert` for weights of at most so many bytes.
    """
    state = plan.state_bytes_per_seq
    context = -(-needed // config.block_size) * plan.block_bytes
    room = plan.available_bytes - plan.workspace_bytes - context
    most_seqs = (room - plan.weights_bytes) // state
    if plan.max_model_len > 0:
        advice = f"; a context of {plan.max_model_len:,} tokens (--max-model-len) fits as it is"
    elif most_seqs > 0:
        advice = f"; --max-num-seqs {most_seqs} fits"
    else:
        fits = format_for(room - state)
        advice = "; lower --max-num-batched-tokens or --max-model-len"
        if fits is not None:
            advice = f"; converted with ling convert {fits} one sequence fits"
    if most_seqs <= 0 and plan.device == "cuda":
        advice += ", or split the model with --tensor-parallel-size"
    one = plan.weights_bytes + plan.workspace_bytes + state + context
    return NotEnoughMemoryError(
        f"{config.model} does not fit: weights {format_size(plan.weights_bytes)}, workspace "
        f"{format_size(plan.workspace_bytes)}, {config.max_num_seqs} states "
        f"{format_size(plan.states_bytes)} and a context of {needed:,} tokens "
        f"{format_size(needed * plan.latent_bytes_per_token)}, but "
        f"{format_size(plan.available_bytes)} may be used "
        f"(--memory-fraction {config.memory_fraction}). With --max-num-seqs 1 it takes "
        f"{format_size(one)}{advice}."
    )


def _wanted_context(config: EngineConfig, model: ModelConfig) -> int:
    """The context to plan for, before it is cut to what fits.

    Raises:
        ConfigError: it is over the model's own.
    """
    own_len = model_context(model)
    wanted = config.max_model_len or own_len
    if wanted > own_len:
        raise ConfigError(
            f"--max-model-len is {wanted}, the model's context {own_len}. To stretch it, give "
            '--rope-scaling \'{"rope_type": "yarn", "factor": F, '
            f'"original_max_position_embeddings": {model.max_position_embeddings}}}\'.',
            param="max_model_len",
        )
    return wanted


def _workspace_bytes(config: EngineConfig, model: ModelConfig, max_model_len: int) -> int:
    """Activations of one step, logits and rotary tables."""
    widest = max(
        model.hidden_size,
        model.num_experts_per_tok * 3 * model.moe_intermediate_size // 4,
        model.num_attention_heads * model.head_dim,
    )
    activations = config.max_num_batched_tokens * widest * 4 * _ACTIVATION_COPIES
    logits = 128 * model.vocab_size * 4 * 3
    # Cosines and sines per position, two tables if the two kinds differ.
    widths = {model.linear_rotary_dim, model.qk_rope_head_dim}
    return activations + logits + max_model_len * sum(widths) * 4


def _prefill_bytes(model: ModelConfig, max_model_len: int, max_num_seqs: int) -> int:
    """What the kernels for prompts take besides activations: expanded keys and values, in BF16."""
    keys = max(max_model_len, min(MOST_EXPANDED_KEYS, max_num_seqs * max_model_len))
    heads, width = model.num_attention_heads, model.qk_nope_head_dim + model.v_head_dim
    return (keys + EXPANDED_KEYS) * heads * width * 2


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


def _prompt_graph_bytes(model: ModelConfig) -> int:
    """What the captured prompts hold: activations of the largest, and states between segments.

    Graphs share memory. Per row: the experts' rows, the projections, some copies of the stream.
    """
    heads, hidden = model.num_attention_heads, model.hidden_size
    row = model.num_experts_per_tok * (2 * hidden + 4 * model.moe_intermediate_size)
    row += 16 * heads * model.head_dim + 4 * model.intermediate_size + 24 * hidden
    states = MOST_PROMPT_SEGMENTS * heads * model.head_dim**2 * 4
    return MOST_PROMPT_ROWS * row + states


def _exchange_bytes(model: ModelConfig, max_num_seqs: int) -> int:
    """What exchanges take of a rank: words of two calls from each, and NCCL's buffers."""
    words = 2 * model.shard.size * graph_sizes(max_num_seqs)[-1] * model.hidden_size
    return 8 * words + _NCCL_BYTES


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
            f"{format_size(free)} free."
        )
    return wanted


def model_context(model: ModelConfig) -> int:
    """Context the model is made for: config.json's, or what YaRN stretches to."""
    if model.rope_scaling is None:
        return model.max_position_embeddings
    stretched = int(model.rope_scaling.factor * model.rope_scaling.original_max_position_embeddings)
    return max(stretched, model.max_position_embeddings)
