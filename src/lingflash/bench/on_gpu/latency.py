"""`ling bench latency`: a model of the true shapes with random weights, step by step on one GPU."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lingflash.bench.on_gpu.dummy_model import LAYOUTS, make_dummy_model
from lingflash.bench.on_gpu.gpu import (
    GpuCeilings,
    collect_memory,
    describe_gpu,
    kernel_times,
    time_s,
)
from lingflash.bench.on_gpu.shapes import shape_config
from lingflash.bench.on_gpu.split import on_ranks, time_exchanges, time_prompt_sums
from lingflash.core.errors import ConfigError
from lingflash.kernels.graph_capture import capture_graph
from lingflash.kernels.lightning_attn import ANCHOR
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.config import ModelConfig
from lingflash.models.cuda_decoder import CudaDecoder, DecodeInputs
from lingflash.models.forward_batch import CacheTensors, make_forward_batch
from lingflash.models.layers.feed_forward import MoeMlp
from lingflash.parallel.mesh import Mesh
from lingflash.quant.matrix import QuantizedExperts, QuantizedMatrix, StackedMatrix
from lingflash.records.record import Record, Target, require

_BLOCK = 64
# A state is written once in ANCHOR steps: a round takes as many.
_STEPS = ANCHOR
_PREFILL_CHUNK = 8192
# Tokens per second that were promised of all layers at a context of 1,024, by GPU, format, batch.
_PROMISED = {
    ("H200", "fp8", 1): 340, ("H200", "fp8", 32): 1250, ("H200", "int4-fp8", 1): 450,
    ("H100", "int4-fp8", 1): 340, ("H100", "int4-fp8", 32): 1500,
}  # fmt: skip
_PROMISED_CONTEXT = 1024
# A promise at batch 32 holds only if routing is as wide as that of unlike tokens, which is 163.
_LEAST_DISTINCT = 155
_LONG_CONTEXT, _LONG_SHARE = 65_536, 0.85


def make_cache(
    config: ModelConfig, num_seqs: int, num_tokens: int, device: torch.device | None = None
) -> CacheTensors:
    """Random memory for sequences of so many tokens, on a GPU: block tables are consecutive."""
    cache = CacheTensors.zeros(
        config,
        num_latent_layers=len(config.mla_layers),
        num_blocks=num_seqs * -(-num_tokens // _BLOCK),
        block_size=_BLOCK,
        num_slots=num_seqs,
        dtype=torch.bfloat16,
        device=device or torch.device("cuda"),
    )
    for part in (cache.latents, cache.states, cache.tail_k, cache.tail_v):
        part.normal_()
    return cache


class DecodeLoop:
    """Steps that feed themselves: each samples at temperature 1 what the next one reads.

    Args:
        model: on the GPU.
        num_seqs: sequences.
        context: tokens that each has before the first step.
        num_steps: steps that there is memory for.
    """

    def __init__(self, model: BailingHybrid, num_seqs: int, context: int, num_steps: int) -> None:
        c, self.context = model.config, context
        width = -(-(context + num_steps + 1) // _BLOCK)  # a place after the last step's, too
        self.cache = make_cache(c, num_seqs, width * _BLOCK)
        decoder = CudaDecoder.create(model, self.cache)
        assert decoder is not None, "the dummy formats all have kernels"
        self.decoder = decoder
        generator = torch.Generator("cuda").manual_seed(num_seqs)
        tables = torch.arange(num_seqs * width, device="cuda").view(num_seqs, width)
        # Where each step's tokens go is known ahead, and so is the noise; one copy brings it.
        positions = context + torch.arange(num_steps + 1, device="cuda")[:, None].expand(
            -1, num_seqs
        )
        block = tables.t()[positions[:, 0] // _BLOCK]
        keys = torch.randint(2**62, (num_steps + 1, num_seqs), device="cuda", generator=generator)
        self._steps = torch.stack(
            [
                positions,
                positions % ANCHOR,
                positions + 1,
                block * _BLOCK + positions % _BLOCK,
                keys,
            ],
            1,
        )
        self._fields = self._steps[0].clone()
        self._next = 0
        places, offsets, lengths, mapping, self._keys = self._fields
        self.inputs = DecodeInputs(
            token_ids=torch.randint(c.vocab_size, (num_seqs,), device="cuda", generator=generator),
            positions=places,
            slot_mapping=mapping,
            state_slots=torch.arange(num_seqs, device="cuda"),
            tail_offsets=offsets,
            lengths=lengths,
            block_tables=tables,
            max_length=width * _BLOCK,
        )
        self._temperature = torch.ones(num_seqs, device="cuda")
        self.graph: torch.cuda.CUDAGraph | None = None

    def _forward(self) -> None:
        """Run the model and sample what the next step reads."""
        from lingflash.kernels.sampling.triton_sample import sample_tokens_triton

        logits = self.decoder.logits(self.decoder.forward(self.inputs))
        sample_tokens_triton(logits, self._temperature, self._keys, out=self.inputs.token_ids)

    def capture(self) -> None:
        """Make the graph of a step."""
        self.graph, _ = capture_graph(self._forward)

    def rewind(self) -> None:
        """Go back to the context's end."""
        self._next = 0

    def replay(self) -> None:
        """One step, as a graph."""
        assert self.graph is not None
        self._fields.copy_(self._steps[self._next])
        self._next += 1
        self.graph.replay()

    def distinct_experts(self) -> list[int]:
        """Experts that the last step touched, per MoE layer."""
        return [int(ids.unique().numel()) for ids in self.decoder.topk_ids]


