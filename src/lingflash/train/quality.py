"""What a checkpoint of any number format answers, by the model that serves it.

Teacher forcing: each token of the right answer is compared with the model's likeliest one, as in
greedy decoding, and its probability is counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.forward_batch import CacheTensors, make_forward_batch
from lingflash.models.loader import load_model
from lingflash.train.data.heldout import Case
from lingflash.train.evaluate import expected_text, prompt_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BLOCK = 16
_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Quality:
    """Scores over a list of cases.

    Args:
        perplexity: exp of the mean negative log probability of the answers' tokens.
        num_exact: cases whose every token was the likeliest.
        num_exact_calls, num_calls: the same of the cases whose answer is one or more tool calls.
    """

    perplexity: float
    num_exact: int
    num_cases: int
    num_exact_calls: int
    num_calls: int


def answer_quality(folder: Path, tokenizer: Tokenizer, cases: list[Case]) -> Quality:
    """Score a checkpoint in float32 on the CPU.

    Args:
        cases: prompts of at most 4,096 tokens with their right answers.

    Raises:
        ModelLoadError: the checkpoint cannot be loaded.
    """
    device = torch.device("cpu")
    model = load_model(folder, dtype=torch.float32, device=device, max_model_len=_CONTEXT)
    cache = _cache(model)
    total, num_tokens, num_exact, num_exact_calls, num_calls = 0.0, 0, 0, 0, 0
    for case in cases:
        prompt = tokenizer.encode(prompt_text(case), add_special_tokens=False).ids
        answer = tokenizer.encode(expected_text(case), add_special_tokens=False).ids
        cache.forget_slots([0])
        batch = make_forward_batch(
            [[*prompt, *answer[:-1]]],
            [0],
            [list(range(_CONTEXT // _BLOCK))],
            [0],
            [],
            block_size=_BLOCK,
            device=device,
        )
        hidden = model.forward(batch, cache)[len(prompt) - 1 :]
        logprobs = model.logits(hidden).log_softmax(-1)
        targets = torch.tensor(answer)
        total -= float(logprobs.gather(1, targets[:, None]).sum())
        num_tokens += len(answer)
        is_exact = torch.equal(logprobs.argmax(-1), targets)
        has_calls = "calls" in case["expected"]
        num_exact += is_exact
        num_calls += has_calls
        num_exact_calls += is_exact and has_calls
    return Quality(
        math.exp(total / max(num_tokens, 1)), num_exact, len(cases), num_exact_calls, num_calls
    )


def _cache(model: BailingHybrid) -> CacheTensors:
    return CacheTensors.zeros(
        model.config,
        num_latent_layers=model.num_latent_layers,
        num_blocks=_CONTEXT // _BLOCK,
        block_size=_BLOCK,
        num_slots=1,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
