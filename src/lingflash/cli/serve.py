"""`ling serve`: the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

import typer

from lingflash.api.config import ServerConfig
from lingflash.cli.options import LoadingBar, new_event_loop, served_name, takes_options
from lingflash.cli.report import read_evidence
from lingflash.core.config import BUNDLED_MODEL, EngineConfig
from lingflash.core.extras import require_engine
from lingflash.httpd.keys import keys_of_file, with_keys_of_file

if TYPE_CHECKING:
    from lingflash.api.state import ServerState

logger = logging.getLogger("lingflash.cli")


@takes_options()
def serve(context: typer.Context, config: ServerConfig, engine_config: EngineConfig) -> None:
    """Serve a model over the OpenAI API until SIGTERM or Ctrl-C.

    Each option can also be set by the environment variable shown beside it.
    """
    require_engine()
    if not context.params["served_model_names"]:
        name = served_name(engine_config.model)
        config = dataclasses.replace(config, served_model_names=(name,))
    config = with_keys_of_file(config)
    if config.sandbox_key_file is not None:
        key = keys_of_file(config.sandbox_key_file, "--sandbox-key-file")[0]
        config = dataclasses.replace(config, sandbox_key=key)
    # Late: these take longer to import than `ling --help` may take in all.
    from lingflash.api.server import serve_engine
    from lingflash.core.hub import resolve_model
    from lingflash.core.log import log_event, setup_logging, tell
    from lingflash.httpd.page import PAGE_PATH
    from lingflash.httpd.server import bind_socket
    from lingflash.link.ipc import IpcEngineClient

    setup_logging(config.log_level)
    evidence = None if config.evidence is None else read_evidence(config.evidence)
    with bind_socket(config.host, config.port) as sock:
        if config.is_open:
            hint = "anybody who reaches it is served; see --api-key"
            fields = {"host": config.host, "hint": hint}
            log_event(logger, "no_api_key", fields, level=logging.WARNING)
        folder = resolve_model(engine_config.model)
        name = engine_config.model
        if name != BUNDLED_MODEL:
            engine_config = dataclasses.replace(engine_config, model=str(folder))
        config = dataclasses.replace(config, model_folder=folder)
        address = sock.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]

        def announce(state: ServerState) -> None:
            tell(describe(state))
            if config.has_page:
                tell(f"the page is on http://{host}:{address[1]}{PAGE_PATH}")
            tell(f"serving {name} on http://{host}:{address[1]}/v1")

        async def run() -> None:
            with LoadingBar(name) as bar:
                engine = IpcEngineClient(
                    engine_config,
                    config.engine_restarts,
                    bar.update,
                    config.engine_hang_timeout_s,
                )
                await serve_engine(engine, config, sock, on_ready=announce, evidence=evidence)

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
