"""The table of all benchmarks: each is a command of `ling bench` and sections of RESULTS.md.

A row says in which room the benchmark lives, how its sections are called, and its flags: the
parameters of the function under it, which `run_NAME` in `ROOM/NAME.py` is called with. Rows stand
in the order of the report; `table.py` makes commands of them.

Each prints its numbers and, with --out, leaves a JSON with command, commit, machine and samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingflash.bench.table import BENCHMARKS, app, benchmark
from lingflash.core.config import BUNDLED_MODEL

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
    list[str],
    typer.Option(
        "--serve-flag", help="For the server that is started, such as --max-num-seqs=8; repeat."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of lengths, prompts and choices.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", "--out", help="JSON file to write.", show_default=False)
]
CommitOption = Annotated[
    str | None,
    typer.Option("--commit", help="Of the sources, where they were copied without git's history."),
]


@benchmark("on_gpu", latency="A model of the true shapes on GPUs")
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
    batches: Annotated[
        list[int] | None,
        typer.Option(
            "--batch",
            help="Sequences that decode; repeat the flag. 1 and 32 if nothing else is to be timed.",
        ),
    ] = None,
    contexts: Annotated[
        list[int], typer.Option("--context", help="Tokens of each; repeat the flag.")
    ] = [1024],
    prefills: Annotated[
        list[int], typer.Option("--prefill", help="Prompts to time; repeat the flag.")
    ] = [],
    repeats: Annotated[int, typer.Option("--repeats", help="Rounds, the first not counted.")] = 6,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Also a table of the kernels.")
    ] = False,
    engine: Annotated[
        list[int],
        typer.Option(
            "--engine", help="Sequences to time the whole engine's steps for; repeat the flag."
        ),
    ] = [],
    pauses: Annotated[
        list[int],
        typer.Option(
            "--pause",
            help="Tokens of a prompt that is read while 32 sequences decode, for the longest time "
            "between two of their tokens; repeat the flag.",
        ),
    ] = [],
    turns: Annotated[
        list[int],
        typer.Option(
            "--turn",
            help="New tokens of a turn whose first token is timed after each context, with the "
            "prefix cache; repeat the flag.",
        ),
    ] = [],
    tensor_parallel_size: Annotated[
        int,
        typer.Option("--tensor-parallel-size", min=1, help="GPUs that share the model."),
    ] = 1,
    out: JsonOption = None,
    allow_dirty: DirtyOption = False,
    commit: CommitOption = None,
) -> None:
    """Decode steps and prefill of a model of the true shapes with random weights, on GPUs."""


@benchmark("on_gpu", kernels="Kernels at the true shapes on one GPU")
def kernels(
    groups: Annotated[
        list[str],
        typer.Option("--group", help="Kernels to time; repeat the flag."),
    ] = ["lightning", "mla", "prefill", "decode"],
    repeats: Annotated[int, typer.Option("--repeats", help="Medians of each.")] = 3,
    out: JsonOption = None,
    allow_dirty: DirtyOption = False,
    commit: CommitOption = None,
) -> None:
    """Every kernel at Ling-2.6-flash's shapes on one GPU; lightning beside fla, if it is there."""


