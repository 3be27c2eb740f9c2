"""What a benchmark leaves behind: traceable, complete, and judged the right way round."""

import json

import pytest

from lingflash.core.errors import ConfigError
from lingflash.records import record as record_module
from lingflash.records.machine import (
    CpuClock,
    SourceState,
    describe_machine,
    others_busy_cores,
)
from lingflash.records.record import Record, Target, require

CLEAN = SourceState("c" * 40, dirty=False)
DIRTY = SourceState("c" * 40, dirty=True)


def test_record_when_the_tree_is_dirty_then_it_is_refused_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "source_state", lambda: DIRTY)
    with pytest.raises(ConfigError, match="uncommitted changes"):
        Record("host", tmp_path / "x.json")


def test_record_when_dirty_is_allowed_then_the_file_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "source_state", lambda: DIRTY)
    out = tmp_path / "x.json"
    Record("host", out, allow_dirty=True).finish()
    assert json.loads(out.read_text())["dirty"] is True


def test_record_when_printed_only_then_a_dirty_tree_is_fine(monkeypatch, capsys):
    monkeypatch.setattr(record_module, "source_state", lambda: DIRTY)
    Record("host", None).finish()
    assert "(dirty)" in capsys.readouterr().out


def test_record_when_the_folder_is_missing_then_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "source_state", lambda: CLEAN)
    with pytest.raises(ConfigError, match="does not exist"):
        Record("host", tmp_path / "no" / "x.json")


def test_finish_when_written_then_command_commit_machine_and_every_sample_are_there(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(record_module, "source_state", lambda: CLEAN)
    monkeypatch.setattr("sys.argv", ["/some/where/ling", "bench", "host", "--steps", "3 0"])
    out = tmp_path / "x.json"
    record = Record("host", out)
    record.add("step", "ms", [3.0, 1.0, 20.0])
    record.finish()
    data = json.loads(out.read_text())
    assert data["command"] == "ling bench host --steps '3 0'"
    assert data["commit"] == "c" * 40
    assert data["machine"] == describe_machine()
    assert data["results"]["step"] == {
        "unit": "ms",
        "median": 3.0,
        "min": 1.0,
        "max": 20.0,
        "samples": [3.0, 1.0, 20.0],
    }
    assert "/some/where" not in out.read_text()
    assert '"samples": [ 3.0, 1.0, 20.0 ]' in out.read_text()


@pytest.mark.parametrize(
    ("kind", "value", "met"),
    [("at most", 1.0, True), ("at most", 1.1, False), ("at least", 1.0, True),
     ("at least", 0.9, False), ("at least", float("nan"), False), ("at most", float("nan"), False)],
)  # fmt: skip
def test_target_when_compared_then_the_limit_itself_is_met_and_nan_never_is(kind, value, met):
    assert Target("x", value, 1.0, kind).is_met is met


def test_require_when_wrong_then_flag_value_and_allowed_are_named():
    with pytest.raises(ConfigError, match=r"--repeats is 0; allowed: 1 or more\.") as info:
        require(False, "--repeats", 0, "1 or more")
    assert info.value.param == "repeats"


def test_others_busy_cores_when_only_we_work_then_our_own_time_is_not_counted():
    start = CpuClock.now()
    assert start is not None
    busy = CpuClock(start.wall_s - 10.0, start.busy_s - 12.0, start.own_s - 10.0)
    assert others_busy_cores(busy) == pytest.approx(0.2, abs=0.05)
    assert others_busy_cores(None) is None
