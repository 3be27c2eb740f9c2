"""RULER: needles, chains of variables, word counts and questions in prompts of one length.

Prompts and scores are those of nvidia-long-context-eval, in an environment of its own. The prompts
are as long as wanted in tokens of the model, so its tokenizer is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from lingflash.core.config import BUNDLED_MODEL
from lingflash.core.errors import ConfigError
from lingflash.core.hub import bundled_folder
from lingflash.evals.environment import locked_versions
from lingflash.evals.package_process import PackageProcess
from lingflash.evals.task import Ask, Item, Verdict

CATEGORIES = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
)  # fmt: skip
SHORTEST = 4000  # as the package's own; some programs never end below their shortest prompt


class Ruler:
    """The benchmark at one length.

    Args:
        length: of prompt and answer, in tokens.
        tokenizer: a tokenizer.json, a folder that has one, or the name of the bundled model.
        categories: of CATEGORIES; all if none.

    Raises:
        ConfigError: one of them is not known, or missing.
    """

    needs_tools = False

    def __init__(
        self, length: int = SHORTEST, tokenizer: str | None = None, categories: Sequence[str] = ()
    ) -> None:
        for category in categories:
            if category not in CATEGORIES:
                raise ConfigError(
                    f"--category is {category}; allowed: {', '.join(CATEGORIES)}.",
                    param="category",
                )
        if length < SHORTEST:
            raise ConfigError(f"--length is {length}; allowed: {SHORTEST} or more.", param="length")
        self._categories = [c for c in CATEGORIES if c in (categories or CATEGORIES)]
        self._length, self._tokenizer = length, _tokenizer_file(tokenizer)
        self.name = f"ruler-{length}"
        left_out = [c for c in CATEGORIES if c not in self._categories]
        self.notes: Sequence[str] = (
            f"prompts and answers of {length:,} tokens, counted by {tokenizer}'s tokenizer",
            "solved if the answer has all that was wanted; RULER's own score, the share it has, is "
            "a column",
            *((f"left out: {', '.join(left_out)}",) if left_out else ()),
        )
        self._package = PackageProcess("ruler")
        self._items: list[Item] = []

    async def open(self) -> None:
        """See Task. Writes the first prompts of every category, so that none is missing later."""
        await self._package.start()
        path = str(self._tokenizer.resolve())
        number = await self._package.call(
            "load", length=self._length, tokenizer=path, tasks=self._categories
        )
        self._items = [
            Item(f"{c}-{index}", c, index) for c in self._categories for index in range(number)
        ]

    def versions(self) -> Mapping[str, str]:
        """See Task."""
        package = "nvidia-long-context-eval"
        digest = hashlib.sha256(self._tokenizer.read_bytes()).hexdigest()[:16]
        return {package: locked_versions("ruler")[package], "tokenizer": digest}

    def items(self) -> Sequence[Item]:
        """See Task."""
        return self._items

    async def close(self) -> None:
        """See Task."""
        await self._package.stop()

    async def attempt(self, item: Item, ask: Ask) -> Verdict:
        """See Task."""
        place = {"task": item.category, "index": item.data}
        prompt = await self._package.call("prompt", **place)
        reply = await ask(
            [{"role": "user", "content": prompt["text"]}], max_tokens=prompt["max_tokens"]
        )
        share = await self._package.call("score", **place, text=reply.content)
        return Verdict(share == 1, "" if share else "nothing found", {"ruler": share})


def _tokenizer_file(name: str | None) -> Path:
    if name is None:
        raise ConfigError(
            "--tokenizer is missing: ruler's prompts have a length in tokens of the model. Give "
            f"its folder, its tokenizer.json, or {BUNDLED_MODEL}.",
            param="tokenizer",
        )
    path = bundled_folder() if name == BUNDLED_MODEL else Path(name).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"--tokenizer is {name}; a tokenizer.json, a folder that has one, or {BUNDLED_MODEL} "
            "is needed.",
            param="tokenizer",
        )
    return path
