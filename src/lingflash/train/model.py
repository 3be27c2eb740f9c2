"""The architecture as a batched forward with gradients, over rows of packed documents.

Same mathematics as `models/bailing_hybrid.py`, arranged for training: lightning attention in
chunks with the states of all chunks from one decay matrix, every routed expert computed for every
token as one wide feed-forward whose blocks are scaled by the routing weights (exact, and faster
than sorting for eight narrow experts), documents kept apart by masks. Softmax attention takes
positions from 0 in each row; RoPE is relative, so documents see only distances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lingflash.core.errors import ConfigError
from lingflash.kernels.rmsnorm.reference import rms_norm_reference as rms_norm
from lingflash.kernels.rope import rope_inv_freq, rope_table
from lingflash.models.config import ModelConfig
from lingflash.models.layers.lightning import layer_decay_rate

CHUNK = 64


def rotary(
    config: ModelConfig, length: int, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """cos and sin, each float32 [length, P/2], of lightning attention and of MLA."""

    def angles(dim: int) -> tuple[Tensor, Tensor]:
        cos, sin = rope_table(rope_inv_freq(dim, config.rope_theta), length, 1.0, device).chunk(
            2, -1
        )
        return cos, sin

    return angles(config.linear_rotary_dim), angles(config.qk_rope_head_dim)


def document_mask(document: Tensor, passes: int = 1) -> Tensor:
    """bool [B, 1, T, passes * T]: each token sees its document up to itself.

    Args:
        passes: of the MTP layer, see `MtpLayer`: of the last pass a token sees itself, of the one
            before it the token before, and so on; of the first pass all tokens before those.
    """
    t = document.shape[1]
    at = torch.arange(t, device=document.device)
    gap = at[:, None] - at[None, :]
    seen = [gap >= passes - 1, *(gap == passes - 1 - i for i in range(1, passes))]
    same = document[:, :, None] == document[:, None, :]
    return torch.cat([part & same for part in seen], dim=-1)[:, None]


def rope_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] channels of x [B, T, H, D], half-split pairs."""
    n = cos.shape[-1]
    a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    c, s = cos[None, :, None, :], sin[None, :, None, :]
    return torch.cat((a * c - b * s, b * c + a * s, rest), dim=-1)


