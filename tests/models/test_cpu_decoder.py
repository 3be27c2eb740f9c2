"""The compiled single-token path against the model it shortens, for every shape of the family."""

from __future__ import annotations

import subprocess

import pytest
import torch

from lingflash.kernels.cpu import address, build, load_kernels
from lingflash.models.cpu_decoder import CpuDecoder
from lingflash.models.forward_batch import make_forward_batch
from models_support import CPU, feed, load, new_cache
from oracle import FAMILY, write_checkpoint

pytestmark = pytest.mark.skipif(load_kernels() is None, reason="no C compiler on this machine")
TABLE = [5, 2, 9, 1, 30, 31]


def decode_batch(token, start):
    return make_forward_batch([[token]], [start], [TABLE], [2], [0], block_size=16, device=CPU)


@pytest.mark.parametrize("name", FAMILY)
def test_logits_when_decoded_in_c_then_equal_the_model_and_leave_the_same_memory(tmp_path, name):
    model = load(write_checkpoint(tmp_path / "m", FAMILY[name]), max_model_len=512)
    ids = torch.randint(0, 120, (60,), generator=torch.Generator().manual_seed(7)).tolist()
    plain, fast = new_cache(model), new_cache(model)
    decoder = CpuDecoder.create(model, fast)
    for cache in (plain, fast):
        feed(model, cache, ids[:11], blocks=TABLE, slot=2)
    for position in range(11, 60):  # crosses three anchors and three blocks
        batch = decode_batch(ids[position], position)
        expected = model.logits(model.forward(batch, plain))
        assert decoder.can_run(batch)
        actual = decoder.logits(decoder.forward(batch))
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)
    for name in ("latents", "states"):
        torch.testing.assert_close(getattr(fast, name), getattr(plain, name), atol=1e-4, rtol=1e-4)
    # The two paths may take turns on the same memory.
    torch.testing.assert_close(
        feed(model, fast, ids[:5], start=60, blocks=TABLE, slot=2),
        feed(model, plain, ids[:5], start=60, blocks=TABLE, slot=2),
        atol=5e-4,
        rtol=1e-4,
    )


def test_nan_when_in_the_weights_then_reaches_the_logits_and_nothing_crashes(tmp_path):
    model = load(write_checkpoint(tmp_path / "m"), max_model_len=512)
    model.w_embed[3] = float("nan")
    decoder = CpuDecoder.create(model, new_cache(model))
    assert not decoder.logits(decoder.forward(decode_batch(3, 0))).isfinite().any()


def test_decoder_when_the_dtype_is_not_float32_then_there_is_none(tmp_path):
    model = load(write_checkpoint(tmp_path / "m"), dtype=torch.bfloat16, max_model_len=512)
    assert CpuDecoder.create(model, new_cache(model)) is None


def test_batch_when_several_tokens_or_batch_invariant_then_is_not_for_c(tmp_path):
    model = load(write_checkpoint(tmp_path / "m"), max_model_len=512)
    decoder = CpuDecoder.create(model, new_cache(model))
    common = {"block_size": 16, "device": CPU}
    two = make_forward_batch([[1, 2]], [0], [TABLE], [0], [1], **common)
    pair = make_forward_batch([[1], [2]], [0, 0], [[1], [2]], [0, 1], [0, 1], **common)
    exact = make_forward_batch([[1]], [0], [TABLE], [0], [0], batch_invariant=True, **common)
    assert [decoder.can_run(b) for b in (two, pair, exact)] == [False] * 3


def test_address_when_the_tensor_lies_otherwise_then_refuses():
    for wrong in (torch.zeros(4, 3).t(), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="contiguous float32"):
            address(wrong)
    assert address(None) is None


def test_library_when_the_compiler_fails_or_is_absent_then_none_and_a_reason(
    monkeypatch, caplog, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def failing(*args, **kwargs):
        raise subprocess.CalledProcessError(1, "cc", stderr=b"no such flag")

    monkeypatch.setattr(build.subprocess, "run", failing)
    build._built.cache_clear()
    try:
        assert build.load_library() is None
        assert "no such flag" in caplog.text
        monkeypatch.setattr(build.shutil, "which", lambda name: None)
        build._built.cache_clear()
        with caplog.at_level("INFO", logger="lingflash"):
            assert build.load_library() is None
        assert "no C compiler" in caplog.text
    finally:
        monkeypatch.undo()
        build._built.cache_clear()
