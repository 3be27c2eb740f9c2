"""A model over several processes: rank 0 schedules and samples, the others do what it does.

Rank 0 has the engine. Before it runs its own part of the model, or moves memory of sequences, it
tells the others over a socket each: the name of the call and its arguments. What they compute
together goes through collectives (parallel/mesh.py). A rank that fails takes the engine down: ranks
that are out of step would wait for each other, or worse, not. A thread of rank 0 looks whether the
others' processes are alive, and ends all waiting for one that is not, on the device too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lingflash.cache.memory_ops import MemoryOp
from lingflash.core.config import EngineConfig
from lingflash.core.errors import ConfigError, EngineDeadError, LingflashError
from lingflash.engine.memory.cache_memory import CacheMemory
from lingflash.engine.memory.plan import MemoryPlan
from lingflash.engine.schedule.step import PendingStep, StepResult
from lingflash.link.frames import frame, read_frame
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.forward_batch import CacheTensors, ForwardBatch, Trace
from lingflash.parallel.mesh import Mesh, leave
from lingflash.parallel.shard import Shard

log = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
"""For a rank to load its part of the weights."""
STEP_TIMEOUT_S = 120.0
"""For the ranks to meet and for each exchange."""
_LOOK_S = 0.2
"""Between two looks at whether the ranks are alive."""


def write_message(sock: socket.socket, message: object) -> None:
    """Send one object; tensors travel as bytes."""
    sock.sendall(frame(encode(message)))


def read_message(sock: socket.socket, device: torch.device) -> Any:
    """Receive one object, its tensors on a device; None if the other side has hung up."""
    body = read_frame(sock)
    return None if body is None else decode(body, device)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if not isinstance(obj, Tensor):
            return None
        host = obj.detach().cpu()
        if host.dtype == torch.bfloat16:  # numpy has none
            host = host.contiguous().view(torch.int16)
        name = str(obj.dtype).removeprefix("torch.")
        return name, tuple(obj.shape), host.numpy().tobytes()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, device: torch.device) -> None:
        super().__init__(file)
        self._device = device

    def persistent_load(self, pid: Any) -> Tensor:
        name, shape, raw = pid
        if not raw:
            return torch.empty(shape, dtype=getattr(torch, name), device=self._device)
        flat = torch.frombuffer(bytearray(raw), dtype=getattr(torch, name))
        return flat.view(shape).to(self._device)


def encode(message: object) -> bytes:
    """Pickle plain data and tensors; for our own processes only."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(message)
    return file.getvalue()


def decode(body: bytes, device: torch.device) -> Any:
    """Undo encode(), with tensors on a device."""
    return _Unpickler(io.BytesIO(body), device).load()


class Ranks:
    """The processes of ranks 1 and up.

    Args:
        plan: memory of one rank.

    Raises:
        ConfigError: there are not enough GPUs, or this process has a split model already.
    """

    def __init__(self, config: EngineConfig, plan: MemoryPlan, folder: Path) -> None:
        size = config.tensor_parallel_size
        if plan.device == "cuda" and torch.cuda.device_count() < size:
            raise ConfigError(
                f"--tensor-parallel-size is {size}, but torch sees {torch.cuda.device_count()} "
                "GPUs; allowed: at most as many.",
                param="tensor_parallel_size",
            )
        if dist.is_initialized():
            raise ConfigError(
                "This process has a model with --tensor-parallel-size already; one is supported.",
                param="tensor_parallel_size",
            )
        self._meeting = Path(tempfile.mkdtemp(prefix="lingflash-"))
        self.init_method = f"file://{self._meeting}/meet"
        self._sockets: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        # Why the others are of no use any more; the first reason is the one that counts.
        self._failures: list[str] = []
        self._closing = threading.Event()
        given = self._sockets, self._processes, self._meeting, self._closing
        self.close = weakref.finalize(self, _close, *given)
        # For a process that ends at once; it need not leave the group.
        self.hang_up = partial(_hang_up, *given)
        for rank in range(1, size):
            ours, theirs = socket.socketpair()
            with theirs:
                self._sockets.append(ours)
                self._processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "lingflash.engine.process.rank_process",
                            str(theirs.fileno()),
                        ],
                        pass_fds=[theirs.fileno()],
                        stdin=subprocess.DEVNULL,
                    )
                )
            ours.settimeout(START_TIMEOUT_S)
            with self._watching():
                write_message(
                    ours, (Shard(rank, size), config, plan, str(folder), self.init_method)
                )

    def wait_loaded(self) -> None:
        """Return when all ranks have loaded their part.

        Raises:
            LingflashError: what the first of them said, or EngineDeadError if it said nothing.
        """
        for sock in self._sockets:
            with self._watching():
                answer = read_message(sock, torch.device("cpu"))
            if isinstance(answer, LingflashError):
                raise answer
            if answer != "loaded":
                raise self._dead("it ended while it loaded the model")
            sock.settimeout(STEP_TIMEOUT_S)

    def tell(self, call: str, *arguments: object) -> None:
        """Have the others make a call.

        Raises:
            EngineDeadError: one of them is gone or has failed.
        """
        self.check()
        message = frame(encode((call, arguments)))
        with self._watching():
            for sock in self._sockets:
                sock.sendall(message)

    def check(self) -> None:
        """Do nothing if all is well.

        Raises:
            EngineDeadError: one of the others is gone or has failed.
        """
        for process in self._processes:
            if process.poll() is not None:
                raise self._dead(_ended(process))
        if self._failures:
            raise self._dead("an earlier step failed")

    def watch(self, abandon: Callable[[], None]) -> None:
        """Have a thread end all waiting for a rank when its process ends.

        Args:
            abandon: called once, by that thread.
        """
        given = self._processes, self._closing, self._failures, abandon
        threading.Thread(target=_watch, args=given, daemon=True).start()

    def guard(self, launch: Callable[[], PendingStep]) -> PendingStep:
        """Launch a step whose results count only if all ranks are alive when they are there.

        Raises:
            EngineDeadError: here or by results(): a rank is gone, whatever error came of it.
        """
        with self._judged():
            pending = launch()

        def wait() -> list[StepResult]:
            with self._judged():
                return pending.results()

        return PendingStep(wait, is_under_way=pending.is_under_way)

    @contextlib.contextmanager
    def _judged(self) -> Any:
        try:
            yield
        finally:
            self.check()

    @contextlib.contextmanager
    def stay_together(self) -> Any:
        """Around rank 0's own part of a call: if it fails, the ranks are out of step for good."""
        try:
            yield
        except Exception as error:
            raise self._dead(f"{type(error).__name__}: {error}") from error

    @contextlib.contextmanager
    def _watching(self) -> Any:
        try:
            yield
        except OSError as error:
            raise self._dead(str(error)) from None

    def _dead(self, reason: str) -> EngineDeadError:
        self._failures.append(reason)
        return EngineDeadError(
            f"A rank of the split model has failed ({self._failures[0]}); see the log."
        )