def rope_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (2j, 2j+1) of x [B, T, H, D]; all first members come out before all second."""
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cos[None, :, None, :], sin[None, :, None, :]
    return torch.cat((a * c - b * s, b * c + a * s), dim=-1)


@dataclass(slots=True)
class Context:
    """What all layers share in one forward.

    Args:
        document: int32 [B, T], -1 for padding.
        attention_mask: bool [B, 1, T, T] or a flex block mask; None if each row is one document.
        rope_linear: cos and sin of lightning attention.
        rope_mla: cos and sin of MLA.
        flex: compiled flex attention, or None for scaled_dot_product_attention.
        draft_masks: the same as attention_mask for further passes of the MTP layer, by their
            number.
    """

    document: Tensor
    attention_mask: Any
    rope_linear: tuple[Tensor, Tensor]
    rope_mla: tuple[Tensor, Tensor]
    flex: Any = None
    draft_masks: dict[int, Any] = field(default_factory=dict)


def chunked_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, document: Tensor
) -> Tensor:
    """Decayed linear attention over packed documents.

    Args:
        q, k, v: [B, T, H, D], T a multiple of CHUNK.
        log_decay: float32 [H], negative.
        document: int32 [B, T].

    Returns:
        [B, T, H, D], scaled by D^(-1/2).
    """
    b, t, h, d = q.shape
    n = t // CHUNK
    q, k, v = (x.view(b, n, CHUNK, h, d).permute(0, 3, 1, 2, 4) for x in (q, k, v))
    doc = document.view(b, n, CHUNK)
    position = torch.arange(CHUNK, device=q.device, dtype=torch.float32)
    gap = position[:, None] - position[None, :]
    decay = torch.where(gap >= 0, torch.exp(log_decay[:, None, None] * gap.clamp(min=0)), 0.0)
    same = (doc[:, :, :, None] == doc[:, :, None, :])[:, None]
    scores = (q @ k.transpose(-1, -2)) * (decay[None, :, None] * same).to(q.dtype)
    inside = scores @ v
    last = doc[:, :, -1]
    to_end = torch.exp(log_decay[:, None] * (CHUNK - 1 - position))[None, :, None, :, None]
    to_end = to_end * (doc == last[:, :, None])[:, None, :, :, None]
    states = (k * to_end.to(k.dtype)).transpose(-1, -2) @ v
    # The state before chunk i: the sum over chunks j < i of lambda^(CHUNK (i - 1 - j)) states_j,
    # where one document reaches from the end of j to the end of i - 1.
    number = torch.arange(n, device=q.device, dtype=torch.float32)
    steps = number[:, None] - 1 - number[None, :]
    carry = torch.where(
        steps >= 0, torch.exp(log_decay[:, None, None] * CHUNK * steps.clamp(min=0)), 0.0
    )
    before = torch.cat((torch.full_like(last[:, :1], -2), last[:, :-1]), dim=1)
    reach = carry[None] * (before[:, :, None] == last[:, None, :])[:, None]
    entering = (reach.to(q.dtype) @ states.reshape(b, h, n, d * d)).view(b, h, n, d, d)
    from_start = torch.exp(log_decay[:, None] * (position + 1))[None, :, None, :, None]
    from_start = from_start * (doc == before[:, :, None])[:, None, :, :, None]
    out = inside + (q * from_start.to(q.dtype)) @ entering
    return out.permute(0, 2, 3, 1, 4).reshape(b, t, h, d) * d**-0.5


class LightningAttention(nn.Module):
    """Linear attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        width = config.num_attention_heads * config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, 3 * width, bias=False)
        self.query_layernorm = nn.Parameter(torch.ones(config.head_dim))
        self.key_layernorm = nn.Parameter(torch.ones(config.head_dim))
        self.g_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.g_norm = nn.Parameter(torch.ones(width))
        self.dense = nn.Linear(width, config.hidden_size, bias=False)
        log_decay = -layer_decay_rate(config, layer).float()
        self.register_buffer("log_decay", log_decay, persistent=False)

    def forward(self, u: Tensor, context: Context) -> Tensor:
        """u: [B, T, D] -> [B, T, D]."""
        c = self.config
        b, t, _ = u.shape
        qkv = self.query_key_value(u)
        if c.linear_silu:
            qkv = F.silu(qkv)
        q, k, v = qkv.view(b, t, 3, c.num_attention_heads, c.head_dim).unbind(2)
        cos, sin = context.rope_linear
        q = rope_half(rms_norm(q, self.query_layernorm, c.rms_norm_eps).float(), cos, sin).to(
            v.dtype
        )
        k = rope_half(rms_norm(k, self.key_layernorm, c.rms_norm_eps).float(), cos, sin).to(v.dtype)
        assert isinstance(self.log_decay, Tensor)
        y = chunked_attention(q, k, v, self.log_decay, context.document)
        groups = c.group_norm_size
        y = rms_norm(
            y.reshape(b, t, groups, -1), self.g_norm.view(groups, -1), c.rms_norm_eps
        ).reshape(b, t, -1)
        return self.dense(y * torch.sigmoid(self.g_proj(u)))


