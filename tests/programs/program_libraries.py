"""How each library is run: a driver that begins with the settings of `ling connect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from program_agents import call

WEATHER = "The forecast is light rain, the high is 17."
ANIMAL = '{"kind": "dog", "legs": 4}'
TURNS = (
    call("get_weather", city="Lisbon", day="tomorrow"),
    "Let me look again.\n" + call("get_weather", city="Porto"),
    WEATHER,
)
DRIVERS = Path(__file__).parent / "drivers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """One driver and what it must print.

    Args:
        program: its name in the table of `ling connect`, and of the driver.
        lock: what installs it.
        loops: names of the tool loops, as the driver prints them.
        objects: names of the structured answers.
        follows: whether ling-nano can follow its prompts.
        continues: whether it sends back what was said; smolagents writes calls anew, as text.
    """

    program: str
    lock: str
    loops: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    follows: bool = True
    continues: bool = True

    @property
    def driver(self) -> Path:
        """The program that uses it."""
        return next(DRIVERS.glob(f"{self.program}.*"))


_BOTH = ("chat", "chat streamed", "responses", "responses streamed")

LIBRARIES = (
    Library(
        program="ai-sdk",
        lock="js",
        loops=tuple(
            f"{api}{how}"
            for api in ("chat", "responses", "messages")
            for how in ("", " streamed", " picture")
        ),
        objects=tuple(
            f"{api} object{how}"
            for api in ("chat", "responses", "messages")
            for how in ("", " streamed")
        ),
    ),
    Library(
        program="openai-node",
        lock="js",
        loops=(
            *("runTools", "runTools streamed"),
            *("responses.parse", "responses.stream", "picture"),
        ),
        objects=("parse", "stream", "responses"),
    ),
    Library(
        program="langchain-js",
        lock="js",
        loops=_BOTH,
        objects=("chat object", "responses object"),
    ),
    Library(
        program="openai-agents-js",
        lock="js",
        loops=_BOTH,
        objects=("chat object", "responses object"),
    ),
    Library(
        program="openai-python",
        lock="clients",
        loops=(
            *("parse", "stream", "responses", "responses streamed", "responses dumped"),
            "picture",
        ),
        objects=("object", "responses object"),
    ),
    Library(
        program="instructor",
        lock="instructor",
        objects=("chat", "responses", "messages"),
    ),
    Library(
        program="smolagents",
        lock="clients",
        loops=("streamed False", "streamed True"),
        follows=False,
        continues=False,
    ),
    Library(program="haystack", lock="clients", loops=("at once", "streamed")),
    Library(program="autogen", lock="clients", loops=("at once", "streamed"), objects=("object",)),
)
