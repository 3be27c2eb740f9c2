"""RESULTS.md: made from the JSON files, and the committed one is made from the committed ones."""

import json
from pathlib import Path

import pytest

from lingflash.bench.command import BENCHMARKS
from lingflash.cli import main
from lingflash.core.errors import ConfigError
from lingflash.records import record as record_module
from lingflash.records.machine import SourceState, command_line
from lingflash.records.record import Record, Target
from lingflash.records.report import load_records, render, write_report

COMMITTED = Path(__file__).parents[2] / "benchmarks"
TITLES = {case: title for row in BENCHMARKS for case, title in row.titles.items()}


def write_record(folder, case, name, *, met=True, dirty=False):
    record_module_state = SourceState("a" * 40, dirty)
    record = Record(case, None)
    record.source = record_module_state
    record.add("prefill 128: lingflash", "tokens/s", [2000.0, 3000.0, 1000.0])
    record.add("prefill 128: mlx-lm", "tokens/s", [100.0])
    record.targets.append(Target("prefill, times mlx-lm", 20.0, 10.0 if met else 40.0, "at least"))
    record.notes.append("a note")
    (folder / name).write_text(record_module.dump(record.as_dict()))


def test_render_when_given_records_then_it_shows_medians_ratio_promise_and_commit(tmp_path):
    write_record(tmp_path, "throughput", "cpu.json")
    text = render(load_records(tmp_path, TITLES))
    assert "| prefill 128 | 2,000 | 1,000 to 3,000 | 100 | 20.0x |" in text
    assert "| prefill, times mlx-lm | 20 | at least 10 | yes | [cpu.json](cpu.json) |" in text
    assert "a" * 12 in text
    assert "- a note" in text


def test_render_when_a_promise_is_broken_or_the_tree_was_dirty_then_it_says_so(tmp_path):
    write_record(tmp_path, "throughput", "cpu.json", met=False, dirty=True)
    text = render(load_records(tmp_path, TITLES))
    assert "**no**" in text
    assert "**with uncommitted changes**" in text


def test_load_records_when_several_then_they_come_in_the_order_of_the_report(tmp_path):
    for case, name in (("soak", "a.json"), ("throughput", "z.json"), ("host", "m.json")):
        write_record(tmp_path, case, name)
    assert [record["case"] for record in load_records(tmp_path, TITLES)] == [
        "throughput",
        "host",
        "soak",
    ]


def test_load_records_when_a_case_is_in_no_table_then_the_file_is_named(tmp_path):
    write_record(tmp_path, "forgotten", "x.json")
    with pytest.raises(ConfigError, match=r"x\.json: no benchmark's case is 'forgotten'"):
        load_records(tmp_path, TITLES)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 99}'])
def test_load_records_when_a_file_is_none_then_it_is_named(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.json"):
        load_records(tmp_path, TITLES)


def test_write_report_when_checked_then_a_changed_json_is_noticed(tmp_path, capsys):
    write_record(tmp_path, "host", "host.json")
    assert write_report(tmp_path, TITLES)
    assert write_report(tmp_path, TITLES, check=True)
    data = json.loads((tmp_path / "host.json").read_text())
    data["notes"] = ["something else"]
    (tmp_path / "host.json").write_text(json.dumps(data))
    assert not write_report(tmp_path, TITLES, check=True)
    assert "out of date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "code"),
    [(["--chekc"], 2), (["--folder", "no"], 2), (["--folder", ".", "--check"], 1)],
)
def test_report_when_the_flag_is_unknown_the_folder_missing_or_the_page_old_then_it_fails(
    tmp_path, monkeypatch, flags, code
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as info:
        main(["bench", "report", *flags])
    assert info.value.code == code


def test_committed_results_when_compared_with_the_committed_records_then_they_are_up_to_date():
    assert write_report(COMMITTED, TITLES, check=True)


def test_committed_records_when_read_then_each_has_a_commit_and_samples():
    for record in load_records(COMMITTED, TITLES):
        assert len(record["commit"]) == 40
        assert not record["dirty"], record["file"]
        assert all(series["samples"] for series in record["results"].values())


def test_report_when_a_gpu_was_measured_then_cases_are_a_table_and_a_plot(tmp_path):
    record = Record("latency", None)
    record.source = SourceState("a" * 40, False)
    record.settings = {
        "format": "fp8", "gpu": {"name": "GPU X", "memory_gib": 80.0, "cuda": "13.0"},
    }  # fmt: skip
    record.add("decode b1 c1024 step", "ms", [3.0, 3.1])
    record.derived["decode b1 c1024"] = {"tokens_per_s": 330.0, "fraction_of_read_ceiling": 0.5}
    ceilings = {"read_gb_per_s": {"what": "sum", "median": 4000.0, "samples": [4000.0]}}
    record.derived["ceilings"] = ceilings
    (tmp_path / "gpu.json").write_text(record_module.dump(record.as_dict()))
    write_report(tmp_path, TITLES)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "GPU X, 80.0 GiB" in text
    assert "- 4,000 read_gb_per_s (sum)" in text
    assert "| decode b1 c1024 | 330 | 0.5 |" in text
    assert "gpu.svg" in text
    assert "GPU X, fp8" in (tmp_path / "gpu.svg").read_text()


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/bin/ling", "bench", "host"], "ling bench host"),
        (["/some/where/lingflash/__main__.py", "bench", "kernels", "--out", "/out/x.json"],
         "python -m lingflash bench kernels --out x.json"),
        (["/some/where/lingflash/bench/on_gpu/latency.py", "--out", "/out/x.json", "--batch", "1"],
         "python -m lingflash.bench.on_gpu.latency --out x.json --batch 1"),
        (["/bin/ling", "bench", "cluster", "--trace-out", "/t/a.jsonl"],
         "ling bench cluster --trace-out a.jsonl"),
    ],
)  # fmt: skip
def test_command_line_when_a_module_is_run_then_names_it_without_folders(monkeypatch, argv, line):
    monkeypatch.setattr("sys.argv", argv)
    assert command_line() == line