class LatentAttention(nn.Module):
    """MLA of one layer, keys and values expanded."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads = config.num_attention_heads
        qk = config.qk_nope_head_dim + config.qk_rope_head_dim
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(config.hidden_size, heads * qk, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=False)
            self.q_a_layernorm = nn.Parameter(torch.ones(config.q_lora_rank))
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * qk, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(
            config.hidden_size, config.kv_lora_rank + config.qk_rope_head_dim, bias=False
        )
        self.kv_a_layernorm = nn.Parameter(torch.ones(config.kv_lora_rank))
        self.kv_b_proj = nn.Linear(
            config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.dense = nn.Linear(heads * config.v_head_dim, config.hidden_size, bias=False)

    def forward(self, u: Tensor, context: Context) -> Tensor:
        """u: [B, T, D] -> [B, T, D]."""
        return self.attend(u, context, [])[0]

    def attend(
        self, u: Tensor, context: Context, earlier: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend to the keys of this pass and of earlier ones.

        Args:
            u: [B, T, D].
            earlier: keys and values of the passes before this one, the first pass first.

        Returns:
            [B, T, D], and this pass's keys and values.
        """
        c = self.config
        b, t, _ = u.shape
        heads, nope, rope = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        if c.q_lora_rank is None:
            q = self.q_proj(u)
        else:
            q = self.q_b_proj(rms_norm(self.q_a_proj(u), self.q_a_layernorm, c.rms_norm_eps))
        q = q.view(b, t, heads, nope + rope)
        latent, k_rope = self.kv_a_proj_with_mqa(u).split((c.kv_lora_rank, rope), dim=-1)
        kv = self.kv_b_proj(rms_norm(latent, self.kv_a_layernorm, c.rms_norm_eps))
        k_nope, v = kv.view(b, t, heads, nope + c.v_head_dim).split((nope, c.v_head_dim), dim=-1)
        cos, sin = context.rope_mla
        q_rope = rope_pairs(q[..., nope:].float(), cos, sin).to(v.dtype)
        k_rope = rope_pairs(k_rope.float()[:, :, None], cos, sin).to(v.dtype)
        q = torch.cat((q[..., :nope], q_rope), dim=-1).transpose(1, 2)
        k = torch.cat((k_nope, k_rope.expand(-1, -1, heads, -1)), dim=-1).transpose(1, 2)
        v = v.transpose(1, 2)
        made = (k, v)
        mask = context.attention_mask
        if earlier:
            mask = context.draft_masks[len(earlier) + 1]
            k = torch.cat([*(known[0] for known in earlier), k], dim=2)
            v = torch.cat([*(known[1] for known in earlier), v], dim=2)
        scale = (nope + rope) ** -0.5
        if context.flex is not None:
            # One width for q, k and v is what the fused kernels like best.
            v = F.pad(v, (0, nope + rope - c.v_head_dim))
            y = context.flex(q, k, v, block_mask=mask, scale=scale)
            y = y[..., : c.v_head_dim]
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale
            )
        return self.dense(y.transpose(1, 2).reshape(b, t, heads * c.v_head_dim)), made


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def top_mask(x: Tensor, k: int) -> Tensor:
    """Mark the k largest of the last axis, as bool; for small k faster on a GPU than sorting."""
    position = torch.arange(x.shape[-1], device=x.device)
    mask = torch.zeros_like(x, dtype=torch.bool)
    for _ in range(k):
        hot = position == x.masked_fill(mask, float("-inf")).argmax(-1, keepdim=True)
        mask = mask | hot
    return mask


