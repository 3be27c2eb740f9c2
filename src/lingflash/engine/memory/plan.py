"""What one rank's memory is divided into: bytes of each part, and the context that fits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.config import ModelConfig
from lingflash.models.forward_batch import CacheTensors


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
        cls, model: ModelConfig, num_latent_layers: int, dtype: torch.dtype, num_drafts: int = 0
    ) -> SequenceBytes:
        """Count what CacheTensors.zeros would allocate for one slot and one token."""
        one = CacheTensors.zeros(
            model,
            num_latent_layers=num_latent_layers,
            num_blocks=1,
            block_size=1,
            num_slots=1,
            dtype=dtype,
            device=torch.device("meta"),
            num_drafts=num_drafts,
        )
        tail = one.tail_k.nbytes + one.tail_v.nbytes
        state = one.states.nbytes + tail
        if one.anchor_hidden is not None:
            state += one.anchor_hidden.nbytes  # also in a checkpoint
        return cls(state, tail, one.latents.nbytes, num_drafts)

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
        workspace_bytes: activations of one step.
        state_bytes_per_seq: one sequence's recurrent states and tails.
        latent_bytes_per_token: one token's place in the paged cache.
        num_state_slots: sequences that run at once.
        num_ranks: processes that share the model, each with this plan.
        checkpoint_blocks: blocks that one state checkpoint takes; 0 without a prefix cache.
        end_blocks: blocks that the states of a sequence's end take, tails included; 0 without a
            prefix cache, or with speculation, whose layer goes on only from an anchor.
        num_speculative_tokens: most drafts of a sequence and step, 0 for no speculation.
        max_model_len: context limit that was asked for or that fits.
        wanted_model_len: context limit before it was cut to what fits.
    """

    device: str
    dtype: torch.dtype
    available_bytes: int = 0
    weights_bytes: int = 0
    workspace_bytes: int = 0
    state_bytes_per_seq: int
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

    @classmethod
    def for_sizes(
        cls,
        model: BailingHybrid,
        *,
        num_blocks: int,
        block_size: int,
        num_seqs: int,
        max_model_len: int,
        prefix_caching: bool = False,
        num_host_blocks: int = 0,
        num_speculative_tokens: int = 0,
    ) -> MemoryPlan:
        """The plan of a loaded model whose memory has these sizes, whatever fits the machine."""
        each = SequenceBytes.of(
            model.config, model.num_latent_layers, model.dtype, num_speculative_tokens
        )
        checkpoint_blocks, end_blocks = each.kept_blocks(block_size) if prefix_caching else (0, 0)
        return cls(
            device=model.device.type,
            dtype=model.dtype,
            state_bytes_per_seq=each.state,
            latent_bytes_per_token=each.latent,
            num_blocks=num_blocks,
            block_size=block_size,
            num_state_slots=num_seqs,
            max_model_len=max_model_len,
            wanted_model_len=max_model_len,
            checkpoint_blocks=checkpoint_blocks,
            end_blocks=end_blocks,
            num_host_blocks=num_host_blocks,
            num_speculative_tokens=num_speculative_tokens,
        )

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
            f"{format_size(self.total_bytes):>12} of "
            f"{format_size(self.available_bytes):>12} allowed",
            f"  weights    {format_size(self.weights_bytes):>12}",
            f"  workspace  {format_size(self.workspace_bytes):>12}",
            f"  states     {format_size(self.states_bytes):>12}   "
            f"{self.num_state_slots} sequences x {format_size(self.state_bytes_per_seq)}",
            f"  cache      {format_size(self.cache_bytes):>12}   {tokens:,} tokens x "
            f"{self.latent_bytes_per_token:,} bytes; a state checkpoint takes "
            f"{self.checkpoint_blocks * self.block_size:,} tokens' place",
            f"  context    {self.max_model_len:,} tokens",
        ]
        if self.num_host_blocks:
            lines.insert(-1, f"  host cache {format_size(self.host_cache_bytes):>12}")
        if self.max_model_len < self.wanted_model_len:
            lines[-1] += f" (the model's {self.wanted_model_len:,} do not fit)"
        return "\n".join(lines)


def format_size(num_bytes: int) -> str:
    """Bytes for people."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.2f} MiB"
