"""A checkpoint's small files, mutated: a sentence, in bounded time and memory."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingflash.core import checkpoint_files
from lingflash.core.checkpoint_files import read_generation_config, read_json_object
from lingflash.core.errors import ModelLoadError
from lingflash.core.types import SamplingParams

DEEP = "[" * 100_000 + "]" * 100_000


def fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (fifo, "is a pipe"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read"),
        (lambda path: path.write_text('{"a": ' + DEEP + "}"), "nested too deeply"),
        (lambda path: path.write_text('{"a": ' + "9" * 5000 + "}"), "cannot be read as JSON"),
        (lambda path: path.write_bytes(b'{"a": "\xff"}'), "cannot be read as JSON"),
        (lambda path: path.write_text("[]"), "holds no JSON object"),
        (lambda path: path.write_text(""), "cannot be read as JSON"),
    ],
)
def test_file_when_it_is_no_json_object_then_a_sentence_names_it(tmp_path, make, says):
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(ModelLoadError, match=says) as caught:
        read_json_object(path)
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 500


def test_file_when_it_is_huge_then_refused_without_reading_it_all(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "MAX_JSON_BYTES", 2**20)
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ModelLoadError, match="over 1 MiB"):
        read_json_object(path)


def generation(tmp_path, **values):
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    return read_generation_config(tmp_path)


def test_generation_config_when_absent_or_usual_then_read(tmp_path):
    assert read_generation_config(tmp_path).sampling == {}
    found = generation(tmp_path, temperature=0.5, top_k=None, top_p=1, eos_token_id=[3, 4], x="y")
    assert found.sampling == {"temperature": 0.5, "top_p": 1}
    assert found.eos_token_ids == (3, 4)
    assert generation(tmp_path, do_sample=False, temperature=0.7).sampling["temperature"] == 0.0


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": 1.5},
        {"top_k": True},
        {"top_k": 2**63},
        {"top_k": -3},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": -5},
        {"temperature": [1]},
        {"top_p": 7},
        {"min_p": {}},
        {"repetition_penalty": 0},
        {"eos_token_id": True},
        {"eos_token_id": [1, False]},
        {"eos_token_id": 1.0},
        {"eos_token_id": "</s>"},
        {"eos_token_id": -1},
        {"eos_token_id": {"a": 1}},
    ],
)
def test_generation_config_when_a_value_is_none_of_a_request_then_refused(tmp_path, values):
    (name,) = values
    with pytest.raises(ModelLoadError, match=name) as caught:
        generation(tmp_path, **values)
    assert "generation_config.json" in caught.value.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(
    values=st.dictionaries(
        st.sampled_from(
            ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "eos_token_id"]
        ),
        json_values,
    )
)
def test_generation_config_when_anything_is_in_it_then_usable_or_refused(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    try:
        found = generation(folder, **values)
    except ModelLoadError:
        return
    SamplingParams(**found.sampling)
    assert all(type(i) is int for i in found.eos_token_ids)