@dataclass(frozen=True, slots=True)
class StepBytes:
    """Bytes that one decode step must move.

    Args:
        dense: of weights that every step reads.
        expert: of one routed expert's matrices.
        sequence: of one sequence's states and tails, read once and written once in ANCHOR steps.
        token: of one cached token's latents.
    """

    dense: int
    expert: int
    sequence: float
    token: int

    def total(self, distinct: Sequence[int], num_seqs: int, context: float) -> float:
        """Of a step whose MoE layers touched so many experts each."""
        return (
            self.dense + self.expert * sum(distinct)
            + num_seqs * (self.sequence + context * self.token)
        )  # fmt: skip


def _nbytes(matrix: object) -> int:
    if isinstance(matrix, Tensor):
        return matrix.nbytes
    if isinstance(matrix, QuantizedMatrix | QuantizedExperts):
        return matrix.values.nbytes + matrix.scale.nbytes
    assert isinstance(matrix, StackedMatrix)
    return sum(map(_nbytes, matrix.matrices))


def count_bytes(model: BailingHybrid) -> StepBytes:
    """Count them from the weights as they lie; the embedding counts as nothing."""
    c = model.config
    experts = sum(
        _nbytes(layer.mlp.w_gate_up) + _nbytes(layer.mlp.w_down)
        for layer in model.layers
        if isinstance(layer.mlp, MoeMlp)
    )
    num_moe = sum(isinstance(layer.mlp, MoeMlp) for layer in model.layers)
    state = c.num_attention_heads * c.head_dim * c.head_dim * 4
    tails = c.num_attention_heads * c.head_dim * 2 * 4 * (ANCHOR / 2 + 1)
    return StepBytes(
        dense=model.num_weight_bytes - experts - model.w_embed.nbytes,
        expert=experts // (num_moe * c.num_experts),
        sequence=len(c.lightning_layers) * (state * (1 + 1 / ANCHOR) + tails),
        token=len(c.mla_layers) * c.latent_dim * 2,
    )


def prefill_flops_per_token(config: ModelConfig, num_tokens: int) -> float:
    """Operations per prompt token: 2 x active parameters + the causal half of MLA.

    Active are the weights that a token's way through the layers multiplies, without embedding and
    head; MLA in its expanded form, scores and values.
    """
    c = config
    hidden, heads = c.hidden_size, c.num_attention_heads
    inner = heads * c.head_dim
    lightning = hidden * 4 * inner + inner * hidden
    key, kv = c.qk_nope_head_dim + c.qk_rope_head_dim, c.qk_nope_head_dim + c.v_head_dim
    rank = c.q_lora_rank or 0
    mla = hidden * (rank + c.latent_dim) + rank * heads * key + c.kv_lora_rank * heads * kv
    mla += heads * c.v_head_dim * hidden
    expert = 3 * hidden * c.moe_intermediate_size
    moe = expert * (c.num_experts_per_tok + c.num_shared_experts) + hidden * c.num_experts
    num_dense = sum(c.is_dense(i) for i in range(c.num_hidden_layers))
    active = len(c.lightning_layers) * lightning + len(c.mla_layers) * mla
    active += num_dense * 3 * hidden * c.intermediate_size
    active += (c.num_hidden_layers - num_dense) * moe
    scores = len(c.mla_layers) * heads * (key + c.v_head_dim) * num_tokens / 2
    return 2.0 * (active + scores)


