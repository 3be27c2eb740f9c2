"""Both kinds of attention at the shapes of Ling-2.6-flash, on one GPU.

... is python -m lingflash.bench.on_gpu.kernel_cases.

... attention cases [lightning fla mla decode]   what is used
... attention sweep [lightning mla decode]       best last
... attention check                              against truth
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields

import torch
from torch import Tensor
from torch.nn import functional as F

from lingflash.bench.on_gpu.kernel_cases.case import Case, randn, time_cases
from lingflash.core.anchors import ANCHOR, last_anchor
from lingflash.kernels.lightning_attn import decay_tables, lightning_attention_reference
from lingflash.kernels.lightning_attn.segments import cut_segments, segment_tokens
from lingflash.kernels.lightning_attn.triton_prefill import AttendConfig, lightning_prefill_triton
from lingflash.kernels.lightning_attn.triton_prepare import prepare_qkv_triton
from lingflash.kernels.mla import mla_attention, mla_attention_reference, plan_mla
from lingflash.kernels.mla.triton_decode import DecodeConfig, mla_decode_triton
from lingflash.kernels.mla.triton_prefill import PrefillConfig, mla_prefill_triton

HEADS, DIM, BLOCK = 32, 128, 64
RANK, ROPE, NOPE, VALUE = 512, 64, 128, 128
SCALE = (NOPE + ROPE) ** -0.5
PROMPTS = (8192, 65_536)
_MOST_GAP = 0.02  # of the largest output, between two correct kernels in BF16
KINDS = ("lightning", "fla", "mla", "decode")
# Of layer 0: 2^(-8 (h + 1) / H).
RATE = torch.tensor([2.0 ** (-8.0 * (h + 1) / HEADS) for h in range(HEADS)], dtype=torch.float64)


class LightningInput:
    """One prompt from an empty state; q and k normed, so that sums stay of a size."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.fused = randn(num_tokens, 4 * HEADS * DIM)
        cuda = torch.device("cuda")
        self.cos, self.sin = torch.rand(2, num_tokens, 1, 32, device=cuda)
        self.norm = torch.ones(2, 1, DIM, device=cuda)
        self.log2_rate = decay_tables(RATE, 64, DIM, cuda).log2_rate
        self.states = torch.zeros(2, HEADS, DIM, DIM, device=cuda)
        self.tail_k, self.tail_v = torch.zeros(2, 2, HEADS, 16, DIM, device=cuda)
        self.q, self.k, self.v = self.prepare()

    def prepare(self) -> tuple[Tensor, Tensor, Tensor]:
        """Norm and rotation, as the layer does."""
        return prepare_qkv_triton(
            self.fused, self.norm, self.cos, self.sin, num_heads=HEADS, head_dim=DIM, eps=1e-6
        )

    def attend(
        self, config: AttendConfig | None = None, most_tokens: int | None = None
    ) -> Callable[[], Tensor]:
        """The attention alone, bound to its tables."""
        n = self.num_tokens
        cut = cut_segments([0], [n], [n], [0], device=torch.device("cuda"), most_tokens=most_tokens)
        return lambda: lightning_prefill_triton(
            self.q, self.k, self.v, self.log2_rate, self.states, self.tail_k, self.tail_v, cut,
            config=config,
        )  # fmt: skip

    @property
    def num_bytes(self) -> float:
        """q, k, v in, o out."""
        return 4.0 * self.num_tokens * HEADS * DIM * 2

    @property
    def flops(self) -> float:
        """With tiles of 64 tokens: scores and values, half masked, state in and out."""
        return self.num_tokens * HEADS * (2.0 * 64 * DIM + 4.0 * DIM * DIM)


def lightning_cases() -> Iterable[Case]:
    """Preparation, and attention over one prompt."""
    for n in PROMPTS:
        data = LightningInput(n)
        moved = 2.0 * n * 2 * HEADS * DIM * 2
        yield Case(f"lightning prepare {n}", data.prepare, moved, 0.0)
        yield Case(f"lightning prefill {n}", data.attend(), data.num_bytes, data.flops)