class MixtureOfExperts(nn.Module):
    """Grouped sigmoid router, routed experts as one wide feed-forward, shared expert.

    `load` accumulates how many tokens each expert got, for the balance of `expert_bias`.
    """

    def __init__(self, config: ModelConfig, shared_width: int) -> None:
        super().__init__()
        self.config = config
        e, w, d = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate = nn.Parameter(torch.empty(e, d))
        self.expert_gate = nn.Parameter(torch.empty(e, w, d))
        self.expert_up = nn.Parameter(torch.empty(e, w, d))
        self.expert_down = nn.Parameter(torch.empty(e, d, w))
        self.shared_experts = FeedForward(d, shared_width) if shared_width else None
        self.register_buffer("expert_bias", torch.zeros(e))
        self.register_buffer("load", torch.zeros(e), persistent=False)

    def route(self, x: Tensor) -> Tensor:
        """Return the routing weight of every expert, float32 [B, T, E], zero where not chosen."""
        c = self.config
        with torch.autocast(x.device.type, enabled=False):
            scores = torch.sigmoid(x.float() @ self.gate.float().T)
        assert isinstance(self.expert_bias, Tensor)
        with torch.no_grad():
            biased = scores + self.expert_bias
            grouped = biased.unflatten(-1, (c.n_group, -1))
            best = (grouped * top_mask(grouped, 2)).sum(-1)
            kept = top_mask(best, c.topk_group)
            biased = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
            mask = top_mask(biased, c.num_experts_per_tok).float()
            if self.training:
                assert isinstance(self.load, Tensor)
                self.load.add_(mask.sum((0, 1)))
        weights = scores * mask
        if c.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * c.routed_scaling_factor

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        e, w, d = self.expert_gate.shape
        weights = self.route(x)
        inner = F.silu(F.linear(x, self.expert_gate.view(e * w, d)))
        inner = inner * F.linear(x, self.expert_up.view(e * w, d))
        inner = (inner.unflatten(-1, (e, w)) * weights[..., None].to(inner.dtype)).flatten(-2)
        out = F.linear(inner, self.expert_down.transpose(0, 1).reshape(d, e * w))
        return out if self.shared_experts is None else out + self.shared_experts(x)