def _ended(process: subprocess.Popen[bytes]) -> str:
    return f"its process ended with {process.returncode}"


def _watch(
    processes: list[subprocess.Popen[bytes]],
    closing: threading.Event,
    failures: list[str],
    abandon: Callable[[], None],
) -> None:
    """Thread: see Ranks.watch."""
    while not closing.wait(_LOOK_S):
        for process in processes:
            if process.poll() is not None:
                failures.append(_ended(process))
                log.error("a rank of the split model is gone: %s", _ended(process))
                abandon()
                return


def _close(*given: Any) -> None:
    """End the ranks and leave their group."""
    _hang_up(*given)
    leave()


def _hang_up(
    sockets: list[socket.socket],
    processes: list[subprocess.Popen[bytes]],
    meeting: Path,
    closing: threading.Event,
) -> None:
    """Hang up, which ends the ranks; those that do not end are killed."""
    closing.set()
    for sock in sockets:
        sock.close()
    for process in processes:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    shutil.rmtree(meeting, ignore_errors=True)


def connect(mesh: Mesh, ranks: Ranks, device: torch.device, peer_values: int) -> None:
    """Rank 0's side of the meeting, once all have loaded.

    Args:
        mesh: of this rank.
        ranks: the others.
        device: of this rank.
        peer_values: see Mesh.connect.

    Raises:
        LingflashError: a rank could not load its part, or did not come.
    """
    ranks.wait_loaded()
    ranks.tell("meet", peer_values)
    with ranks.stay_together():
        mesh.connect(ranks.init_method, device, STEP_TIMEOUT_S, peer_values)
    ranks.watch(mesh.abandon)


class LeadModel(BailingHybrid):
    """Rank 0's model: the same calls, made by all ranks.

    Args:
        model: rank 0's part; shared, not copied.
    """

    def __init__(self, model: BailingHybrid, ranks: Ranks) -> None:
        self.__dict__.update(model.__dict__)
        self._ranks = ranks

    def forward(
        self, batch: ForwardBatch, cache: CacheTensors, trace: Trace | None = None
    ) -> Tensor:
        self._ranks.tell("forward", batch)
        with self._ranks.stay_together():
            return super().forward(batch, cache, trace)

    def logits(self, hidden_states: Tensor, row_multiple: int = 1) -> Tensor:
        self._ranks.tell("logits", hidden_states, row_multiple)
        with self._ranks.stay_together():
            return super().logits(hidden_states, row_multiple)

    def mtp_forward(
        self,
        hidden_states: Tensor,
        next_token_ids: Tensor,
        batch: ForwardBatch,
        cache: CacheTensors,
        trace: Trace | None = None,
    ) -> Tensor:
        self._ranks.tell("mtp_forward", hidden_states, next_token_ids, batch)
        with self._ranks.stay_together():
            return super().mtp_forward(hidden_states, next_token_ids, batch, cache, trace)


class LeadMemory(CacheMemory):
    """Rank 0's memory: what is done to it is done on all ranks. There is no host tier.

    Args:
        tensors: rank 0's part.
    """

    def __init__(self, tensors: CacheTensors, ranks: Ranks) -> None:
        super().__init__(tensors)
        self._ranks = ranks

    def run(self, ops: list[MemoryOp]) -> None:
        if ops:
            self._ranks.tell("run_memory", ops)
        super().run(ops)