def fla_cases() -> Iterable[Case]:
    """The same inputs through flash-linear-attention; nothing if it is not installed."""
    try:
        from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("fla is not installed: pip install flash-linear-attention")
        return
    for n in PROMPTS:
        data = LightningInput(n)
        q, k, v = (x.contiguous()[None] for x in (data.q, data.k, data.v))
        decay = -RATE.float().cuda()
        each = decay.expand(1, n, HEADS).contiguous()

        def by_head(q: Tensor = q, k: Tensor = k, v: Tensor = v, decay: Tensor = decay) -> Tensor:
            return chunk_simple_gla(q, k, v, g_gamma=decay, output_final_state=True)[0]

        def by_token(q: Tensor = q, k: Tensor = k, v: Tensor = v, each: Tensor = each) -> Tensor:
            return chunk_simple_gla(q, k, v, each, output_final_state=True)[0]

        for name, run in (("g_gamma", by_head), ("g", by_token)):
            with torch.no_grad():
                try:
                    out = run()
                except TypeError as error:  # an older one has no g_gamma
                    print(f"fla {name} {n}: {error}")
                    continue
            mine = data.attend()().float()
            gap = ((out[0].float() - mine).abs().max() / mine.abs().max()).item()
            print(f"fla {name} {n} differs from ours by {gap:.1e} of the largest output")
            if gap > _MOST_GAP:
                print(f"fla {name} {n} does not compute the same, and is not timed")
                continue
            yield Case(
                f"fla simple_gla {name} {n}", torch.no_grad()(run), data.num_bytes, data.flops
            )


