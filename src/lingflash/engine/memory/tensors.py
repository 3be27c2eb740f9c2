"""What a memory plan's sizes stand for: the tensors of all sequences, and the graphs' rows."""

from __future__ import annotations

from lingflash.engine.memory.plan import MemoryPlan
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.cuda_decoder import MAX_DECODE_SEQS
from lingflash.models.forward_batch import CacheTensors

# Rows of the graphs: a step is padded to the next of these.
GRAPH_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 224, 256)
# The same of steps with prompts, by the segments of lightning attention that there is room for: a
# prompt alone, and several or beside a decoding batch. Up to some 256 rows a step takes as long as
# reading its weights, above about as long as it has rows.
PROMPT_ROWS = {
    8: (
        32, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048,
    ),
    72: (64, 128, 256, 512, 1024, 2048),
}  # fmt: skip
MOST_PROMPT_ROWS, MOST_PROMPT_SEGMENTS = 2048, 72


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Rows of the graphs that batches of up to so many sequences need, ascending."""
    most = min(max_num_seqs, MAX_DECODE_SEQS)
    return [n for n in GRAPH_ROWS if n < most] + [min(n for n in GRAPH_ROWS if n >= most)]


def allocate_cache(model: BailingHybrid, plan: MemoryPlan) -> CacheTensors:
    """Zeroed memory for all sequences of a plan, on the model's device."""
    # On a GPU the last slot and block belong to the padding of graphs, and the slot before to
    # states that are left within a step (ModelRunner.save_slot).
    spare = int(model.device.type == "cuda")
    return CacheTensors.zeros(
        model.config,
        num_latent_layers=model.num_latent_layers,
        num_blocks=plan.num_blocks + spare,
        block_size=plan.block_size,
        num_slots=plan.num_state_slots + 2 * spare,
        dtype=plan.dtype,
        device=model.device,
        num_drafts=plan.num_speculative_tokens,
    )
