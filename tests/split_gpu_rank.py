"""One rank of a test on several GPUs: python split_gpu_rank.py RANK SIZE WORK.

Sums of many sizes, one by one and as graphs, in the peers' memory and by NCCL; exits with 0 if all
are right. Says on stdout which of the two it had.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lingflash.parallel.mesh import Mesh
from lingflash.parallel.shard import Shard

WIDTH, MOST_ROWS = 4096, 256


def check(mesh: Mesh, by_nccl: Mesh, generator: torch.Generator) -> None:
    rows = int(torch.randint(1, MOST_ROWS + 1, (), generator=generator))
    rows = 1 if rows % 3 == 0 else rows
    parts = 1 + rows % 9
    seed = int(torch.randint(2**31, (), generator=generator)) + mesh.shard.rank
    torch.cuda.manual_seed(seed)
    mine = torch.randn(rows, parts, WIDTH, device="cuda")
    everyone = torch.empty(mesh.shard.size, *mine.shape, device="cuda")
    dist.all_gather(list(everyone), mine)
    stream = torch.arange(rows * WIDTH, device="cuda").remainder(97).bfloat16().view(rows, WIDTH)
    total = everyone.double().sum((0, 2))
    for m in (mesh, by_nccl):
        found = stream.clone()
        m.add_sum(mine, found)
        expected = total + stream.double()
        assert (found.double() - expected).abs().max() <= 2**-7 * expected.abs().max()
        all_found = [torch.empty_like(found) for _ in everyone]
        dist.all_gather(all_found, found)
        assert all(torch.equal(x, found) for x in all_found), "ranks differ"
        alone = mine[:, 0].bfloat16()
        expected = everyone[:, :, 0].bfloat16().double().sum(0)
        found = m.sum(alone.clone())
        assert (found.double() - expected).abs().max() <= 2**-7 * expected.abs().max()
    wide = torch.randn(1 + rows // 4, 40_000, device="cuda")  # takes several rounds
    assert torch.equal(mesh.gather(wide), by_nccl.gather(wide))
    whole = mesh.gather(mine[:, 0].contiguous())
    assert torch.equal(whole, torch.cat(list(everyone[:, :, 0]), -1))


def check_graph(mesh: Mesh, rows: int) -> None:
    """Sums in a graph that feed each other, replayed with new inputs, beside the same by hand."""
    size, rank = mesh.shard.size, mesh.shard.rank
    parts = torch.zeros(rows, 2, WIDTH, device="cuda")
    stream = torch.zeros(rows, WIDTH, dtype=torch.float32, device="cuda")

    def run() -> None:
        for i in range(9):
            mesh.add_sum(parts + i, stream)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for step in range(50):
        parts.fill_(step + rank)
        stream.zero_()
        graph.replay()
        expected = sum(2 * (step + r + i) for r in range(size) for i in range(9))
        assert (stream == expected).all(), (rows, step, stream.unique()[:4].tolist(), expected)


def main(rank: int, size: int, work: Path) -> None:
    torch.cuda.set_device(rank)
    mesh, by_nccl = Mesh(Shard(rank, size)), Mesh(Shard(rank, size))
    device = torch.device("cuda", rank)
    torch.zeros(1, device=device)
    free = torch.cuda.mem_get_info(device)[0]
    mesh.connect(f"file://{work}/meet", device, 100, MOST_ROWS * WIDTH)
    generator = torch.Generator().manual_seed(7)
    for _ in range(100):
        check(mesh, by_nccl, generator)
    for rows in (1, 2, 128):
        check_graph(mesh, rows)
        check_graph(by_nccl, rows)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    print(f"exchanges take {(free - torch.cuda.mem_get_info(device)[0]) >> 20} MiB", end=", ")
    print("in the peers' memory" if mesh.peers is not None else "by NCCL alone", flush=True)
    mesh.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
