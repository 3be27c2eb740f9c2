"""Commands that ask and measure: llm, Inspect, lm-evaluation-harness, GuideLLM."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from lingflash.cli.connect_program import Settings
from lingflash.cli.connect_programs import PROGRAMS
from lingflash.core.hub import bundled_folder
from program_cell import KEY, URL
from program_libraries import ANIMAL, TURNS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CONTEXT = 262_144
TASKS = Path(__file__).parent / "tasks"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def start(cell, commands, name, *arguments, **changes):
    """Run a program's own line of the table, with "..." replaced by the arguments."""
    program = PROGRAMS[name]
    settings = Settings(url=URL, model="ling-nano", key=KEY, context=CONTEXT)
    environment = cell.apply(program, settings)
    line = settings.fill_shell(program.start)
    for word, value in changes.items():
        assert word in line
        line = line.replace(word, value)
    command, *words = [word for word in shlex.split(line) if word != "..."]
    python = commands / "python"
    env = {**environment, **OFFLINE, "PATH": f"{commands}:{cell.path}"}
    done = cell.run([str(commands / command), *words, *arguments], environment=env, timeout_s=300)
    print(done, python)
    print(cell.record)
    return done


def weather(_):
    return {
        "tool": "get_weather",
        "turns": TURNS,
        "by_turns": True,
        "keys": [KEY],
        "others": {"Name an animal": ANIMAL},
    }


LLM_TOOL = """
def get_weather(city: str, day: str = "today") -> str:
    "Get the weather forecast for a city"
    return '{"forecast": "light rain", "high": 17}'
"""


@pytest.mark.parametrize("scenario", [weather, None], ids=["scripted", "ling-nano"])
def test_llm_when_it_has_a_tool_then_its_chain_ends(installed, make_cell, scenario):
    commands = installed("clients")
    cell = make_cell(scenario)
    (cell.work / "tool.py").write_text(LLM_TOOL)
    options = ["-o", "temperature", "0", "--functions", "tool.py"]
    program = PROGRAMS["llm"]
    cell.apply(program, Settings(url=URL, model="ling-nano", key=KEY, context=CONTEXT))
    question = "What will the weather be like in Lisbon tomorrow?"
    done = cell.run([str(commands / "llm"), "-m", "ling-nano", *options, question])
    print(done, cell.record)
    assert done.code == 0
    assert "light rain" in done.out
    again = cell.run([str(commands / "llm"), "-c", "Thank you"])
    assert again.code == 0, again
    if scenario:
        cell.record.check_continues(turns=3)
        schema = ["--schema", "kind, legs int", "Name an animal"]
        done = cell.run([str(commands / "llm"), "-m", "ling-nano", *schema])
        assert json.loads(done.out) == json.loads(ANIMAL), done
        assert cell.record.refused() == []


@pytest.mark.parametrize("scenario", [weather, None], ids=["scripted", "ling-nano"])
def test_inspect_when_a_task_has_a_tool_then_it_is_scored(installed, make_cell, scenario):
    commands = installed("evals")
    cell = make_cell(scenario)
    shutil.copy(Path(__file__).parent / "drivers" / "inspect-ai.py", cell.work / "task.py")
    options = ["--log-format", "json", "--display", "plain", "--temperature", "0"]
    done = start(cell, commands, "inspect-ai", *options)
    assert done.code == 0
    log = json.loads(next((cell.work / "logs").glob("*.json")).read_text())
    assert log["status"] == "success"
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 1.0
    assert cell.record.refused() == []
    if scenario:
        cell.record.check_continues(turns=3)


def test_lm_eval_when_ling_nano_answers_then_choices_and_texts_are_scored(installed, make_cell):
    commands = installed("evals")
    cell = make_cell()
    for file in TASKS.iterdir():
        shutil.copy(file, cell.work)
    options = ["capitals,greetings", "--include_path", ".", "--output_path", "out"]
    folder = {"CHECKPOINT_FOLDER": str(bundled_folder())}
    done = start(cell, commands, "lm-eval", *options, **folder)
    assert done.code == 0
    results = json.loads(next((cell.work / "out").rglob("results*.json")).read_text())["results"]
    assert 0.0 <= results["capitals"]["acc,none"] <= 1.0
    assert "exact_match,none" in results["greetings"]


@pytest.mark.parametrize("form", PROGRAMS["guidellm"].api)
def test_guidellm_when_it_measures_then_every_request_has_its_tokens(installed, make_cell, form):
    commands = installed("evals")
    cell = make_cell(lambda _: {"tool": "none", "turns": [], "keys": [KEY], "other": "word " * 40})
    (cell.work / "data.txt").write_text("".join(f"Tell me about number {k}.\n" for k in range(8)))
    options = [
        *("--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=4"),
        *("--data", "kind=text_file,path=data.txt", "--output", "kind=json,path=out.json"),
    ]
    done = start(cell, commands, "guidellm", *options, **{"/v1/chat/completions": form})
    assert done.code == 0
    assert cell.record.refused() == []
    metrics = json.loads((cell.work / "out.json").read_text())["benchmarks"][0]["metrics"]
    assert metrics["request_totals"]["successful"] == metrics["request_totals"]["total"] == 4
    assert metrics["output_token_count"]["successful"]["total_sum"] == 4 * 16
