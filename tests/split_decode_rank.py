"""One rank of a test: python split_decode_rank.py RANK SIZE WORK FD, with a checkpoint in WORK/m.

Decodes as on a GPU, launch by launch in Triton's interpreter. Rank 0 schedules and says each step
through socket FD; it writes logits and drawn tokens to WORK/lead.pt, another rank its tokens to
WORK/follower.pt. With SIZE 1 there is nobody to be told.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "kernels"))

import torch

import conftest  # noqa: F401  (the kernels' tests patch the interpreter there)
from lingflash.cache.lease import Lease
from lingflash.core.types import SamplingParams
from lingflash.engine.run.cuda_graphs import DecodeGraphs
from lingflash.engine.run.ranks import decode, write_message
from lingflash.engine.run.split_graphs import FollowingGraphs, LeadGraphs
from lingflash.engine.schedule.step import ScheduledSequence
from lingflash.link.frames import read_frame
from lingflash.models.cuda_decoder import CudaDecoder
from lingflash.models.forward_batch import make_forward_batch
from lingflash.parallel.mesh import Mesh
from lingflash.parallel.shard import Shard
from models_support import BLOCK, CPU, load, new_cache

LENGTHS = {0: 14, 3: 5, 2: 16}


class Sequence:
    """Slot, blocks and tokens; sampled at a temperature that is the slot's number."""

    def __init__(self, slot: int, length: int) -> None:
        self.lease = Lease(slot, [4 + 8 * slot, 9 + 8 * slot])
        self.token_ids = [(7 * slot + 3 * t) % 100 for t in range(length)]
        self.sampling = SamplingParams(temperature=float(slot), seed=slot)
        self.choice = 0

    def tokens(self, start: int, count: int) -> list[int]:
        return self.token_ids[start : start + count]


class ToldOverSocket:
    """What LeadGraphs asks of Ranks, for one other rank."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def tell(self, *message: object) -> None:
        write_message(self._sock, message)

    def stay_together(self):
        return contextlib.nullcontext()


def lead(graphs: DecodeGraphs, sequences: list[Sequence]) -> dict[str, list]:
    """Steps of three sequences, one of which leaves; then three launched ahead of their tokens."""
    found = {"logits": [], "tokens": []}

    def items(ahead: int, leaving: bool) -> list[ScheduledSequence]:
        rows = sequences[::2] if leaving else sequences
        return [ScheduledSequence(s, len(s.token_ids) - 1 + ahead, 1, True) for s in rows]

    for step in range(3):
        logits = graphs.run(items(0, step == 2))
        found["logits"].append(logits.clone())
        for s in sequences:
            s.token_ids.append((5 * len(s.token_ids)) % 100)
    found["logits"].append(graphs.run(items(0, False)[:1]).clone())  # one row has other kernels
    sequences[0].token_ids.append(7)
    first, second = graphs.launch(items(0, False)), graphs.launch(items(1, False))
    found["tokens"].append(first())
    third = graphs.launch(items(2, True))
    found["tokens"] += [second(), third()]
    return found


def main(rank: int, size: int, work: Path, fd: int) -> None:
    torch.set_num_threads(1)
    mesh = Mesh(Shard(rank, size))
    if size > 1:
        mesh.connect(f"file://{work}/meet", CPU, timeout_s=150)
    model = load(work / "m", dtype=torch.bfloat16, mesh=mesh)
    cache = new_cache(model, slots=5, blocks=40)
    cache = type(cache)(
        cache.latents.bfloat16(), cache.states, cache.tail_k, cache.tail_v
    )  # fmt: skip
    sequences = [Sequence(slot, length) for slot, length in LENGTHS.items()]
    for s in sequences:
        batch = make_forward_batch(
            [s.token_ids[:-1]], [0], [s.lease.blocks], [s.lease.state_slot], [],
            block_size=BLOCK, device=CPU,
        )  # fmt: skip
        model.forward(batch, cache)
    given = CudaDecoder(model, cache), cache
    options = {"max_num_seqs": 4, "max_model_len": 64, "block_size": BLOCK, "use_graphs": False}
    if size == 1:
        torch.save(lead(DecodeGraphs(*given, **options), sequences), work / "one.pt")
        return
    sock = socket.socket(fileno=fd)
    if rank == 0:
        graphs = LeadGraphs(ToldOverSocket(sock), *given, **options)
        graphs.capture_all()
        torch.save(lead(graphs, sequences), work / "lead.pt")
        sock.close()
    else:
        graphs, tokens = FollowingGraphs(*given, **options), []
        while (body := read_frame(sock)) is not None:
            call, *arguments = decode(body, CPU)
            if call == "decode":
                tokens.append(graphs.follow(*arguments).tolist())
            else:
                assert call == "make_graphs"
        torch.save(tokens, work / "follower.pt")
    mesh.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
