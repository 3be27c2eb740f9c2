"""Starts that cannot be: a sentence and an exit code, in bounded time and memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingflash.core.errors import ConfigError
from lingflash.engine.memory import planning
from oracle import write_checkpoint

TIME_LIMIT_S = 90
_SERVE = [
    *(sys.executable, "-c", "from lingflash.cli import main; main()", "serve", "--port", "0"),
    *("--max-num-seqs", "2", "--max-model-len", "64"),
]


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "m")


def start(folder, *arguments, address_space_bytes=None):
    """Run `ling serve` until it ends by itself; its exit code and what it said."""

    def limit():
        if address_space_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))

    done = subprocess.run(
        [*_SERVE, str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        preexec_fn=limit,
        check=False,
    )
    return done.returncode, done.stderr


def assert_sentence(result, *words):
    code, said = result
    assert code in (1, 2), said
    assert "Traceback" not in said
    *_, last = said.strip().splitlines()
    assert last.startswith("error: ")
    for word in words:
        assert word in last
    assert len(last) < 1000


def test_start_when_every_logit_is_nan_then_not_loaded(folder):
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name.endswith("norm.weight"):
                tensors[name] = torch.full_like(tensors[name], float("nan"))
        save_file(tensors, path)
    assert_sentence(start(folder), "NaN or infinite logits", "damaged")
    assert_sentence(start(folder, "--no-prefix-caching"), "NaN or infinite logits")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"num_experts": 10**9}, "num_experts"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_experts": 2**16, "num_hidden_layers": 2000}, "tensors"),
    ],
)
def test_start_when_config_has_absurd_numbers_then_named(folder, changes, word):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert_sentence(start(folder), word)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        ("config.json", '{"vocab_size": ' + "9" * 5000 + "}"),
        ("generation_config.json", '{"top_k": 1.5}'),
        ("generation_config.json", '{"eos_token_id": true}'),
        ("generation_config.json", '{"temperature": NaN}'),
    ],
)
def test_start_when_a_file_cannot_be_understood_then_named(folder, name, content):
    (folder / name).write_text(content)
    assert_sentence(start(folder), name)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_start_when_a_file_is_a_pipe_then_refused_and_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert_sentence(start(folder), name, "is a pipe")


def test_start_when_the_address_space_is_small_then_says_so(folder):
    assert_sentence(start(folder, address_space_bytes=600_000_000))


def test_memory_when_there_is_no_proc_then_asked_of_the_kernel_or_a_sentence(monkeypatch):
    read_text = Path.read_text

    def no_proc(self, *args, **kwargs):
        if self.is_relative_to("/proc"):
            raise FileNotFoundError(str(self))
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", no_proc)
    assert planning.available_memory_bytes(torch.device("cpu")) > 2**20
    monkeypatch.setattr(planning.os, "sysconf", int)  # a ValueError, as for an unknown name
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ConfigError, match="/proc"):
        planning.available_memory_bytes(torch.device("cpu"))
