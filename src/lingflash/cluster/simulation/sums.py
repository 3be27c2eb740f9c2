"""`ling cluster sums`: how many cards so many tokens a day take, from what was measured of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingflash.cluster.simulation.rates import LATENT_BYTES, STATE_BYTES, Card, read_cards
from lingflash.records.record import check_out, require

BATCHES = (32, 64, 128, 256)
HIT_RATES = (0.0, 0.6, 0.9, 0.95)
_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Tokens of a day, and the part of them that are answers."""

    tokens_per_day: float
    answer_share: float

    @property
    def prompt_tokens_per_s(self) -> float:
        return self.tokens_per_day * (1 - self.answer_share) / _DAY_S

    @property
    def answer_tokens_per_s(self) -> float:
        return self.tokens_per_day * self.answer_share / _DAY_S

    def cards(self, card: Card, batch: int, hit_rate: float) -> tuple[float, float]:
        """Cards that read the prompts, and that make the answers; one card does both in turns."""
        assert card.prefill_tokens_per_s is not None
        prefill = self.prompt_tokens_per_s * (1 - hit_rate) / card.prefill_tokens_per_s
        return prefill, self.answer_tokens_per_s / card.decode_tokens_per_s(batch)


def write_sums(
    folder: Path, *, tokens_per_day: float, answer_percent: float, out: Path | None
) -> str:
    """The page, which is also written to a file if one is named.

    Raises:
        ConfigError: a value is out of range, or there are no records.
    """
    require(tokens_per_day > 0, "--tokens-per-day", tokens_per_day, "above 0")
    require(0 < answer_percent < 100, "--answer-percent", answer_percent, "above 0, below 100")
    if out is not None:
        check_out(out, "--out")
    demand = Demand(tokens_per_day=tokens_per_day, answer_share=answer_percent / 100)
    page = "\n".join(_page(demand, list(read_cards(folder).values())))
    if out is not None:
        out.write_text(page, encoding="utf-8")
    return page


def _page(demand: Demand, cards: Sequence[Card]) -> list[str]:
    in_all = demand.prompt_tokens_per_s + demand.answer_tokens_per_s
    lines = [
        "# How many cards so many tokens a day take",
        "",
        f"Written by `ling cluster sums --tokens-per-day {demand.tokens_per_day:g} "
        f"--answer-percent {100 * demand.answer_share:g}` from the records in",
        "[benchmarks/](../benchmarks/RESULTS.md); do not edit. "
        f"{demand.tokens_per_day:,.0f} tokens a day are {in_all:,.0f} a second: "
        f"{demand.prompt_tokens_per_s:,.0f}",
        f"of prompts and {demand.answer_tokens_per_s:,.0f} of answers. A card reads prompts and "
        "makes answers in turns, so that what both take adds up:",
        "",
        "    cards = prompt tokens/s x (1 - hit rate) / prefill rate "
        "+ answer tokens/s / decode rate",
        "",
        "Prefill is that of 8,192 tokens, decode that of the given batch at a context of 1,024. "
        "The sum is of a day without",
        "peaks on cards that are never idle: **double it** for a peak of twice the mean, and "
        "`ling cluster simulate` says what",
        "the first tokens wait for then.",
        "",
        "| card | answers at once | decode, tokens/s | prefill, tokens/s | hits "
        + " | hits ".join(f"{100 * rate:.0f} %" for rate in HIT_RATES)
        + " | sessions kept |",
        "|---|---|---|---|" + "---|" * len(HIT_RATES) + "---|",
    ]
    for card in cards:
        if card.prefill_tokens_per_s is None or card.memory_bytes is None:
            continue
        for batch in BATCHES:
            if batch in card.step_s:
                lines.append(_row(demand, card, batch))
    lines += [
        "",
        "*Sessions kept*: those of 8,000 tokens whose cache and states the card holds beside the "
        f"answers under way, at {LATENT_BYTES:,} bytes",
        f"a token and {STATE_BYTES / 1e6:.0f} MB of states a session, with 90 % of its memory in "
        "use and 6 GB for graphs and activations; what",
        "does not fit there goes to the host's memory. A hit rate is what the gateway's routing "
        "keeps: it falls where a card keeps",
        "fewer sessions than come back to it.",
        "",
        "Records: " + ", ".join(sorted({file for card in cards for file in card.files})) + ".",
        "",
    ]
    return lines


def _row(demand: Demand, card: Card, batch: int) -> str:
    assert card.prefill_tokens_per_s is not None
    sums = [sum(demand.cards(card, batch, rate)) for rate in HIT_RATES]
    kept = card.cache_tokens(batch) // (8000 + STATE_BYTES // LATENT_BYTES)
    cells = [
        card.name,
        str(batch),
        f"{card.decode_tokens_per_s(batch):,.0f}",
        f"{card.prefill_tokens_per_s:,.0f}",
        *(f"{each:.1f}" for each in sums),
        f"{kept:,}" if kept else "none",
    ]
    return "| " + " | ".join(cells) + " |"
