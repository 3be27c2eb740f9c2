"""One rank of a test: python tensor_parallel_rank.py RANK SIZE WORK, with WORK/cases.json.

Writes WORK/<case>-<rank>.safetensors with logits of a prompt fed whole and in pieces, and of the
MTP layer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

from lingflash.models.forward_batch import make_forward_batch
from lingflash.parallel.mesh import Mesh
from lingflash.parallel.shard import Shard
from models_support import CPU, feed_in_chunks, load, new_cache


def run_case(folder: Path, token_ids: list[int], mesh: Mesh) -> dict[str, torch.Tensor]:
    model = load(folder, max_model_len=256, mesh=mesh)
    whole, cache = feed_in_chunks(model, token_ids, 1000)
    found = {"whole": whole, "latents": cache.latents.clone()}
    found["pieces"], _ = feed_in_chunks(model, token_ids, 5)
    if model.mtp is not None:
        batch = make_forward_batch(
            [token_ids], [0], [list(range(3, 10))], [1], [], block_size=16, device=CPU
        )
        cache = new_cache(model)
        hidden = model.forward(batch, cache)
        out = model.mtp_forward(hidden, torch.tensor(token_ids), batch, cache)
        found["mtp"] = model.logits(out)
    return found


def main(rank: int, size: int, work: Path) -> None:
    torch.set_num_threads(1)
    mesh = Mesh(Shard(rank, size))
    mesh.connect(f"file://{work}/meet", CPU, timeout_s=150)
    for name, (folder, token_ids) in json.loads((work / "cases.json").read_text()).items():
        found = run_case(Path(folder), token_ids, mesh)
        if rank == 0 or name == "plain":
            save_file(found, work / f"{name}-{rank}.safetensors")
    mesh.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
