"""Whether this machine can keep what --batch-invariant promises, seen before anything is served."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lingflash.core.errors import ConfigError
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.forward_batch import CacheTensors, make_forward_batch

# Enough for several rows per expert and for runs of one, a few and many row multiples.
_PROMPT_TOKENS = 100
_COMPANY = (1, 5, 16, 47, 64)
# Tokens of each piece and how many others are beside it: BLAS has ways of its own for few rows.
_PIECES = ((3, 5), (1, 0), (1, 1), (1, 3), (6, 0), (12, 0), (20, 2), (30, 0), (_PROMPT_TOKENS, 5))


def check_batch_invariance(
    model: BailingHybrid, allocate: Callable[[int, int], CacheTensors], block_size: int
) -> None:
    """Compute one prompt alone, then in pieces among others, and compare every bit of the logits.

    What a row's sum is made of in which order is up to the BLAS and the processor, so that no
    table of known machines would do.

    Args:
        model: float32 on the CPU.
        allocate: makes scratch memory from a number of sequences and a number of blocks.

    Raises:
        ConfigError: they differ, so --batch-invariant cannot be kept here.
    """
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.config.vocab_size
    longest = min(_PROMPT_TOKENS, model.max_model_len)

    def prompt(length: int) -> list[int]:
        return torch.randint(vocab_size, (min(length, longest),), generator=generator).tolist()

    prompts = [prompt(longest), *map(prompt, _COMPANY)]
    per_sequence = -(-longest // block_size)
    tables = [[i * per_sequence + j for j in range(per_sequence)] for i in range(len(prompts))]
    cache = allocate(len(prompts), len(prompts) * per_sequence)

    def compute(token_ids: list[list[int]], starts: list[int]) -> Tensor:
        """Logits of the first sequence's tokens."""
        count = len(token_ids)
        batch = make_forward_batch(
            token_ids,
            starts,
            tables[:count],
            list(range(count)),
            [],
            block_size=block_size,
            device=model.device,
            batch_invariant=True,
        )
        hidden = model.forward(batch, cache)[: len(token_ids[0])]
        return model.logits(hidden, batch.row_multiple)

    whole = compute(prompts[:1], [0])
    cache.forget_slots([0])
    parts, start = [], 0
    for size, company in _PIECES:
        piece = prompts[0][start : start + size]
        if piece:
            others = prompts[1 : 1 + company]
            parts.append(compute([piece, *others], [start] + [0] * company))
            cache.forget_slots(list(range(1, len(prompts))))
            start += len(piece)
    if not torch.equal(whole, torch.cat(parts)):
        raise ConfigError(
            "--batch-invariant: on this machine torch's matrix products give a token other bits "
            "among other tokens, so bitwise equality cannot be kept; serve without the flag.",
            param="batch_invariant",
        )
