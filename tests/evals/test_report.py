"""The page of evidence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from lingflash.bench.command import BENCHMARKS
from lingflash.cli import _run, report_errors
from lingflash.evals.report import CLAIMS, evidence_json, evidence_page, load_evaluations
from lingflash.evals.summary import Summary
from lingflash.records.report import load_records

ROOT = Path(__file__).parents[2]


def evaluation(model="ling-nano", task="bfcl", tokens=True):
    lines = [
        {
            "id": f"i{n}", "category": "<b>", "solved": n % 2 == 0,
            "tokens": {"prompt": 5, "completion": 9, "reasoning": 0} if tokens else None,
            "run": {"cached": 0},
        }
        for n in range(10)
    ]  # fmt: skip
    summary = Summary.of(lines)
    return {
        "schema": 1, "case": "eval", "command": "ling eval <x>", "commit": "c" * 40,
        "dirty": False, "title": "x", "file": "x.json",
        "date": "2026-11-30T00:00:00Z", "machine": {"cpu": "A CPU (family 1)"},
        "settings": {"task": task, "model": model}, "notes": ["a & b"],
        "derived": {
            "all": summary.whole.as_dict(),
            "categories": {n: g.as_dict() for n, g in summary.categories.items()},
        },
    }  # fmt: skip


def test_page_when_nothing_is_there_then_every_claim_is_not_measured():
    text = evidence_page([], [], [])
    assert text.count(">not measured<") == len(CLAIMS)
    assert "None is committed." in text


def test_page_of_the_committed_records_then_it_is_small_and_needs_nothing_else(tmp_path):
    shutil.copytree(ROOT / "benchmarks", tmp_path / "b")
    (tmp_path / "b" / "evals").mkdir(exist_ok=True)
    for name, tokens in (("one", True), ("two", False)):
        path = tmp_path / "b" / "evals" / f"{name}.json"
        path.write_text(json.dumps(evaluation(tokens=tokens)))
    words = ["report", "--folder", str(tmp_path / "b"), "--out", str(tmp_path / "e.html")]
    assert report_errors(lambda: _run(words)) == 0
    text = (tmp_path / "e.html").read_text()
    assert len(text) < 3_000_000
    assert not re.search(r"""\b(?:src|href)\s*=|url\(|@import|<script|http-equiv""", text)
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert "by ling-nano" in text
    assert "ling eval &lt;x&gt;" in text
    assert "<b>" not in text
    titles = {case: title for row in BENCHMARKS for case, title in row.titles.items()}
    for record in load_records(ROOT / "benchmarks", titles):
        assert f'<td data-of="file">{record["file"]}</td>' in text


def test_json_then_the_same_claims_and_records_as_the_page():
    told = evidence_json([], [evaluation(model="some-model")])
    found = {each["claim"]: each for each in told["claims"]}
    assert list(found) == [claim.what for claim in CLAIMS]
    (figure,) = found["BFCL-V4"]["here"]
    assert figure["text"] == "50.0 (20.0 to 80.0) on 10 items, by some-model"
    assert (figure["command"], figure["machine"]) == ("ling eval <x>", "A CPU")
    assert found["IFBench"]["here"] == []
    assert [each["file"] for each in told["records"]] == ["x.json"]


def test_page_then_a_limited_run_says_of_how_many_and_why_items_were_not_solved():
    record = evaluation(task="ruler-4000")
    record["settings"]["items_of_the_task"] = 6000
    record["derived"]["reasons"] = {"<refused>": 4, "": 1}
    text = evidence_page([], [record, evaluation(task="file-aime_2025")], [])
    row = text.split(">RULER (not announced; stands for long prompts)<")[1].split("</tr>")[0]
    assert "ruler-4000, 50.0 (20.0 to 80.0) on 10 of 6,000 items, by ling-nano" in row
    assert "Not solved, most often: &lt;refused&gt; (4), no reason (1)." in text
    row = text.split(">AIME 2025, MATH-500<")[1].split("</tr>")[0]
    assert "file-aime_2025, 50.0" in row


def test_page_then_another_models_figure_carries_its_name():
    text = evidence_page([], [evaluation(model="some-model")], [])
    row = text.split(">BFCL-V4<")[1].split("</tr>")[0]
    assert "50.0 (20.0 to 80.0) on 10 items, by some-model" in row
    assert "not measured" not in row


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "case": "host", "derived": {}}'])
def test_load_evaluations_when_a_file_is_no_record_then_it_is_named(tmp_path, text, capsys):
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "x.json").write_text(text)
    assert report_errors(lambda: _run(["report", "--folder", str(tmp_path)])) == 2
    assert "x.json is no record of `ling eval --record`" in capsys.readouterr().err


def test_load_evaluations_when_there_is_no_folder_then_there_are_none(tmp_path):
    assert load_evaluations(tmp_path / "evals") == []


def test_report_when_the_folder_is_missing_then_one_line(tmp_path, capsys):
    assert report_errors(lambda: _run(["report", "--folder", str(tmp_path / "no")])) == 2
    assert "--folder is" in capsys.readouterr().err
