"""Main program of rank 1 and up: python -m lingflash.engine.process.rank_process FD."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path

import torch

from lingflash.core.errors import LingflashError
from lingflash.core.log import flush_logs, setup_logging
from lingflash.engine.memory.cache_memory import CacheMemory
from lingflash.engine.memory.tensors import allocate_cache
from lingflash.engine.run.ranks import STEP_TIMEOUT_S, read_message, write_message
from lingflash.models.loader import load_model
from lingflash.parallel.mesh import Mesh

log = logging.getLogger(__name__)


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
    while (message := read_message(sock, device)) is not None:
        call, arguments = message
        if call == "meet":
            mesh.connect(init_method, device, STEP_TIMEOUT_S)
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
