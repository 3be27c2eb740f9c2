"""Coding agents, unchanged, each in a namespace of its own with the settings of `ling connect`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from lingflash.cli.connect_program import Settings
from lingflash.cli.connect_programs import PROGRAMS
from program_agents import AGENTS, ANSWER, SUMMARY, TASK, WORD, call
from program_cell import KEY, URL, write_png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def run_agent(installed, make_cell):
    def run(name, turns, context=262_144, prepare=None, **more):
        agent = AGENTS[name]
        commands = installed(agent.lock)

        def scenario(work):
            others = {agent.summarizes: agent.summary} if agent.summarizes else {}
            fields = {"tool": agent.shell, "turns": turns(agent)(str(work)), "others": others}
            return {**fields, "context": context, "keys": [KEY], **more}

        cell = make_cell(scenario)
        (cell.work / "notes.txt").write_text(f"the word is {WORD}\n")
        write_png(cell.work / "dot.png")
        for k in range(agent.num_long):
            lines = (f"line {i} of long file {k}, about {WORD}s\n" for i in range(agent.lines))
            (cell.work / f"long{k}.txt").write_text("".join(lines))
        settings = Settings(url=URL, model="ling-nano", key=KEY, context=context)
        environment = cell.apply(PROGRAMS[agent.program], settings)
        if prepare is not None:
            prepare(cell)
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


@pytest.mark.parametrize("name", ["codex", "claude-code"])
def test_agent_when_behind_a_gateway_then_as_with_the_server_alone(run_agent, name):
    done, record = run_agent(name, lambda agent: agent.loop, is_behind_gateway=True)
    assert done.code == 0
    assert ANSWER in done.out
    assert record.refused() == []
    record.check_continues(turns=3)
    assert f"the word is {WORD}" in record.last_prompt()


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
    too_long = ("context", "prompt is too long")  # in OpenAI's words and in Anthropic's
    others = [r for r in record.refused() if not any(said in r["answer"] for said in too_long)]
    assert others == []
    sizes = record.sizes()
    assert max(sizes) <= agent.full_context
    assert any(later < sooner for sooner, later in itertools.pairwise(sizes))
    assert agent.summarizes is None or SUMMARY in record.last_prompt()


def test_codex_when_an_mcp_server_has_a_tool_then_it_runs_and_continues(run_agent):
    def add_server(cell):
        server = Path(__file__).parent / "drivers" / "mcp_server.py"
        with (cell.home / ".codex/config.toml").open("a") as config:
            config.write(f'[mcp_servers.demo]\ncommand = "{sys.executable}"\nargs = ["{server}"]\n')

    turns = [call("<<add>>", a=40, b=2), call("exec_command", cmd="cat notes.txt"), ANSWER]
    done, record = run_agent("codex", lambda _: lambda _: turns, prepare=add_server)
    assert done.code == 0
    assert ANSWER in done.out
    assert record.refused() == []
    record.check_continues(turns=3)
    assert "the sum is 42" in record.last_prompt()


@pytest.mark.parametrize("name", ["claude-code", "claude-code-newest"])
def test_claude_code_when_it_starts_a_sub_agent_then_its_model_is_served(run_agent, name):
    agent = call("<<Agent|Task>>", description="d", prompt="Find it.", subagent_type="Explore")
    turns = [agent, "The sub-agent found a heron.", ANSWER]
    done, record = run_agent(name, lambda _: lambda _: turns)
    assert done.code == 0
    assert ANSWER in done.out
    assert record.refused() == []
    assert "The sub-agent found a heron." in record.last_prompt()


def test_claude_code_when_it_searches_for_a_deferred_tool_then_it_goes_on(run_agent):
    search = call("ToolSearch", query="select:WebFetch", max_results=1)
    turns = [search, AGENTS["claude-code-newest"].run("cat notes.txt"), ANSWER]
    done, record = run_agent("claude-code-newest", lambda _: lambda _: turns)
    assert done.code == 0
    assert ANSWER in done.out
    assert record.refused() == []
    assert "WebFetch" in record.last_prompt()
    assert f"the word is {WORD}" in record.last_prompt()
