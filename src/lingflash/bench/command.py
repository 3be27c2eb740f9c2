"""The `ling bench` commands; torch is imported only when one runs.

Each prints its numbers and, with --out, leaves a JSON with command, commit, machine and samples.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from lingflash.core.config import BUNDLED_MODEL

app = typer.Typer(
    help="Measure: tokens per second, host time, memory, serving load, endurance.",
    no_args_is_help=True,
)

ModelOption = Annotated[str, typer.Option("--model", help="Folder, hub id or ling-nano.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="Threads of torch.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="JSON file to write.")]
DirtyOption = Annotated[
    bool, typer.Option("--allow-dirty", help="Write --out although src/ is not committed.")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="A running server; else one is started for --model.")
]
KeyOption = Annotated[str | None, typer.Option("--api-key", help="Key for --url.")]
FlagsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--serve-flag", help="For the server that is started, such as --max-num-seqs=8; repeat."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of lengths, prompts and choices.")]


def quiet_threads() -> None:
    """Let idle OpenMP threads sleep, as the server does: spinning, they hold up the others."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@app.command()
def throughput(
    model: ModelOption = BUNDLED_MODEL,
    prompt_len: Annotated[
        list[int] | None, typer.Option("--prompt-len", help="Prompts to time; repeat the flag.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", help="Batches to decode; repeat the flag.")
    ] = None,
    decode_prompt_len: Annotated[
        int, typer.Option("--decode-prompt-len", help="Prompt tokens before decoding.")
    ] = 32,
    decode_steps: Annotated[int, typer.Option("--decode-steps", help="Timed steps.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", help="Counted rounds.")] = 5,
    threads: ThreadsOption = None,
    peer_python: Annotated[
        str | None,
        typer.Option("--peer-python", help="Interpreter with mlx-lm (make bench-peers)."),
    ] = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Prefill and decode tokens/s on the CPU in float32, beside mlx-lm in the same run."""
    quiet_threads()
    from lingflash.bench.in_engine.throughput import run_throughput

    run_throughput(
        model=model,
        prompt_lens=prompt_len or [128, 512, 2048],
        batch_sizes=batch or [1, 8, 32],
        decode_prompt_len=decode_prompt_len,
        decode_steps=decode_steps,
        repeats=repeats,
        threads=threads,
        peer_python=peer_python,
        out=out,
        allow_dirty=allow_dirty,
    )


@app.command()
def agent(
    model: ModelOption = BUNDLED_MODEL,
    conversations: Annotated[int, typer.Option("--conversations", help="How many alternate.")] = 4,
    turns: Annotated[int, typer.Option("--turns", help="Turns of each, if they fit.")] = 40,
    max_model_len: Annotated[
        int, typer.Option("--max-model-len", help="Context that the conversations grow to.")
    ] = 8192,
    repeats: Annotated[int, typer.Option("--repeats", help="Runs of each kind.")] = 3,
    seed: SeedOption = 0,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="JSON lines with the sizes of turns, instead of drawn ones."),
    ] = None,
    threads: ThreadsOption = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Conversations of an agent: time to first token by turn, prefix cache on, off and starved."""
    quiet_threads()
    from lingflash.bench.in_engine.agent import run_agent

    run_agent(
        model=model,
        num_conversations=conversations,
        max_turns=turns,
        max_model_len=max_model_len,
        repeats=repeats,
        seed=seed,
        trace=trace,
        threads=threads,
        out=out,
        allow_dirty=allow_dirty,
    )


@app.command()
def host(
    model: ModelOption = BUNDLED_MODEL,
    num_seqs: Annotated[int, typer.Option("--num-seqs", help="Running sequences.")] = 64,
    steps: Annotated[int, typer.Option("--steps", help="Timed steps of each kind.")] = 300,
    threads: ThreadsOption = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Time of one engine step outside the model, part by part."""
    quiet_threads()
    from lingflash.bench.in_engine.host import run_host

    run_host(
        model=model,
        num_seqs=num_seqs,
        num_steps=steps,
        threads=threads,
        out=out,
        allow_dirty=allow_dirty,
    )


@app.command()
def lightning(
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", help="Prompt lengths; repeat the flag.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Counted rounds.")] = 7,
    threads: ThreadsOption = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Time of the lightning attention operator; it must grow with the length, no faster."""
    quiet_threads()
    from lingflash.bench.in_engine.lightning import run_lightning

    run_lightning(
        lengths=tokens or [8192, 32768],
        repeats=repeats,
        threads=threads,
        out=out,
        allow_dirty=allow_dirty,
    )


@app.command()
def mask(
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", help="Tokens of the made vocabulary.")
    ] = 157_184,
    repeats: Annotated[int, typer.Option("--repeats", help="Counted rounds.")] = 5,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Time of a token mask under schemas, tools and a regex, with a large vocabulary."""
    from lingflash.bench.in_engine.mask import run_mask

    run_mask(vocab_size=vocab_size, repeats=repeats, out=out, allow_dirty=allow_dirty)


@app.command()
def load(
    layers: Annotated[
        int, typer.Option("--layers", help="Of the dummy model; 12 make 2.3 GB.")
    ] = 12,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", help="Load as; repeat the flag.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Fresh processes for each.")] = 3,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the temporary checkpoint is written.")
    ] = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Peak anonymous memory of loading a large dummy checkpoint in a fresh process."""
    quiet_threads()
    from lingflash.bench.in_engine.load import run_load

    run_load(
        layers=layers,
        dtypes=dtype or ["bfloat16", "float32"],
        repeats=repeats,
        folder=folder,
        out=out,
        allow_dirty=allow_dirty,
    )


@app.command()
def serve(
    model: ModelOption = BUNDLED_MODEL,
    url: UrlOption = None,
    api_key: KeyOption = None,
    clients: Annotated[
        int | None, typer.Option("--clients", help="Requests in flight; 16, or 64 if scripted.")
    ] = None,
    requests: Annotated[int, typer.Option("--requests", help="Requests in all.")] = 128,
    prompt_len: Annotated[
        tuple[int, int], typer.Option("--prompt-len", help="Fewest and most prompt tokens.")
    ] = (16, 256),
    answer_len: Annotated[
        tuple[int, int], typer.Option("--answer-len", help="Fewest and most answer tokens.")
    ] = (16, 64),
    slo_ttft_ms: Annotated[
        float, typer.Option("--slo-ttft-ms", help="Goodput: latest first token.")
    ] = 1000.0,
    slo_tpot_ms: Annotated[
        float, typer.Option("--slo-tpot-ms", help="Goodput: longest mean time per token.")
    ] = 100.0,
    seed: SeedOption = 0,
    serve_flag: FlagsOption = None,
    scripted: Annotated[
        bool,
        typer.Option(
            "--scripted",
            help="The server alone, around an engine that replays: first token, events/s. Takes "
            "--model (for its text), --clients, --step-ms, --tokens.",
        ),
    ] = False,
    step_ms: Annotated[
        float, typer.Option("--step-ms", help="Scripted: time between an answer's tokens.")
    ] = 4.0,
    tokens: Annotated[int, typer.Option("--tokens", help="Scripted: of each answer.")] = 1024,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Stream answers to many clients over HTTP: latencies, tokens/s, goodput."""
    if scripted:
        from lingflash.bench.over_http.stream import run_stream
        from lingflash.records.record import require

        require(url is None, "--url", url, "not with --scripted, which starts its own server")
        require(not serve_flag, "--serve-flag", serve_flag, "none with --scripted")
        asyncio.run(
            run_stream(
                model=model,
                num_clients=64 if clients is None else clients,
                num_tokens=tokens,
                step_ms=step_ms,
                num_first=200,
                repeats=5,
                out=out,
                allow_dirty=allow_dirty,
            )
        )
        return
    from lingflash.bench.over_http.serve import Lengths, serve_load

    asyncio.run(
        serve_load(
            url=url,
            model=model,
            api_key=api_key,
            num_clients=16 if clients is None else clients,
            num_requests=requests,
            lengths=Lengths(prompt_len, answer_len),
            slo_ttft_ms=slo_ttft_ms,
            slo_tpot_ms=slo_tpot_ms,
            seed=seed,
            serve_flags=serve_flag or [],
            out=out,
            allow_dirty=allow_dirty,
        )
    )


@app.command()
def soak(
    model: ModelOption = BUNDLED_MODEL,
    url: UrlOption = None,
    api_key: KeyOption = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Of load.")] = 5.0,
    clients: Annotated[int, typer.Option("--clients", help="At once.")] = 32,
    seed: SeedOption = 0,
    serve_flag: FlagsOption = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Good, leaving and malformed clients; exits with 1 if a block, slot or task is left behind."""
    from lingflash.bench.over_http.soak import run_soak

    is_clean = asyncio.run(
        run_soak(
            url=url,
            model=model,
            api_key=api_key,
            minutes=minutes,
            num_clients=clients,
            seed=seed,
            serve_flags=serve_flag or [],
            out=out,
            allow_dirty=allow_dirty,
        )
    )
    if not is_clean:
        raise typer.Exit(1)


JsonOption = Annotated[
    Path | None, typer.Option("--json", "--out", help="JSON file to write.", show_default=False)
]
CommitOption = Annotated[
    str | None,
    typer.Option("--commit", help="Of the sources, where they were copied without git's history."),
]


@app.command()
def latency(
    shape: Annotated[str, typer.Option("--shape", help="Published shape.")] = "ling-2.6-flash",
    weights: Annotated[str, typer.Option("--weights", help="dummy: random, never zero.")] = "dummy",
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="bf16, fp8, int4 (as published), int4-g128, int4-fp8 or int4-g32-fp8.",
        ),
    ] = "fp8",
    layers: Annotated[
        int | None, typer.Option("--layers", help="Fewer than the shape has.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", help="Sequences that decode; repeat the flag.")
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option("--context", help="Tokens of each; repeat the flag.")
    ] = None,
    prefill: Annotated[
        list[int] | None, typer.Option("--prefill", help="Prompts to time; repeat the flag.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Rounds, the first not counted.")] = 6,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Also a table of the kernels.")
    ] = False,
    engine: Annotated[
        list[int] | None,
        typer.Option(
            "--engine", help="Sequences to time the whole engine's steps for; repeat the flag."
        ),
    ] = None,
    turn: Annotated[
        list[int] | None,
        typer.Option(
            "--turn",
            help="New tokens of a turn whose first token is timed after each context, with the "
            "prefix cache; repeat the flag.",
        ),
    ] = None,
    out: JsonOption = None,
    allow_dirty: DirtyOption = False,
    commit: CommitOption = None,
) -> None:
    """Decode steps and prefill of a model of the true shapes with random weights, on one GPU."""
    from lingflash.bench.on_gpu.latency import run_latency
    from lingflash.records.record import require

    require(weights == "dummy", "--weights", weights, "dummy")
    run_latency(
        shape=shape,
        format_name=format_name,
        layers=layers,
        batches=batch or [1, 32],
        contexts=context or [1024],
        prefills=prefill or [],
        repeats=repeats,
        kernels=kernels,
        engine=engine or [],
        turns=turn or [],
        out=out,
        allow_dirty=allow_dirty,
        commit=commit,
    )


@app.command("kernels")
def kernels_command(
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="lightning, mla, prefill, decode; repeat the flag."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Medians of each.")] = 3,
    out: JsonOption = None,
    allow_dirty: DirtyOption = False,
    commit: CommitOption = None,
) -> None:
    """Every kernel at Ling-2.6-flash's shapes on one GPU; lightning beside fla, if it is there."""
    from lingflash.bench.on_gpu.kernels import GROUPS, run_kernels

    run_kernels(
        groups=group or list(GROUPS),
        repeats=repeats,
        out=out,
        allow_dirty=allow_dirty,
        commit=commit,
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Option("--folder", help="Where the JSON files are.")] = Path(
        "benchmarks"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether RESULTS.md is up to date.")
    ] = False,
) -> None:
    """Write RESULTS.md (and plots, if matplotlib is there) from the JSON files."""
    from lingflash.records.report import write_report

    if not write_report(folder, check=check):
        raise typer.Exit(1)