@benchmark("in_engine", throughput="Tokens per second on the CPU")
def throughput(
    model: ModelOption = BUNDLED_MODEL,
    prompt_lens: Annotated[
        list[int], typer.Option("--prompt-len", help="Prompts to time; repeat the flag.")
    ] = [128, 512, 2048],
    batch_sizes: Annotated[
        list[int], typer.Option("--batch", help="Batches to decode; repeat the flag.")
    ] = [1, 8, 32],
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


@benchmark("in_engine", agent="Conversations of an agent, with and without the prefix cache")
def agent(
    model: ModelOption = BUNDLED_MODEL,
    num_conversations: Annotated[
        int, typer.Option("--conversations", help="How many alternate.")
    ] = 4,
    max_turns: Annotated[int, typer.Option("--turns", help="Turns of each, if they fit.")] = 40,
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


@benchmark("in_engine", speculation="Drafts of the MTP layer on held-out tool calls")
def speculation(
    model: ModelOption = BUNDLED_MODEL,
    device: Annotated[str, typer.Option("--device", help="auto, cuda or cpu.")] = "auto",
    cases: Annotated[int, typer.Option("--cases", help="Held-out conversations to draw.")] = 60,
    num_seqs: Annotated[int, typer.Option("--num-seqs", help="Conversations at once.")] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Of each answer.")] = 200,
    repeats: Annotated[int, typer.Option("--repeats", help="Counted rounds.")] = 3,
    seed: SeedOption = 7,
    threads: ThreadsOption = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Accepted drafts of the MTP layer on held-out tool calls, and tokens/s with and without."""


@benchmark("in_engine", host="Host time of one step, without the model")
def host(
    model: ModelOption = BUNDLED_MODEL,
    num_seqs: Annotated[int, typer.Option("--num-seqs", help="Running sequences.")] = 64,
    num_steps: Annotated[int, typer.Option("--steps", help="Timed steps of each kind.")] = 300,
    threads: ThreadsOption = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Time of one engine step outside the model, part by part."""


@benchmark("in_engine", lightning="Lightning attention over long prompts")
def lightning(
    lengths: Annotated[
        list[int], typer.Option("--tokens", help="Prompt lengths, ascending; repeat the flag.")
    ] = [8192, 32768],
    repeats: Annotated[int, typer.Option("--repeats", help="Counted rounds.")] = 7,
    threads: ThreadsOption = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Time of the lightning attention operator; it must grow with the length, no faster."""


@benchmark("in_engine", mask="Token masks with a large vocabulary")
def mask(
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", help="Tokens of the made vocabulary.")
    ] = 157_184,
    repeats: Annotated[int, typer.Option("--repeats", help="Counted rounds.")] = 5,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Time of a token mask under schemas, tools and a regex, with a large vocabulary."""


@benchmark("in_engine", packed="Packed INT4 and FP8 of the true shapes on a CPU")
def packed(
    layers: Annotated[
        int, typer.Option("--layers", help="That a token reads; each is 113 MB of INT4.")
    ] = 8,
    prompt: Annotated[int, typer.Option("--prompt", help="Rows of a prompt.")] = 512,
    repeats: Annotated[int, typer.Option("--repeats", help="Counted rounds.")] = 5,
    threads: ThreadsOption = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Experts and a dense matrix in INT4 and FP8 on the CPU, for one token and for a prompt."""


@benchmark("in_engine", load="Memory while loading")
def load(
    layers: Annotated[
        int, typer.Option("--layers", help="Of the dummy model; 12 make 2.3 GB.")
    ] = 12,
    dtypes: Annotated[list[str], typer.Option("--dtype", help="Load as; repeat the flag.")] = [
        "bfloat16",
        "float32",
    ],
    repeats: Annotated[int, typer.Option("--repeats", help="Fresh processes for each.")] = 3,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the temporary checkpoint is written.")
    ] = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Peak anonymous memory of loading a large dummy checkpoint in a fresh process."""


@benchmark("over_http", serve="Serving load", stream="What the server costs by itself")
def serve(
    model: ModelOption = BUNDLED_MODEL,
    url: UrlOption = None,
    api_key: KeyOption = None,
    num_clients: Annotated[
        int | None, typer.Option("--clients", help="Requests in flight; 16, or 64 if scripted.")
    ] = None,
    num_requests: Annotated[int, typer.Option("--requests", help="Requests in all.")] = 128,
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
    serve_flags: FlagsOption = [],
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
    num_tokens: Annotated[int, typer.Option("--tokens", help="Scripted: of each answer.")] = 1024,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Stream answers to many clients over HTTP: latencies, tokens/s, goodput."""


@benchmark("over_http", gateway="What the gateway costs")
def gateway(
    num_clients: Annotated[int, typer.Option("--clients", help="Streams at once.")] = 64,
    num_tokens: Annotated[int, typer.Option("--tokens", help="Of each of their answers.")] = 512,
    step_ms: Annotated[
        float, typer.Option("--step-ms", help="Time between an answer's tokens.")
    ] = 4.0,
    num_first: Annotated[
        int, typer.Option("--first-tokens", help="Requests of one client, direct and through.")
    ] = 300,
    num_rounds: Annotated[int, typer.Option("--rounds", help="Counted rounds.")] = 5,
    num_memory: Annotated[
        int, typer.Option("--memory", help="Requests to watch the memory over; 0 leaves it out.")
    ] = 100_000,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """The gateway before a vendor that replays: added first token, tokens/s, accounts, memory."""


@benchmark(
    "over_http",
    cluster="Conversations over two replicas",
    simulation="A cluster simulated",
)
def cluster(
    num_conversations: Annotated[
        int, typer.Option("--conversations", help="How many alternate.")
    ] = 12,
    max_turns: Annotated[int, typer.Option("--turns", help="Of each.")] = 22,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", help="Of a replica; its memory follows it.")
    ] = 8,
    balances: Annotated[
        list[str], typer.Option("--balance", help="Only these ways; repeat the flag.")
    ] = ["belief", "consistent_hash", "least_load", "round_robin"],
    num_first: Annotated[
        int, typer.Option("--first-tokens", help="Requests, direct and through; 0 leaves it out.")
    ] = 200,
    seed: SeedOption = 0,
    trace_out: Annotated[
        Path | None,
        typer.Option("--trace-out", help="JSON lines of the recorded sessions' sizes to write."),
    ] = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Conversations over two replicas and a gateway: recomputed tokens, beside the simulator."""


@benchmark("over_http", soak="Endurance")
def soak(
    model: ModelOption = BUNDLED_MODEL,
    url: UrlOption = None,
    api_key: KeyOption = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Of load.")] = 5.0,
    num_clients: Annotated[int, typer.Option("--clients", help="At once.")] = 32,
    seed: SeedOption = 0,
    serve_flags: FlagsOption = [],
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Good, leaving and malformed clients; exits with 1 if a block, slot or task is left behind."""


@benchmark("over_http", sandbox="Sandboxes")
def sandbox(
    repeats: Annotated[int, typer.Option("--repeats", help="Of each.")] = 20,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Start of a sandbox from the pool and cold, a command, code, a command beside a fork bomb."""


@benchmark("over_http", hostile="Two keys, one hostile")
def hostile(
    model: ModelOption = BUNDLED_MODEL,
    minutes: Annotated[float, typer.Option("--minutes", help="Of attacks.")] = 10.0,
    attacks: Annotated[
        list[str], typer.Option("--attack", help="Only these, by name; repeat the flag.")
    ] = [],
    seed: SeedOption = 0,
    serve_flags: FlagsOption = [],
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Attack a server beside a good client; exits with 1 if that one notices."""


@benchmark("roofline", curves="Decode and prefill of four models, by rooflines and measured")
def curves(
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Compute what memory and products allow.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time one rank's slice on a GPU.")
    ] = False,
    lengths: Annotated[
        list[int], typer.Option("--length", help="Of outputs and prompts; repeat the flag.")
    ] = [1024, 4096, 16384, 32768, 65536],
    batch: Annotated[int, typer.Option("--batch", help="Sequences that decode.")] = 32,
    prompt_len: Annotated[
        int, typer.Option("--prompt-len", help="Roofline: prompt before the output.")
    ] = 1024,
    ranks: Annotated[int, typer.Option("--ranks", help="GPUs that share the model.")] = 4,
    device: Annotated[
        str, typer.Option("--device", help="Roofline: h20, h20-3e or h200.")
    ] = "h20-3e",
    format_name: Annotated[str, typer.Option("--format", help="fp8 or bf16.")] = "fp8",
    layers: Annotated[
        int | None, typer.Option("--layers", help="Measured: fewer than the model has.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Measured: counted rounds.")] = 3,
    vllm_python: Annotated[
        str | None,
        typer.Option("--vllm-python", help="Measured: Python that has vLLM; this one if none."),
    ] = None,
    beside: Annotated[
        list[Path], typer.Option("--beside", help="Earlier records for the page; repeat the flag.")
    ] = [],
    html: Annotated[
        Path | None, typer.Option("--html", help="A page of this run and --beside, and SVGs.")
    ] = None,
    out: JsonOption = None,
    allow_dirty: DirtyOption = False,
    commit: CommitOption = None,
) -> None:
    """The announcement's curves: decode against output length, prefill against the prompt's."""


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

    titles = {case: title for row in BENCHMARKS for case, title in row.titles.items()}
    if not write_report(folder, titles, check=check):
        raise typer.Exit(1)
