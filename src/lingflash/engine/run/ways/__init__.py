"""The ways to run a step. They are tried in this order, and the first that can run a step does.

    way              takes a step                                                  tokens drawn
    drawn_graph      of one token each on a GPU with kernels for the model, if     on the device,
                     temperature and seed alone choose what follows                so steps overlap
    sampled_graph    the same where something else chooses, too: a grammar, a      on the host
                     penalty, a bias, truncation, min_tokens, log probabilities
    prompt_graph     of up to 2,048 tokens with prompts among them, on a GPU        on the host
    cpu_decode       of one token of one sequence on a CPU with a C compiler, in   on the host
                     float32, not quantized, split or batch-invariant
    general_forward  of any kind: long prompts, drafts, prompt log probabilities, two   on the host
                     sequences on a CPU

There are no graphs with speculation: then a GPU decodes by general_forward. If several ranks share
the model, all of them run the graph (split_graphs.py).
"""

from __future__ import annotations

from typing import Protocol

from lingflash.engine.schedule.step import PendingStep, SchedulerOutput


class Way(Protocol):
    """One way to run a step; what it does to the memory first has been done."""

    def can_run(self, output: SchedulerOutput) -> bool: ...

    def launch(self, output: SchedulerOutput) -> PendingStep:
        """Begin to compute a step that it can run; all of it, if it cannot run behind the host."""
        ...
