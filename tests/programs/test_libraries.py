"""Client libraries, unchanged, each in a namespace of its own with `ling connect`'s settings."""

from __future__ import annotations

import json

import pytest

from lingflash.cli.connect_program import Settings
from lingflash.cli.connect_programs import PROGRAMS
from program_agents import call
from program_cell import KEY, URL, write_png
from program_libraries import ANIMAL, LIBRARIES, TURNS, WEATHER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CONTEXT = 262_144


def run_driver(cell, commands, library, *arguments):
    program = PROGRAMS[library.program]
    settings = Settings(url=URL, model="ling-nano", key=KEY, context=CONTEXT)
    code = library.driver.read_text(encoding="utf-8")
    marker = "// $settings\n" if program.language == "js" else "# $settings\n"
    assert marker in code
    driver = cell.work / f"driver{library.driver.suffix}"
    driver.write_text(code.replace(marker, settings.fill(program.code)), encoding="utf-8")
    write_png(cell.work / "dot.png")
    if program.language == "js":
        (cell.work / "node_modules").symlink_to(commands.parent)
        command = ["node", driver.name]
    else:
        command = [str(commands / "python"), driver.name]
    done = cell.run([*command, *arguments])
    print(done)
    print(cell.record)
    assert done.code == 0
    return [line.partition(": ")[::2] for line in done.out.splitlines() if ": " in line]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.program)
def test_library_when_the_model_is_scripted_then_all_loops_end_and_continue(
    installed, make_cell, library
):
    def scenario(_):
        fields = {"tool": "get_weather", "turns": TURNS, "by_turns": True, "keys": [KEY]}
        spider = call("Animal", kind="dog", legs=4)
        answers = {"Name an animal": ANIMAL, "A spider": spider}
        if library.program == "smolagents":  # its loop ends with a call
            end = [*TURNS[:2], call("final_answer", answer=WEATHER)]
            return {**fields, "turns": end}
        return {
            **fields,
            "others": {f"{asked}[^<]*(<[^<]*){{3}}$": say for asked, say in answers.items()},
        }

    cell = make_cell(scenario)
    said = run_driver(cell, installed(library.lock), library)
    assert cell.record.refused() == []
    loops = {name: text for name, text in said if name in library.loops}
    assert loops == dict.fromkeys(library.loops, WEATHER)
    objects = {name: json.loads(text) for name, text in said if name in library.objects}
    assert objects == {name: json.loads(ANIMAL) for name in library.objects}
    if library.loops and library.continues:
        cell.record.check_continues(loops=len(library.loops), turns=len(TURNS))


@pytest.mark.parametrize(
    "library", [one for one in LIBRARIES if one.follows], ids=lambda library: library.program
)
def test_library_when_ling_nano_answers_then_the_tools_result_is_in_the_answer(
    installed, make_cell, library
):
    cell = make_cell()
    said = run_driver(cell, installed(library.lock), library, "")
    names = [name for name in (*library.loops, *library.objects) if name in dict(said)]
    assert names
    for name in names:
        expected = '"legs"' if name in library.objects else "light rain"
        assert expected in dict(said)[name]
