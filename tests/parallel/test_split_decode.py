"""A split model's decode steps, told by rank 0: logits of one process, the same tokens on all."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import torch

from oracle import write_checkpoint

RANK = Path(__file__).parents[1] / "split_decode_rank.py"


def start(rank, size, work, sock):
    return subprocess.Popen(
        [sys.executable, str(RANK), str(rank), str(size), str(work), str(sock.fileno())],
        pass_fds=[sock.fileno()],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_decode_steps_when_the_model_is_split_then_are_those_of_one_process(tmp_path):
    changes = {"num_hidden_layers": 2, "layer_group_size": 2, "num_experts": 4, "n_group": 2}
    write_checkpoint(tmp_path / "m", changes | {"topk_group": 1})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ranks = [start(0, 1, tmp_path, ours), start(0, 2, tmp_path, ours)]
        ranks.append(start(1, 2, tmp_path, theirs))
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=160)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
    expected, found = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "lead"))
    for mine, theirs in zip(found["logits"], expected["logits"], strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).norm() < 0.05 * theirs.norm()
    followed = torch.load(tmp_path / "follower.pt")
    assert len(followed) == len(found["logits"]) + len(found["tokens"])
    for mine, theirs in zip(followed[4:], found["tokens"], strict=True):
        assert mine[: len(theirs)] == theirs