class Prefill:
    """One prompt of random tokens through the whole model, in pieces, last logits sampled.

    Args:
        model: on the GPU.
        num_tokens: of the prompt.
    """

    def __init__(self, model: BailingHybrid, num_tokens: int) -> None:
        self.model, self.num_tokens = model, num_tokens
        self.cache = make_cache(model.config, 1, num_tokens, model.device)
        # Of the words that one rank embeds by itself, as a rank's slice has no other.
        words = model.config.vocab_size // model.mesh.shard.size
        self.tokens = torch.randint(words, (num_tokens,)).tolist()

    @torch.inference_mode()
    def run(self) -> Tensor:
        """Logits of the last token."""
        hidden = None
        table = list(range(-(-self.num_tokens // _BLOCK)))
        for start in range(0, self.num_tokens, _PREFILL_CHUNK):
            piece = self.tokens[start : start + _PREFILL_CHUNK]
            is_last = start + len(piece) == self.num_tokens
            batch = make_forward_batch(
                [piece], [start], [table], [0], [len(piece) - 1] if is_last else [],
                block_size=_BLOCK, device=self.model.device, only_last=[0] if is_last else [],
            )  # fmt: skip
            hidden = self.model.forward(batch, self.cache)
        assert hidden is not None
        return self.model.logits(hidden)


def run_latency(
    *,
    shape: str,
    weights: str,
    format_name: str,
    layers: int | None,
    batches: Sequence[int] | None,
    contexts: Sequence[int],
    prefills: Sequence[int],
    repeats: int,
    kernels: bool,
    engine: Sequence[int],
    pauses: Sequence[int],
    turns: Sequence[int],
    out: Path | None,
    allow_dirty: bool,
    commit: str | None,
    tensor_parallel_size: int,
) -> Record:
    """Time decode steps as graphs, prefill, and the engine around them.

    Raises:
        ConfigError: a value is out of range, or there is no GPU.
    """
    if batches is None:
        batches = () if prefills or engine or turns or pauses else (1, 32)
    require(weights == "dummy", "--weights", weights, "dummy")
    require(format_name in LAYOUTS, "--format", format_name, ", ".join(LAYOUTS))
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    for flag, values, most in (
        ("--batch", batches, 256), ("--context", contexts, None), ("--prefill", prefills, None),
        ("--engine", engine, 256), ("--turn", turns, None), ("--pause", pauses, None),
    ):  # fmt: skip
        ok = all(1 <= n <= (most or n) for n in values)
        require(ok, flag, list(values), f"1 to {most}" if most else "1 or more")
    config = shape_config(shape, layers)
    if not torch.cuda.is_available():
        raise ConfigError(
            "ling bench latency needs an NVIDIA GPU and a CUDA build of torch; on a CPU there is "
            "ling bench throughput.",
            param="device",
        )
    ok = tensor_parallel_size == 1 or not (engine or turns or pauses)
    given = [*engine, *turns, *pauses]
    require(ok, "--engine, --turn or --pause", given, "with --tensor-parallel-size 1")
    record = Record("latency", out, allow_dirty, commit=commit)
    record.settings = {"shape": shape, "format": format_name, "layers": config.num_hidden_layers}
    measure = partial(
        _measure, record, config, format_name, batches, contexts, prefills, repeats, kernels,
        engine, turns, pauses,
    )  # fmt: skip
    if tensor_parallel_size > 1:
        return on_ranks(tensor_parallel_size, config.hidden_size, measure)
    measure(Mesh())
    if config.num_hidden_layers == shape_config(shape).num_hidden_layers:
        _add_targets(record, torch.cuda.get_device_name(0), format_name)
    record.finish()
    return record


def _measure(
    record: Record, config: ModelConfig, format_name: str, batches: Sequence[int],
    contexts: Sequence[int], prefills: Sequence[int], repeats: int, kernels: bool,
    engine: Sequence[int], turns: Sequence[int], pauses: Sequence[int], mesh: Mesh,
) -> Record:  # fmt: skip
    """Fill a record on one of the ranks that share the model; the first one's is kept."""
    if mesh.shard.rank:
        record.out = None
    torch.manual_seed(0)
    # The engine's answers are sixteen rounds long.
    more = max([16 * _STEPS, *((repeats + 2) * (n + _STEPS) for n in turns)])
    longest = max([n + more for n in contexts] + list(prefills) + [n + _STEPS for n in pauses])
    ceilings = GpuCeilings()
    ceilings.sample()
    record.derived["ceilings"] = ceilings.as_dict()
    collect_memory()
    model = make_dummy_model(config, format_name, torch.device("cuda"), longest, mesh)
    counted = count_bytes(model)
    record.settings |= {
        "weights": "dummy", "weight_bytes": model.num_weight_bytes, "temperature": 1.0,
        "graph": True, "speculation": 0, "repeats": repeats, "steps_per_round": _STEPS,
        "prefill_chunk": _PREFILL_CHUNK, "gpu": describe_gpu(),
        "tensor_parallel_size": mesh.shard.size,
    }  # fmt: skip
    for context in contexts:
        for num_seqs in batches:
            _time_decode(record, model, counted, ceilings, num_seqs, context, repeats, kernels)
            kernels = False
            record.save()
            collect_memory()
    if mesh.shard.size > 1:
        _time_exchanges(record, model, batches, prefills, repeats)
    first = True
    for num_tokens in prefills:
        _time_prefill(record, model, ceilings, num_tokens, repeats, first)
        first = False
        record.save()
        collect_memory()
    if engine or turns or pauses:
        _time_engine(record, model, engine, contexts, turns, pauses, repeats)
    ceilings.sample()
    record.derived["ceilings"] = ceilings.as_dict()
    return record


def _time_exchanges(
    record: Record, model: BailingHybrid, batches: Sequence[int], prefills: Sequence[int],
    repeats: int,
) -> None:  # fmt: skip
    """Add what the ranks' exchanges take by themselves."""
    mesh, config = model.mesh, model.config
    record.notes.append("bytes, operations and fractions of ceilings are those of one GPU of all")
    record.notes.append("others_busy_cores counts the other ranks' processes")
    record.settings["sums_in_peers_memory"] = mesh.peers is not None
    for num_seqs in batches:
        time_exchanges(record, mesh, config, num_seqs, repeats)
    if prefills:
        time_prompt_sums(record, mesh, config, min(_PREFILL_CHUNK, *prefills), repeats)
    record.save()


def _time_engine(
    record: Record, model: BailingHybrid, engine: Sequence[int], contexts: Sequence[int],
    turns: Sequence[int], pauses: Sequence[int], repeats: int,
) -> None:  # fmt: skip
    """Add the whole engine's steps at the first context, turns after each, and pauses."""
    # Not at the top: the engine needs packages that the rest of this file does without.
    from lingflash.bench.on_gpu.gpu_engine import time_engine, time_pauses, time_turns

    for num_seqs in engine:
        time_engine(record, model, num_seqs, contexts[0], max(repeats - 1, 1))
        record.save()
        collect_memory()
    for context in contexts if turns else ():
        for num_new in turns:
            time_turns(record, model, context, num_new, repeats)
            record.save()
            collect_memory()
    for num_tokens in pauses:
        time_pauses(record, model, num_tokens, repeats)
        record.save()
        collect_memory()


def _add_targets(record: Record, gpu: str, format_name: str) -> None:
    """What was promised of the cases that were timed."""
    for (name, promised_format, batch), promised in _PROMISED.items():
        case = record.derived.get(f"decode b{batch} c{_PROMISED_CONTEXT}")
        if name not in gpu or promised_format != format_name or case is None:
            continue
        what = f"{name} {format_name} batch {batch}"
        record.targets.append(
            Target(f"{what}, tokens/s", case["tokens_per_s"], promised, "at least")
        )
        if batch > 1:
            record.targets.append(
                Target(
                    f"{what}, distinct experts per layer", case["distinct_experts_mean"],
                    _LEAST_DISTINCT, "at least",
                )
            )  # fmt: skip
    short, long = (
        record.derived.get(f"decode b32 c{n}") for n in (_PROMISED_CONTEXT, _LONG_CONTEXT)
    )
    if short is not None and long is not None:
        share = long["fraction_of_read_ceiling"] / short["fraction_of_read_ceiling"]
        name = f"{format_name} batch 32: fraction of the roofline at 64K over that at 1K"
        record.targets.append(Target(name, share, _LONG_SHARE, "at least"))


def _time_decode(
    record: Record, model: BailingHybrid, counted: StepBytes, ceilings: GpuCeilings,
    num_seqs: int, context: int, repeats: int, kernels: bool,
) -> None:  # fmt: skip
    """Add one decode case."""
    loop = DecodeLoop(model, num_seqs, context, _STEPS)
    loop.capture()

    def run() -> None:
        for _ in range(_STEPS):
            loop.replay()

    samples, distinct = [], []
    for i in range(repeats):
        loop.rewind()
        samples.append(time_s(run, warmups=0) / _STEPS * 1e3)
        distinct += loop.distinct_experts()
        if i == 0:  # counted from the second round on
            samples.clear()
    loop.rewind()
    if repeats == 1:
        samples.append(time_s(run, warmups=0) / _STEPS * 1e3)
    name = f"decode b{num_seqs} c{context}"
    ms = record.add(f"{name} step", "ms", samples).median
    touched = statistics.mean(distinct)
    num_bytes = counted.total(
        [round(touched)] * len(loop.decoder.topk_ids), num_seqs, context + _STEPS / 2
    )
    roofline_s = num_bytes / ceilings.read
    tokens_per_s = num_seqs / ms * 1e3
    record.derived[name] = {
        "tokens_per_s": round(tokens_per_s, 1), "gb_per_step": round(num_bytes * 1e-9, 3),
        "distinct_experts_mean": round(touched, 1), "distinct_experts_min": min(distinct),
        "fraction_of_read_ceiling": round(roofline_s / (ms * 1e-3), 4),
    }  # fmt: skip
    print(name, f"{ms:.3f} ms", record.derived[name], flush=True)
    if kernels:
        loop.rewind()
        rows = kernel_times(loop.replay, 8)
        record.derived[f"{name} kernels"] = [
            {"name": key, "launches": n, "us": round(us, 2)} for key, n, us in rows
        ]
        for key, n, us in rows[:24]:
            print(f"    {us:9.2f} us {n:6.1f} x  {key[:80]}", flush=True)


def _time_prefill(
    record: Record, model: BailingHybrid, ceilings: GpuCeilings, num_tokens: int, repeats: int,
    kernels: bool,
) -> None:  # fmt: skip
    """Add one prompt length."""
    case = Prefill(model, num_tokens)
    samples = [time_s(case.run, warmups=not i) for i in range(max(repeats, 1))]
    rates = [num_tokens / seconds for seconds in samples]
    name = f"prefill {num_tokens}"
    rate = record.add(name, "tokens/s", rates).median
    flops = prefill_flops_per_token(model.config, num_tokens)
    fraction = rate * flops / ceilings.matmul
    record.derived[name] = {
        "gflop_per_token": round(flops * 1e-9, 3), "tflop_per_s": round(rate * flops * 1e-12, 1),
        "fraction_of_bf16_matmul": round(fraction, 4),
    }  # fmt: skip
    record.targets.append(
        Target(
            f"prefill of {num_tokens} tokens, fraction of BF16 matmul", fraction, 0.45, "at least"
        )
    )
    print(name, f"{rate:.0f} tokens/s", record.derived[name], flush=True)
    if kernels:
        rows = kernel_times(case.run, 1)
        record.derived[f"{name} kernels"] = [
            {"name": key, "launches": n, "us": round(us, 2)} for key, n, us in rows[:40]
        ]
        for key, n, us in rows[:24]:
            print(f"    {us:9.2f} us {n:6.1f} x  {key[:80]}", flush=True)
