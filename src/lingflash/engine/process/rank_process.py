"""Main program of rank 1 and up: python -m lingflash.engine.process.rank_process FD."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch

from lingflash.core.config import EngineConfig
from lingflash.core.errors import LingflashError, NotEnoughMemoryError
from lingflash.core.log import flush_logs, setup_logging
from lingflash.engine.memory.cache_memory import CacheMemory
from lingflash.engine.memory.plan import MemoryPlan, format_size
from lingflash.engine.memory.planning import available_memory_bytes
from lingflash.engine.memory.tensors import allocate_cache
from lingflash.engine.run.ranks import STEP_TIMEOUT_S, decode, read_message, write_message
from lingflash.engine.run.split_graphs import FollowingGraphs
from lingflash.link.frames import read_frame
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.cuda_decoder import CudaDecoder
from lingflash.models.forward_batch import CacheTensors
from lingflash.models.loader import load_model
from lingflash.parallel.mesh import Mesh

log = logging.getLogger(__name__)

# For a rank to end by itself once rank 0 has hung up.
_FAREWELL_S = 2.0


def main(fd: int) -> int:
    """Load this rank's part and follow rank 0 until it hangs up; the exit code."""
    # A Ctrl-C or a SIGTERM to the whole group is the server's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    start = read_message(sock, torch.device("cpu"))
    if start is None:
        return 0
    shard, config, plan, folder, init_method = start
    device = torch.device(plan.device)
    if device.type == "cuda":
        device = torch.device("cuda", shard.rank)
        torch.cuda.set_device(device)
    else:
        # The ranks are the threads.
        torch.set_num_threads(1)
    mesh = Mesh(shard)
    try:
        try:
            if device.type == "cuda":
                _check_memory(plan, config, device)
            model = load_model(
                Path(folder),
                dtype=plan.dtype,
                device=device,
                max_model_len=plan.max_model_len,
                rope_scaling=config.rope_scaling,
                mesh=mesh,
            )
            cache = allocate_cache(model, plan)
            memory = CacheMemory(cache)
        except LingflashError as error:
            write_message(sock, error)
            return 1
        write_message(sock, "loaded")
    except OSError:
        return 0  # rank 0 has given up
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sock, inbox), daemon=True).start()
    graphs = None
    while (body := inbox.get()) is not None:
        call, arguments = decode(body, device)
        if call == "meet":
            (peer_values,) = arguments
            mesh.connect(init_method, device, STEP_TIMEOUT_S, peer_values)
        elif call == "make_graphs":
            graphs = _graphs(model, cache, plan)
        elif call == "decode":
            assert graphs is not None, "told before make_graphs"
            graphs.follow(*arguments)
        elif call == "forward":
            (batch,) = arguments
            model.forward(batch, cache)
        elif call == "logits":
            rows, row_multiple = arguments
            model.logits(rows, row_multiple)
        elif call == "mtp_forward":
            hidden_states, next_token_ids, batch = arguments
            model.mtp_forward(hidden_states, next_token_ids, batch, cache)
        elif call == "run_memory":
            memory.run(*arguments)
        else:
            log.critical("rank %d was told to %r, which it cannot", shard.rank, call)
            return 1
    return 0


def _check_memory(plan: MemoryPlan, config: EngineConfig, device: torch.device) -> None:
    """Rank 0 made the plan for what its own GPU has free.

    Raises:
        NotEnoughMemoryError: this one has less.
    """
    allowed = int(available_memory_bytes(device) * config.memory_fraction)
    if allowed < plan.total_bytes:
        raise NotEnoughMemoryError(
            f"GPU {device.index} has {format_size(allowed).strip()} that may be used "
            f"(--memory-fraction {config.memory_fraction}), and each rank takes "
            f"{format_size(plan.total_bytes).strip()}, planned for what GPU 0 has free. End what "
            "else runs on it, or lower --memory-fraction."
        )


def _receive(sock: socket.socket, inbox: queue.SimpleQueue[bytes | None]) -> None:
    """Thread: what rank 0 says into the inbox, None at the end.

    Rank 0 may have ended in the middle of an exchange, for which this process would wait for long;
    a device that waits is freed with it.
    """
    with contextlib.suppress(OSError):
        while (body := read_frame(sock)) is not None:
            inbox.put(body)
    inbox.put(None)
    time.sleep(_FAREWELL_S)
    os._exit(0)


def _graphs(model: BailingHybrid, cache: CacheTensors, plan: MemoryPlan) -> FollowingGraphs:
    decoder = CudaDecoder.create(model, cache)
    assert decoder is not None, "rank 0 has one for the same shapes and formats"
    graphs = FollowingGraphs(
        decoder,
        cache,
        max_num_seqs=plan.num_state_slots,
        max_model_len=plan.max_model_len,
        block_size=plan.block_size,
    )
    graphs.capture_all()
    return graphs


if __name__ == "__main__":
    setup_logging(os.environ.get("LINGFLASH_LOG_LEVEL", "info"))
    try:
        code = main(int(sys.argv[1]))
    except Exception:
        log.exception("this rank ends, and the engine with it")
        code = 1
    flush_logs()
    # Peers may be gone already; a tidy farewell to them would only wait.
    os._exit(code)
