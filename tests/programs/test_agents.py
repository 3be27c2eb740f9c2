"""Coding agents, unchanged, each in a namespace of its own with the settings of `ling connect`."""

from __future__ import annotations

import pytest

from agents import AGENTS, ANSWER, SUMMARY, TASK, WORD
from cell import KEY, URL
from conftest import write_png
from lingflash.cli.connect_program import Settings
from lingflash.cli.connect_programs import PROGRAMS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def run_agent(installed, make_cell):
    def run(name, turns, context=262_144):
        agent = AGENTS[name]
        commands = installed(agent.lock)

        def scenario(work):
            others = {agent.summarizes: agent.summary} if agent.summarizes else {}
            fields = {"tool": agent.shell, "turns": turns(agent)(str(work)), "others": others}
            return {**fields, "context": context, "keys": [KEY]}

        cell = make_cell(scenario)
        (cell.work / "notes.txt").write_text(f"the word is {WORD}\n")
        write_png(cell.work / "dot.png")
        for k in range(agent.num_long):
            lines = (f"line {i} of long file {k}, about {WORD}s\n" for i in range(agent.lines))
            (cell.work / f"long{k}.txt").write_text("".join(lines))
        settings = Settings(url=URL, model="ling-nano", key=KEY, context=context)
        environment = cell.apply(PROGRAMS[agent.program], settings)
        command = [str(commands / agent.command[0]), *agent.command[1:], TASK]
        done = cell.run(command, environment={**environment, **agent.environment})
        print(done)
        print(cell.record)
        return done, cell.record

    return run


@pytest.mark.parametrize("name", AGENTS)
def test_agent_when_it_calls_tools_then_each_prompt_continues_what_was_computed(run_agent, name):
    done, record = run_agent(name, lambda agent: agent.loop)
    assert done.code == 0
    assert ANSWER in done.out
    assert record.refused() == []
    record.check_continues(turns=3)
    assert f"the word is {WORD}" in record.last_prompt()
    assert "long0.txt" in record.last_prompt()  # what the second of two calls at once printed


@pytest.mark.parametrize("name", AGENTS)
def test_agent_when_a_tool_gives_a_picture_then_it_goes_on(run_agent, name):
    done, record = run_agent(name, lambda agent: agent.picture)
    assert done.code == 0
    assert ANSWER in done.out
    assert record.refused() == []
    record.check_continues(turns=3)
    assert f"the word is {WORD}" in record.last_prompt()


@pytest.mark.parametrize("name", AGENTS)
def test_agent_when_the_context_is_full_then_it_compacts_and_ends_well(run_agent, name):
    agent = AGENTS[name]
    done, record = run_agent(name, lambda agent: agent.fill, context=agent.full_context)
    assert done.code == 0
    assert ANSWER in done.out
    # Nothing is refused but what is too long.
    assert [entry for entry in record.refused() if "context" not in entry["answer"]] == []
    sizes = record.sizes()
    assert max(sizes) <= agent.full_context
    assert any(later < sooner for sooner, later in zip(sizes, sizes[1:], strict=False))
    assert agent.summarizes is None or SUMMARY in record.last_prompt()
