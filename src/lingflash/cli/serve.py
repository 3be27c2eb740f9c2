"""`ling serve`: the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingflash.cli.options import (
    DEFAULTS,
    DeviceOption,
    DtypeOption,
    LoadingBar,
    MaxModelLenOption,
    MaxNumSeqsOption,
    MemoryFractionOption,
    ModelArgument,
    RopeScalingOption,
    make_engine_config,
    new_event_loop,
    served_name,
)
from lingflash.core.config import BUNDLED_MODEL, EngineConfig
from lingflash.core.env import SERVE_VARIABLES as ENV
from lingflash.core.errors import ConfigError

if TYPE_CHECKING:
    from lingflash.api.config import ServerConfig
    from lingflash.api.state import ServerState


def _option(flag: str, help: str) -> typer.models.OptionInfo:
    return typer.Option(flag, envvar=ENV[flag], help=help)


def serve(
    model: ModelArgument = BUNDLED_MODEL,
    host: Annotated[str, _option("--host", "Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, _option("--port", "0 takes a free one.")] = 8000,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_model_len: MaxModelLenOption = None,
    rope_scaling: RopeScalingOption = None,
    max_num_seqs: MaxNumSeqsOption = DEFAULTS.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int, _option("--max-num-batched-tokens", "Tokens computed in one step.")
    ] = DEFAULTS.max_num_batched_tokens,
    max_num_waiting: Annotated[
        int, _option("--max-num-waiting", "Requests that may wait; one more gets a 429.")
    ] = DEFAULTS.max_num_waiting,
    memory_fraction: MemoryFractionOption = DEFAULTS.memory_fraction,
    block_size: Annotated[
        int, _option("--block-size", "Tokens in a block of the paged cache.")
    ] = DEFAULTS.block_size,
    tensor_parallel_size: Annotated[
        int, _option("--tensor-parallel-size", "GPUs to split the model over.")
    ] = 1,
    num_speculative_tokens: Annotated[
        str,
        _option("--num-speculative-tokens", "Drafts per step from the MTP layer: auto, or 0 to 4."),
    ] = "auto",
    batch_invariant: Annotated[
        bool,
        _option("--batch-invariant", "Bitwise equal logits whatever the batch (CPU, slower)."),
    ] = False,
    prefix_caching: Annotated[
        bool,
        typer.Option(
            "--prefix-caching/--no-prefix-caching",
            envvar=ENV["--prefix-caching"],
            help="Keep computed prefixes for later requests.",
        ),
    ] = True,
    cache_self_test: Annotated[
        bool,
        typer.Option(
            "--cache-self-test/--no-cache-self-test",
            envvar=ENV["--cache-self-test"],
            help="Show at start-up that a prompt is found again.",
        ),
    ] = True,
    host_cache_gib: Annotated[
        float | None,
        _option(
            "--host-cache-gib",
            "Host memory for prefixes that the GPU has no room for; on the CPU none if left out.",
        ),
    ] = None,
    seed: Annotated[
        int | None, _option("--seed", "Of requests that give none, for repeatable runs.")
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        _option("--served-model-name", "Name that requests use; repeat it for several."),
    ] = None,
    api_key: Annotated[
        list[str] | None, _option("--api-key", "Accepted key; repeat it for several.")
    ] = None,
    admin_api_key: Annotated[
        str | None, _option("--admin-api-key", "Key of /reset_prefix_cache, which is off without.")
    ] = None,
    engine_restarts: Annotated[
        int, _option("--engine-restarts", "How often a dead engine is started again.")
    ] = 0,
    drain_timeout_s: Annotated[
        float, _option("--drain-timeout-s", "Time for running requests after SIGTERM.")
    ] = 30.0,
    request_timeout_s: Annotated[
        float | None, _option("--request-timeout-s", "Deadline of requests that give none.")
    ] = None,
    max_body_mb: Annotated[float, _option("--max-body-mb", "Largest request body, in MiB.")] = 32.0,
    responses_db: Annotated[
        Path | None,
        _option("--responses-db", "File that keeps stored responses; in memory if left out."),
    ] = None,
    responses_max_mb: Annotated[
        float, _option("--responses-max-mb", "Limit on stored responses, in MiB; 0 stores none.")
    ] = 64.0,
    responses_max_age_s: Annotated[
        float, _option("--responses-max-age-s", "Stored responses that are older are dropped.")
    ] = 30 * 86400.0,
    log_level: Annotated[str, _option("--log-level", "debug, info, warning or error.")] = "info",
) -> None:
    """Serve a model over the OpenAI API until SIGTERM or Ctrl-C.

    Each option can also be set by the environment variable shown beside it.
    """
    engine_config = make_engine_config(
        model,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        rope_scaling=rope_scaling,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_waiting=max_num_waiting,
        memory_fraction=memory_fraction,
        block_size=block_size,
        tensor_parallel_size=tensor_parallel_size,
        num_speculative_tokens=num_speculative_tokens,
        batch_invariant=batch_invariant,
        prefix_caching=prefix_caching,
        cache_self_test=cache_self_test,
        host_cache_gib=host_cache_gib,
        seed=seed,
    )
    if engine_restarts < 0:
        raise ConfigError(
            f"--engine-restarts is {engine_restarts}; allowed: 0 or more.", param="engine_restarts"
        )
    from lingflash.api.config import ServerConfig

    config = ServerConfig(
        served_model_names=tuple(served_model_name or [served_name(model)]),
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        admin_api_key=admin_api_key,
        drain_timeout_s=drain_timeout_s,
        request_timeout_s=request_timeout_s,
        max_body_bytes=int(max_body_mb * 2**20),
        responses_db=responses_db,
        responses_max_bytes=int(responses_max_mb * 2**20),
        responses_max_age_s=responses_max_age_s,
        log_level=log_level,
    )
    _serve(engine_config, config, engine_restarts)


def _serve(engine_config: EngineConfig, config: ServerConfig, engine_restarts: int) -> None:
    # Late: these take longer to import than `ling --help` may take in all.
    from lingflash.api.server import serve_engine
    from lingflash.core.hub import resolve_model
    from lingflash.core.log import setup_logging
    from lingflash.httpd.server import bind_socket
    from lingflash.link.ipc import IpcEngineClient

    setup_logging(config.log_level)
    with bind_socket(config.host, config.port) as sock:
        folder = resolve_model(engine_config.model)
        name = engine_config.model
        if name != BUNDLED_MODEL:
            engine_config = dataclasses.replace(engine_config, model=str(folder))
        config = dataclasses.replace(config, model_folder=folder)
        address = sock.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]

        def announce(state: ServerState) -> None:
            print(describe(state), file=sys.stderr)
            print(f"serving {name} on http://{host}:{address[1]}/v1", file=sys.stderr, flush=True)

        async def run() -> None:
            with LoadingBar(name) as bar:
                engine = IpcEngineClient(engine_config, engine_restarts, bar.update)
                await serve_engine(engine, config, sock, on_ready=announce)

        with asyncio.Runner(loop_factory=new_event_loop()) as runner:
            runner.run(run())


def describe(state: ServerState) -> str:
    """What was loaded and what it takes, for people."""
    info = state.engine.info
    lines = [f"{info.device}, {info.dtype}{', batch-invariant' if info.batch_invariant else ''}"]
    for label, num_bytes in info.memory_plan.items():
        lines.append(f"  {label:<10} {num_bytes / 2**20:>12,.1f} MiB")
    lines.append(
        f"  context    {info.max_model_len:>12,} tokens; {info.max_num_seqs} sequences at once, "
        f"{info.num_blocks * info.block_size:,} tokens in the cache"
    )
    lines.append(f"  prefix cache: {info.prefix_cache}")
    if state.text is None:
        lines.append("  no tokenizer.json: token-id mode, /v1/completions only")
    return "\n".join(lines)
