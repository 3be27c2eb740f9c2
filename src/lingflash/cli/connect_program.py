"""What is known of a program that speaks to the server: its settings, as texts to fill in."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from string import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the texts of a program are filled with.

    Args:
        url: of the server, without a path.
        key: of the API; a server without keys takes any.
        context: of the server, in tokens.
    """

    url: str
    model: str
    key: str
    context: int

    def fill(self, text: str) -> str:
        """Put the values into a text of JSON, TOML, YAML, JavaScript or Python."""
        # A string of JSON is a string of the other four too.
        quoted = {name: json.dumps(value)[1:-1] for name, value in self._values().items()}
        return Template(text).substitute(quoted)

    def fill_shell(self, text: str) -> str:
        """Put the values into a command or the value of a variable."""
        return Template(text).substitute(
            {name: shlex.quote(value) for name, value in self._values().items()}
        )

    def _values(self) -> dict[str, str]:
        return {
            "url": self.url,
            "model": self.model,
            "key": self.key,
            "context": str(self.context),
            "output": str(min(8192, self.context // 4)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program or library, and the settings that it was run with.

    In each text $url stands for the server's URL without a path, $model, $key and $context for what
    they say, and $output for the longest answer to ask for.

    Args:
        name: as `ling connect` takes it.
        title: as its makers write it.
        package: in the registry that `registry` names, at the version that was run.
        api: the endpoints it was run with.
        min_context: tokens that its own prompt and some work need, counted with ling-nano's
            tokenizer; larger vocabularies need fewer.
        files: settings by file, relative to the home directory.
        environment: variables to set.
        code: how a library makes its client; `language` is python or js.
        start: the command that uses the settings.
        notes: what else one must know, in sentences.
    """

    name: str
    title: str
    package: str
    version: str
    registry: str
    api: tuple[str, ...]
    min_context: int = 1024
    calls_tools: bool = True
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    code: str = ""
    language: str = ""
    start: str = ""
    notes: str = ""