class MlaInput:
    """One prompt whose latents lie in order."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.w_kvb = randn(HEADS, NOPE + VALUE, RANK, scale=RANK**-0.5)
        self.pool = randn(-(-num_tokens // BLOCK), BLOCK, RANK + ROPE)
        self.q = randn(num_tokens, HEADS, NOPE + ROPE)
        self.q_rope = self.q[..., NOPE:].contiguous()
        self.plan = plan_mla(
            [0], [num_tokens], [list(range(len(self.pool)))], block_size=BLOCK,
            device=torch.device("cuda"), fixed_blocks=False,
        )  # fmt: skip
        self.latents = self.pool.flatten(0, 1)
        self.expanded = self.expand()
        self.out = torch.empty(num_tokens, HEADS, VALUE, dtype=torch.bfloat16, device="cuda")

    def expand(self) -> Tensor:
        """Keys and values of all heads."""
        flat = F.linear(self.latents[:, :RANK], self.w_kvb.flatten(0, 1))
        return flat.view(-1, HEADS, NOPE + VALUE)

    def attend(self, config: PrefillConfig | None = None) -> Callable[[], None]:
        """The kernel alone."""
        assert self.plan.gpu is not None
        tiles = self.plan.gpu.groups[0].tiles
        return lambda: mla_prefill_triton(
            self.q[..., :NOPE], self.q_rope, self.expanded, self.latents[:, RANK:], tiles, SCALE,
            self.out, config=config,
        )  # fmt: skip

    @property
    def num_bytes(self) -> float:
        """Queries, keys, values and results."""
        return self.num_tokens * HEADS * 2.0 * (2 * NOPE + ROPE + 2 * VALUE)

    @property
    def flops(self) -> float:
        """Of the causal half."""
        return self.num_tokens**2 * HEADS * float(NOPE + ROPE + VALUE)


def mla_cases() -> Iterable[Case]:
    """The kernel, and the whole op from latents."""
    for n in PROMPTS:
        data = MlaInput(n)
        whole = data.flops + 2.0 * n * RANK * HEADS * (NOPE + VALUE)
        yield Case(f"mla prefill kernel {n}", data.attend(), data.num_bytes, data.flops)
        yield Case(
            f"mla prefill with expansion {n}",
            lambda data=data: mla_attention(
                data.q[..., :NOPE], data.q_rope, data.pool, data.w_kvb, SCALE, data.plan
            ),
            data.num_bytes + n * (RANK + ROPE) * 4.0,
            whole,
        )


class DecodeInput:
    """Sequences of one length, each with blocks of its own in no order."""

    def __init__(self, batch: int, length: int) -> None:
        self.batch, self.length = batch, length
        per_seq = length // BLOCK
        self.pool = randn(batch * per_seq, BLOCK, RANK + ROPE)
        self.tables = torch.randperm(batch * per_seq, device="cuda").view(batch, per_seq)
        self.lengths = torch.full((batch,), length, device="cuda")
        self.query = randn(batch, HEADS, RANK + ROPE, scale=0.2)

    def attend(
        self, config: DecodeConfig | None = None, part_tokens: int | None = None
    ) -> Callable[[], Tensor]:
        """Both kernels."""
        return lambda: mla_decode_triton(
            self.query, self.pool, self.tables, self.lengths, SCALE, rank=RANK,
            max_length=self.length, part_tokens=part_tokens, config=config,
        )  # fmt: skip

    @property
    def num_bytes(self) -> float:
        """Latents once, for all heads."""
        return self.batch * self.length * (RANK + ROPE) * 2.0

    @property
    def flops(self) -> float:
        """Scores and mixed latents."""
        return 2.0 * self.batch * self.length * HEADS * (2 * RANK + ROPE)


def decode_cases() -> Iterable[Case]:
    """Batch 1 and 32, short and long."""
    for batch in (1, 32):
        for length in (1024, 65_536):
            data = DecodeInput(batch, length)
            yield Case(f"mla decode {batch} x {length}", data.attend(), data.num_bytes, data.flops)


def all_cases(kinds: Iterable[str] = KINDS) -> Iterable[Case]:
    """Cases of these kinds, built one after the other: together they fill much memory."""
    makers = (lightning_cases, fla_cases, mla_cases, decode_cases)
    for kind, make in zip(KINDS, makers, strict=True):
        if kind in kinds:
            yield from make()


def _show(config: object) -> str:
    return " ".join(f"{f.name}={getattr(config, f.name)}" for f in fields(config))  # type: ignore


def _sweep_one(
    title: str,
    of: LightningInput | MlaInput | DecodeInput,
    runs: Mapping[str, Callable[[], object]],
) -> None:
    cases = [Case(f"{title}: {name}", run, of.num_bytes, of.flops) for name, run in runs.items()]
    time_cases(cases, is_sorted=True)


def sweep(kinds: Iterable[str] = ("lightning", "mla", "decode")) -> None:
    """Time a handful of configurations of each kernel; the best is printed last."""
    if "lightning" in kinds:
        attends = [
            AttendConfig(),
            AttendConfig(num_stages=3),
            AttendConfig(num_stages=1),
            AttendConfig(num_warps=8),
            AttendConfig(num_warps=8, num_stages=3),
            AttendConfig(block_v=128, num_warps=8),
            AttendConfig(block_v=32, num_stages=3),
            AttendConfig(block_t=128, num_warps=8),
            AttendConfig(update_stages=2),
            AttendConfig(update_block_v=64, update_warps=4),
            AttendConfig(update_warps=4),
        ]
        for n in PROMPTS:
            data = LightningInput(n)
            usual = segment_tokens(n)
            _sweep_one(f"lightning {n}", data, {_show(c): data.attend(c) for c in attends})
            cuts = (usual // 2, usual, usual * 2)
            runs = {f"most_tokens={most}": data.attend(most_tokens=most) for most in cuts}
            _sweep_one(f"lightning {n} segments", data, runs)
    if "mla" in kinds:
        prefills = [
            PrefillConfig(),
            PrefillConfig(num_stages=2),
            PrefillConfig(block_n=128, num_stages=2),
            PrefillConfig(block_n=128, num_stages=1),
            PrefillConfig(block_m=64, num_warps=4),
            PrefillConfig(block_m=64, num_warps=4, num_stages=2),
        ]
        data = MlaInput(8192)
        _sweep_one("mla prefill 8192", data, {_show(c): data.attend(c) for c in prefills})
    if "decode" in kinds:
        for batch, length in ((1, 1024), (1, 65_536), (32, 1024), (32, 65_536)):
            data = DecodeInput(batch, length)
            title = f"mla decode {batch} x {length}"
            configs = [DecodeConfig(), DecodeConfig(block_n=32), DecodeConfig(num_warps=4)]
            _sweep_one(title, data, {_show(c): data.attend(c) for c in configs})
            parts = [64, 128, 256, 512] if length == 1024 else [512, 1024, 2048, 4096, 8192]
            _sweep_one(title, data, {f"part_tokens={p}": data.attend(part_tokens=p) for p in parts})


def check() -> None:
    """Compare the true shapes with float64 on a few heads, BF16 and float32."""
    cuda = torch.device("cuda")
    n, slots = 1000, [1]
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (torch.randn(n, HEADS, DIM, device=cuda).to(dtype) for _ in range(3))
        states = torch.zeros(2, HEADS, DIM, DIM, device=cuda)
        tail_k, tail_v = torch.zeros(2, 2, HEADS, 16, DIM, device=cuda)
        rate = decay_tables(RATE, 64, DIM, cuda).log2_rate
        outs = []
        for lo, hi in ((0, 300), (300, 301), (301, n)):
            tail = lo % ANCHOR
            cut = cut_segments([tail], [hi - lo], [last_anchor(hi) - lo + tail], slots, device=cuda)
            outs.append(
                lightning_prefill_triton(
                    q[lo:hi], k[lo:hi], v[lo:hi], rate, states, tail_k, tail_v, cut
                )
            )
        some = [0, 13, HEADS - 1]
        folded = last_anchor(n)
        x, y, z = (x[:folded, some].double() for x in (q, k, v))
        expected, state = lightning_attention_reference(x, y, z, RATE[some].to(cuda))
        out = torch.cat(outs)[: len(expected), some].double()
        error = (out - expected).abs().max() / expected.abs().max()
        drift = (states[1, some] - state).abs().max() / state.abs().max()
        print(f"lightning {dtype}: output {error.item():.1e}, state {drift.item():.1e}")
    for dtype in (torch.float32, torch.bfloat16):
        runs = [(700, 1), (0, 1000), (3000, 4), (2000, 513)]
        lengths = [m for _, m in runs]
        pool = torch.randn(200, BLOCK, RANK + ROPE, device=cuda).to(dtype)
        order, tables = torch.randperm(200).tolist(), []
        for start, m in runs:
            tables.append([order.pop() for _ in range(-(-(start + m) // BLOCK))])
        w_kvb = (torch.randn(HEADS, NOPE + VALUE, RANK, device=cuda) * RANK**-0.5).to(dtype)
        q_nope = torch.randn(sum(lengths), HEADS, NOPE, device=cuda).to(dtype)
        q_rope = torch.randn(sum(lengths), HEADS, ROPE, device=cuda).to(dtype)
        plan = plan_mla(
            [s for s, _ in runs], lengths, tables, block_size=BLOCK, device=cuda,
            fixed_blocks=False,
        )  # fmt: skip
        out = mla_attention(q_nope, q_rope, pool, w_kvb, SCALE, plan)
        row = 0
        for (start, m), table in zip(runs, tables, strict=True):
            rows = slice(row, row + m)
            latents = pool[table].flatten(0, 1)[: start + m].double()
            expected = mla_attention_reference(
                q_nope[rows].cpu().double(), q_rope[rows].cpu().double(), latents.cpu(),
                w_kvb.cpu().double(), SCALE,
            )  # fmt: skip
            error = (out[rows].cpu() - expected).abs().max() / expected.abs().max()
            print(f"mla {dtype} {m} queries after {start}: {error.item():.1e}", flush=True)
            row += m


def main(arguments: list[str]) -> int:
    """Run `cases`, `sweep` or `check`, for all kinds or those named."""
    if not arguments or arguments[0] not in ("cases", "sweep", "check"):
        print(__doc__)
        return 2
    kinds = arguments[1:] or list(KINDS)
    with torch.inference_mode():
        if arguments[0] == "check":
            check()
        elif arguments[0] == "sweep":
            sweep(kinds)
        else:
            for case in all_cases(kinds):
                time_cases([case])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
