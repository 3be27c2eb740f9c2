"""What one card does, out of the records in benchmarks/: decode steps and prompts."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingflash.cluster.simulation.cache import CacheShape
from lingflash.cluster.simulation.replica import Rates
from lingflash.core.errors import ConfigError
from lingflash.core.settings import nearest

# Of Ling-2.6-flash: 4 MLA layers of 576 latents in 16 bits; 28 states of 32 x 128 x 128 in float32.
LATENT_BYTES = 4 * 576 * 2
STATE_BYTES = 28 * 32 * 128 * 128 * 4
# Of a card's memory what is used, and what of that graphs and activations take.
_USED, _WORKSPACE_BYTES = 0.9, 6 * 10**9
# The context and the prompt that rates are taken at.
_CONTEXT, _PROMPT = 1024, 8192
_DECODE = re.compile(rf"decode b(\d+) c{_CONTEXT} step")
_CPU_DECODE = re.compile(r"decode batch (\d+): lingflash")


@dataclass(frozen=True, slots=True)
class Card:
    """What was measured of a kind of card in one number format.

    Args:
        name: such as h200-fp8.
        step_s: of a decode step by its batch.
        prefill_tokens_per_s: of a prompt of 8,192 tokens; None where none was timed.
        weight_bytes, memory_bytes: of the model, of the card; None on a CPU.
        files: the records.
    """

    name: str
    step_s: Mapping[int, float]
    prefill_tokens_per_s: float | None
    weight_bytes: int | None
    memory_bytes: float | None
    files: tuple[str, ...]

    def decode_tokens_per_s(self, batch: int) -> float:
        """Of so many answers at once, as measured."""
        return batch / self.step_s[batch]

    def rates(self) -> Rates:
        """For a replica on one of them.

        Raises:
            ConfigError: no prompt was timed.
        """
        if self.prefill_tokens_per_s is None:
            raise ConfigError(f"--card {self.name}: no prompt was timed on it.", param="card")
        steps = sorted(self.step_s.items())
        return Rates(prefill_tokens_per_s=self.prefill_tokens_per_s, step_s=steps)

    def cache_tokens(self, max_num_seqs: int) -> int:
        """Tokens of cache beside the weights and the states of what runs; 0 if nothing is known."""
        if self.memory_bytes is None or self.weight_bytes is None:
            return 0
        left = _USED * self.memory_bytes - self.weight_bytes - _WORKSPACE_BYTES
        return max(int((left - max_num_seqs * STATE_BYTES) / LATENT_BYTES), 0)

    def cache(self, max_num_seqs: int, cache_tokens: int | None, grain: int) -> CacheShape:
        """For a replica on one of them.

        Raises:
            ConfigError: there is no room, or nobody knows how much.
        """
        tokens = self.cache_tokens(max_num_seqs) if cache_tokens is None else cache_tokens
        if tokens <= 0:
            raise ConfigError(
                f"--card {self.name} has no known room for a cache beside {max_num_seqs} answers; "
                "give --cache-tokens.",
                param="cache_tokens",
            )
        return CacheShape(
            tokens=tokens,
            max_num_seqs=max_num_seqs,
            checkpoint_tokens=STATE_BYTES // LATENT_BYTES,
            block_tokens=16 * grain,
            grain=grain,
        )


def read_cards(folder: Path) -> dict[str, Card]:
    """All cards of which something was measured, by name.

    Raises:
        ConfigError: there are no records.
    """
    steps: dict[str, dict[int, list[float]]] = {}
    prompts: dict[str, list[float]] = {}
    sizes: dict[str, tuple[int, float]] = {}
    files: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name = _name_of(data)
        if name is None:
            continue
        settings = data["settings"]
        if "weight_bytes" in settings:
            sizes[name] = settings["weight_bytes"], settings["gpu"]["memory_gib"] * 2**30
        for what, series in data["results"].items():
            decode, on_cpu = _DECODE.fullmatch(what), _CPU_DECODE.fullmatch(what)
            if decode:
                seconds = series["median"] / 1e3
                steps.setdefault(name, {}).setdefault(int(decode[1]), []).append(seconds)
            elif on_cpu:
                batch = int(on_cpu[1])
                steps.setdefault(name, {})[batch] = [batch / series["median"]]
            elif what in (f"prefill {_PROMPT}", "prefill 2048: lingflash"):
                prompts.setdefault(name, []).append(series["median"])
            else:
                continue
            if path.name not in files.setdefault(name, []):
                files[name].append(path.name)
    if not steps:
        raise ConfigError(f"--benchmarks {folder} has no records of decode steps.", param="folder")
    return {
        name: Card(
            name=name,
            step_s={batch: statistics.median(each) for batch, each in sorted(found.items())},
            prefill_tokens_per_s=statistics.median(prompts[name]) if name in prompts else None,
            weight_bytes=sizes[name][0] if name in sizes else None,
            memory_bytes=sizes[name][1] if name in sizes else None,
            files=tuple(files[name]),
        )
        for name, found in steps.items()
    }


def find_card(cards: Mapping[str, Card], name: str) -> Card:
    """The card of a name.

    Raises:
        ConfigError: there is none; the message names those that there are.
    """
    if name not in cards:
        raise ConfigError(
            f"--card is {name!r}{nearest(name, list(cards))} Measured: {', '.join(cards)}.",
            param="card",
        )
    return cards[name]


def _name_of(data: Mapping[str, Any]) -> str | None:
    """The card that a record is of; None if it is of several, of fewer layers or of none."""
    settings = data.get("settings", {})
    if data.get("case") == "throughput":
        return "cpu-ling-nano"
    if data.get("case") != "latency" or settings.get("layers") != 32:
        return None
    if settings.get("tensor_parallel_size", 1) != 1 or settings.get("shape") != "ling-2.6-flash":
        return None
    card = re.search(r"[A-Z]+\d+", settings["gpu"]["name"].removeprefix("NVIDIA "))
    return None if card is None else f"{card[0].lower()}-{settings['format']}"