class DecoderLayer(nn.Module):
    """Attention and feed-forward with their norms."""

    def __init__(self, config: ModelConfig, layer: int, shared_width: int) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.input_layernorm = nn.Parameter(torch.ones(config.hidden_size))
        self.post_attention_layernorm = nn.Parameter(torch.ones(config.hidden_size))
        linear = config.layer_kind(layer) == "lightning"
        self.attention = LightningAttention(config, layer) if linear else LatentAttention(config)
        if config.is_dense(layer):
            self.mlp: nn.Module = FeedForward(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = MixtureOfExperts(config, shared_width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        x = x + self.attention(rms_norm(x, self.input_layernorm, self.eps), context)
        return x + self.mlp(rms_norm(x, self.post_attention_layernorm, self.eps))


class MtpLayer(nn.Module):
    """The layer that predicts one token further.

    When it drafts several tokens it reads its own output where the model's is not there yet. The
    row of a draft is a pass of its own: it sees the first pass's rows of what is certain, then one
    row of each pass between, then itself.
    """

    def __init__(self, config: ModelConfig, shared_width: int) -> None:
        super().__init__()
        d = config.hidden_size
        self.eps = config.rms_norm_eps
        self.enorm = nn.Parameter(torch.ones(d))
        self.hnorm = nn.Parameter(torch.ones(d))
        self.final_layernorm = nn.Parameter(torch.ones(d))
        self.eh_proj = nn.Linear(2 * d, d, bias=False)
        self.layer = DecoderLayer(config, config.num_hidden_layers, shared_width)

    def forward(
        self,
        embedded_ahead: Tensor,
        hidden: Tensor,
        context: Context,
        earlier: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run one pass.

        Args:
            embedded_ahead: [B, T, D], embedding of the next token.
            hidden: [B, T, D], the main model's normed output, or in a further pass this layer's
                output for the token before.
            earlier: keys and values of the passes before.

        Returns:
            [B, T, D], and this pass's keys and values.
        """
        e = rms_norm(embedded_ahead, self.enorm, self.eps)
        h = rms_norm(hidden, self.hnorm, self.eps)
        x = self.eh_proj(torch.cat((e, h), dim=-1))
        layer = self.layer
        assert isinstance(layer.attention, LatentAttention)
        y, made = layer.attention.attend(
            rms_norm(x, layer.input_layernorm, self.eps), context, earlier
        )
        x = x + y
        x = x + layer.mlp(rms_norm(x, layer.post_attention_layernorm, self.eps))
        return rms_norm(x, self.final_layernorm, self.eps), made


def call_module(module: nn.Module, *inputs: Any) -> Any:
    """Call a layer as it is."""
    return module(*inputs)


class TrainModel(nn.Module):
    """The whole model.

    Args:
        shared_width: inner width of the shared experts; None is num_shared_experts times the
            routed width.
    """

    def __init__(self, config: ModelConfig, shared_width: int | None = None) -> None:
        super().__init__()
        if config.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings is true; training supports false only.")
        if shared_width is None:
            shared_width = config.num_shared_experts * config.moe_intermediate_size
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, shared_width) for i in range(config.num_hidden_layers)
        )
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp = MtpLayer(config, shared_width) if config.num_nextn_predict_layers else None
        # How a layer is called: the trainer puts a compiled call here.
        self.call: Callable[..., Any] = call_module

    def initialise(self, seed: int) -> None:
        """Draw the weights; projections back into the residual stream start at zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.dim() < 2:
                    continue
                if name.endswith(("dense.weight", "down_proj.weight", "expert_down")):
                    p.zero_()
                    continue
                std = (
                    0.02 if name.startswith(("word_embeddings", "lm_head")) else p.shape[-1] ** -0.5
                )
                if name.startswith("word_embeddings"):
                    std = 0.5
                p.copy_(torch.randn(p.shape, generator=generator) * std)

    def context(self, document: Tensor, passes: int = 1) -> Context:
        """Build masks and rotary tables for rows of packed documents, int32 [B, T].

        Args:
            passes: of the MTP layer, at most.
        """
        angles = rotary(self.config, document.shape[1], document.device)
        masks = {n: document_mask(document, n) for n in range(2, passes + 1)}
        return Context(document, document_mask(document), *angles, draft_masks=masks)

    def hidden(self, tokens: Tensor, context: Context) -> Tensor:
        """tokens: int [B, T] -> [B, T, D] after the final norm."""
        x = self.word_embeddings(tokens)
        for layer in self.layers:
            x = self.call(layer, x, context)
        return rms_norm(x, self.norm, self.config.rms_norm_eps)

    def forward(
        self, tokens: Tensor, context: Context, index: Tensor, with_mtp: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Compute logits at some positions.

        Args:
            tokens: int [B, T + 1] or longer.
            index: int64 [K], flat positions of [B, T].
            with_mtp: also compute the MTP layer's.

        Returns:
            Logits [K, V] for the next token, and for the one after it or None.
        """
        t = context.document.shape[1]
        hidden = self.hidden(tokens[:, :t], context)
        logits = self.lm_head(hidden.flatten(0, 1)[index])
        if not with_mtp or self.mtp is None:
            return logits, None
        (ahead,) = self.ahead(tokens, hidden, context, 1)
        return logits, self.lm_head(ahead.flatten(0, 1)[index])

    def ahead(self, tokens: Tensor, hidden: Tensor, context: Context, passes: int) -> list[Tensor]:
        """The MTP layer's output [B, T, D] for the token after the next, as each draft finds it.

        Pass 1 reads the model's hidden states, as a first draft does. In pass n the last n - 1 of
        them are not there yet, as for the nth draft.
        """
        assert self.mtp is not None
        embedded = self.word_embeddings(tokens[:, 1 : context.document.shape[1] + 1])
        outs: list[Tensor] = []
        earlier: list[tuple[Tensor, Tensor]] = []
        for _ in range(passes):
            out, made = self.call(self.mtp, embedded, hidden, context, earlier)
            outs.append(out)
            earlier = [*earlier, made]
            hidden = F.pad(out, (0, 0, 1, 0))[:, :-1]
        return outs


def num_parameters(model: nn.Module) -> int:
    """Count the parameters."""
    return sum(p.numel() for p in model.parameters())
