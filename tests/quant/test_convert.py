"""`ling convert`: what it writes, what it refuses, and what a kill leaves behind."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
from safetensors.torch import load_file

from lingflash.cli import main
from lingflash.core.errors import ConfigError, ModelLoadError
from lingflash.core.hub import bundled_folder
from lingflash.models.checkpoint import read_checkpoint
from lingflash.quant import convert as convert_module
from lingflash.quant.convert import convert, read_back
from lingflash.quant.scheme import read_formats
from models_support import load
from oracle import write_checkpoint
from quant_support import WIDE, job_for, quantize

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("source") / "m", WIDE)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_text(f"the {name}")
    return folder


def kinds(folder):
    """Kind of matrix to the label of its format."""
    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    found = {}
    for name, stored in read_formats(raw, read_checkpoint(folder)).items():
        parts = name.split(".")
        kind = "experts" if "experts" in parts else parts[-2]
        found.setdefault(kind, set()).add(stored.label)
    return found


def test_formats_when_converted_then_quantize_what_they_promise(source, tmp_path):
    mlp = {name: {"fp8 128x128"} for name in ("gate_proj", "up_proj", "down_proj")}
    inner = {name: {"fp8 128x128"} for name in ("query_key_value", "g_proj", "dense", "eh_proj")}
    assert kinds(quantize(source, tmp_path / "a", "fp8")) == {
        "experts": {"fp8 128x128"},
        **mlp,
        **inner,
    }
    assert kinds(quantize(source, tmp_path / "b", "int4")) == {"experts": {"int4 g32"}}
    channel = {name: {"fp8 channel"} for name in (*mlp, *inner, "q_a_proj", "q_b_proj")}
    assert kinds(quantize(source, tmp_path / "c", "int4-fp8")) == {
        "experts": {"int4 g32"},
        **channel,
        "kv_a_proj_with_mqa": {"fp8 channel"},
        "lm_head": {"fp8 channel"},
    }


def test_folder_when_converted_then_has_the_texts_and_nothing_of_the_work(source, tmp_path):
    out = quantize(source, tmp_path / "out", "int4")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [
            *SHARDS,
            "model-mtp-layer.safetensors",
            "model.safetensors.index.json",
            "config.json",
            "conversion_report.json",
            "tokenizer.json",
            "chat_template.jinja",
            "generation_config.json",
        ]
    )
    assert (out / "tokenizer.json").read_text() == "the tokenizer.json"
    assert not (tmp_path / "out.partial").exists()
    config = json.loads((out / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text())
    assert quantization["config_groups"]["group_0"]["weights"]["group_size"] == 32
    assert "lm_head" in quantization["ignore"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    entries = read_checkpoint(out)
    assert index["metadata"]["total_size"] == sum(e.num_bytes for e in entries.values())
    assert set(json.loads((out / "conversion_report.json").read_text())["errors"]) == {
        n for n in read_checkpoint(source) if ".experts." in n and "shared" not in n
    }


def test_errors_when_read_back_then_are_those_of_the_conversion(source, tmp_path):
    for name, low, high in (("fp8", 0.01, 0.04), ("int4", 0.04, 0.13)):
        job = job_for(source, tmp_path / name, name)
        errors = convert(job)
        found = dict(read_back(job.out, job, errors))
        assert found.keys() == errors.keys()
        assert all(low < error < high for error in errors.values())


def test_result_when_damaged_then_reading_back_says_so(source, tmp_path):
    job = job_for(source, tmp_path / "out", "fp8")
    errors = convert(job)
    path = job.out / SHARDS[0]
    data = bytearray(path.read_bytes())
    for at in range(len(data) - 4000, len(data)):
        data[at] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(ModelLoadError, match=r"damaged|has changed"):
        list(read_back(job.out, job, errors))


def test_source_when_float32_then_converts_too(source, tmp_path):
    from quant_support import write_dense

    dense = write_dense(quantize(source, tmp_path / "q", "fp8"), tmp_path / "f32")
    assert load(quantize(dense, tmp_path / "again", "int4")).is_quantized


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def test_conversion_when_killed_anywhere_then_nothing_loads_and_it_resumes(
    source, tmp_path, monkeypatch
):
    expected = quantize(source, tmp_path / "whole", "int4-fp8")
    real = convert_module.os.replace
    for calls in range(1, 15):
        out = tmp_path / f"out{calls}"
        job = job_for(source, out, "int4-fp8")
        seen = []

        def dying(a, b, limit=calls, seen=seen):
            seen.append(b)
            if len(seen) == limit:
                raise KilledError
            real(a, b)

        monkeypatch.setattr(convert_module.os, "replace", dying)
        try:
            convert(job)
        except KilledError:
            assert not out.exists()
            if len(seen) < 11:
                with pytest.raises(ModelLoadError, match="does not exist"):
                    load(job.partial)
            else:
                load(job.partial)  # complete but for its name
        else:
            assert calls > 9  # every place was tried
            break
        finally:
            monkeypatch.undo()
        done = [p.name for p in job.partial.glob("*.safetensors")]
        stamps = {name: (job.partial / name).stat().st_mtime_ns for name in done}
        manifest = job.partial / "conversion.json"
        kept = json.loads(manifest.read_text())["done"] if manifest.exists() else {}
        convert(job)
        for name in kept:
            assert (out / name).stat().st_mtime_ns == stamps[name]
        for path in expected.iterdir():
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    else:
        pytest.fail("the conversion never came to its end")


def test_partial_when_of_other_settings_or_files_then_is_refused(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(
            convert_module, "save_file", lambda *a, **k: (_ for _ in ()).throw(KilledError)
        )
        with pytest.raises(KilledError):
            convert(job_for(source, out, "int4"))
    with pytest.raises(ConfigError, match="other settings"):
        convert(job_for(source, out, "fp8"))
    (out.with_name("out.partial") / "conversion.json").write_text("{")
    with pytest.raises(ConfigError, match="no conversion that can go on"):
        convert(job_for(source, out, "int4"))


def test_disk_when_full_then_one_clear_error_and_it_resumes(source, tmp_path, monkeypatch):
    job = job_for(source, tmp_path / "out", "int4")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(convert_module.shutil, "disk_usage", lambda p: usage._replace(free=1000))
        with pytest.raises(ConfigError, match="GiB free, the conversion needs"):
            convert(job)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "save_file", full)
        with pytest.raises(ModelLoadError, match=r"No space left.*same command again"):
            convert(job)
    assert not job.out.exists()
    convert(job)
    assert load(job.out).is_quantized


def test_input_when_it_cannot_be_converted_then_is_refused(source, tmp_path):
    done = quantize(source, tmp_path / "done", "int4")
    with pytest.raises(ConfigError, match="quantized already"):
        convert(job_for(done, tmp_path / "again", "fp8"))
    with pytest.raises(ConfigError, match="exists and is not empty"):
        convert(job_for(source, done, "fp8"))
    with pytest.raises(ConfigError, match=r"does not divide the (160|96) columns"):
        convert(job_for(source, tmp_path / "g", "int4", 128))
    with pytest.raises(ConfigError, match="--group-size is 64; allowed: 32, 128"):
        convert(job_for(source, tmp_path / "g", "int4", 64))
    dense = write_checkpoint(
        tmp_path / "dense", {"first_k_dense_replace": 4, "num_nextn_predict_layers": 0}
    )
    with pytest.raises(ConfigError, match="nothing to convert"):
        convert(job_for(dense, tmp_path / "d", "int4"))


def test_nan_when_in_a_matrix_then_is_named(tmp_path):
    folder = write_checkpoint(tmp_path / "m", WIDE)
    tensors = load_file(folder / SHARDS[0])
    name = next(n for n in tensors if ".experts." in n and "shared" not in n)
    tensors[name][3, 3] = float("nan")
    convert_module.save_file(tensors, folder / SHARDS[0])
    with pytest.raises(ModelLoadError, match=f"{name} holds NaN"):
        convert(job_for(folder, tmp_path / "out", "int4"))


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_command_when_nano_is_verified_then_reports_errors_perplexity_and_calls(tmp_path, capsys):
    out = tmp_path / "nano"
    arguments = ["convert", "ling-nano", str(out), "--format", "int4", "--verify", "--cases", "3"]
    assert call(*arguments) == 0
    text = capsys.readouterr().out
    assert "experts.down_proj" in text
    assert "read back: 144 converted matrices as above" in text
    assert text.count("perplexity") == 2
    assert "of 3, of them with tool calls" in text
    assert (out / "tokenizer.json").read_bytes() == (
        bundled_folder() / "tokenizer.json"
    ).read_bytes()
    assert call(*arguments) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert call("doctor", str(out), "--device", "cpu") == 0
    assert "int4 g32 (144 matrices)" in capsys.readouterr().out


def test_command_when_misused_then_one_clear_line(tmp_path, capsys):
    assert call("convert", "ling-nano", str(tmp_path / "o"), "--format", "int8") == 2
    assert "allowed: fp8, int4, int4-fp8" in capsys.readouterr().err
    assert call("convert", "/nowhere", str(tmp_path / "o"), "--format", "fp8") == 1
    assert "/nowhere" in capsys.readouterr().err
    assert call("convert", "ling-nano", str(tmp_path / "o"), "--format", "fp8", "--cases", "0") == 2
