"""Named settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from lingflash.core.errors import ConfigError
from lingflash.train.data.stream import StreamConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a run does, apart from where and how long.

    Args:
        learning_rate: peak, of both optimizers.
        floor: last learning rate, as a part of the peak.
        warmup_steps: linear from zero.
        decay: part of the time in which the rate falls linearly.
        mtp_weight: of each of the MTP layer's losses.
        drafts: passes of the MTP layer over its own outputs, in the last part of the time.
        draft_part: that part; before it there is one pass.
        bias_rate: step of expert_bias towards balance.
        num_heldout: generated held-out cases in these evaluations.
        final_heldout: generated held-out cases in the last evaluation.
        vocab_size, max_position_embeddings: of the model, if more than the bundled one's; the
            tokens are Chinese characters.
    """

    name: str
    stream: StreamConfig = field(default_factory=StreamConfig)
    learning_rate: float = 4e-3
    floor: float = 0.02
    warmup_steps: int = 60
    decay: float = 0.45
    mtp_weight: float = 0.1
    drafts: int = 3
    draft_part: float = 0.35
    bias_rate: float = 0.003
    evaluate_every_s: float = 60.0
    save_every_s: float = 120.0
    num_heldout: int = 400
    final_heldout: int = 1000
    vocab_size: int = 0
    max_position_embeddings: int = 0


RECIPES: dict[str, Recipe] = {
    "nano": Recipe(name="nano"),
    # The second edition: from the weights of the first (--init-from), which can copy and call.
    # It has tokens for Chinese characters.
    "nano-second": Recipe(
        name="nano-second",
        stream=StreamConfig(copy_steps=0, short_steps=0, seed=20),
        learning_rate=3e-3,
        warmup_steps=100,
        decay=0.55,
        evaluate_every_s=120.0,
        save_every_s=150.0,
        num_heldout=200,
        vocab_size=3072,
        max_position_embeddings=32_768,
    ),
    # A short while more from a trained checkpoint (--init-from), without compilation.
    "nano-polish": Recipe(
        name="nano-polish",
        stream=StreamConfig(rows=16, row_tokens=2048, copy_steps=0, short_steps=0, seed=2),
        learning_rate=1.2e-3,
        warmup_steps=10,
        decay=0.9,
        evaluate_every_s=1e9,
        save_every_s=1e9,
        final_heldout=100,
    ),
    "smoke": Recipe(
        name="smoke",
        stream=StreamConfig(rows=2, row_tokens=1024, copy_steps=20, short_steps=40),
        evaluate_every_s=20.0,
        num_heldout=40,
        final_heldout=40,
    ),
}


def recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"--recipe is {name!r}; allowed: {', '.join(sorted(RECIPES))}.")
    return RECIPES[name]
