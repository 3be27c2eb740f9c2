"""The one table of programs, by name."""

from __future__ import annotations

from lingflash.cli.connect_agents import AGENTS
from lingflash.cli.connect_libraries import LIBRARIES
from lingflash.cli.connect_program import Program

PROGRAMS: dict[str, Program] = {program.name: program for program in (*AGENTS, *LIBRARIES)}
