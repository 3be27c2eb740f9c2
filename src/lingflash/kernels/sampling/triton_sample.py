"""Token choice on the GPU: noise is made where it is needed, no [R, V] tensor of it is written.

A first kernel finds the best token of each piece of the vocabulary, a second the best of those.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous

# Two logarithms in float64 a token take longer than reading it: small pieces use every processor.
_PIECE = 512


@triton.jit
def _mix(x):
    """SplitMix64's finaliser, as in the package's own _mix."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _best_of_piece_kernel(
    logits_ptr, temperature_ptr, key_ptr, allowed_ptr, value_ptr, token_ptr,
    vocab_size, logits_stride, allowed_stride, num_pieces,
    HAS_ALLOWED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = piece * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab_size
    wait_for_previous(PDL)
    temperature = tl.load(temperature_ptr + row)
    logits = tl.load(logits_ptr + row * logits_stride + token, mask=inside, other=float("-inf"))
    if HAS_ALLOWED:
        word = tl.load(allowed_ptr + row * allowed_stride + token // 32, mask=inside, other=0)
        logits = tl.where((word >> (token % 32)) & 1 != 0, logits, float("-inf"))
    if temperature > 0:
        key = tl.load(key_ptr + row).to(tl.uint64, bitcast=True)
        x = _mix(key + token.to(tl.uint64) * 0x9E3779B97F4A7C15)
        uniform = ((x >> 11).to(tl.float64) + 0.5) * 1.1102230246251565e-16
        score = (logits / temperature).to(tl.float64) - tl.log(-tl.log(uniform))
    else:
        score = logits.to(tl.float64)
    # NaN is found by the caller, who looks at the logits themselves; here it must not be chosen.
    score = tl.where(inside & (score == score), score, float("-inf"))
    best = tl.max(score, 0)
    first = tl.min(tl.where(score == best, token, vocab_size), 0)
    tl.store(value_ptr + row * num_pieces + piece, best)
    tl.store(token_ptr + row * num_pieces + piece, first)


@triton.jit
def _best_of_all_kernel(
    value_ptr, token_ptr, out_ptr, num_pieces, vocab_size, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    start_next(PDL)
    row, piece = tl.program_id(0), tl.arange(0, BLOCK)
    inside = piece < num_pieces
    wait_for_previous(PDL)
    value = tl.load(value_ptr + row * num_pieces + piece, mask=inside, other=float("-inf"))
    token = tl.load(token_ptr + row * num_pieces + piece, mask=inside, other=vocab_size)
    best = tl.max(value, 0)
    chosen = tl.min(tl.where(value == best, token, vocab_size), 0)
    tl.store(out_ptr + row, tl.minimum(chosen, vocab_size - 1).to(tl.int64))


def sample_tokens_triton(
    logits: Tensor,
    temperature: Tensor,
    keys: Tensor,
    allowed: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One token per row: the largest of logits / temperature + Gumbel noise among the allowed.

    Args:
        logits: float32 [R, V], contiguous rows; not divided by the temperature.
        temperature: float32 [R]; rows with 0 take the largest logit.
        keys: int64 [R], from noise_key.
        allowed: int32 [R, >= V / 32], contiguous rows: bit t % 32 of word t // 32 allows token t.
        out: int64 [R], written and returned; a new tensor if None.

    Returns:
        int64 [R]; of equal scores the first token.

    Raises:
        ValueError: a shape or dtype does not fit.

    Numerics: noise and scores in float64, as sample_tokens; the two may differ where scores agree
        to float64's last digits. Sync: none, graph-safe.
    """
    rows, vocab_size = logits.shape
    if logits.dtype != torch.float32 or keys.dtype != torch.int64 or temperature.shape != (rows,):
        raise ValueError(f"logits {logits.dtype}, keys {keys.dtype}, {tuple(temperature.shape)}.")
    out = torch.empty(rows, dtype=torch.int64, device=logits.device) if out is None else out
    if not rows:
        return out
    pieces = triton.cdiv(vocab_size, _PIECE)
    values = torch.empty(rows, pieces, dtype=torch.float64, device=logits.device)
    tokens = torch.empty(rows, pieces, dtype=torch.int32, device=logits.device)
    bits = tokens if allowed is None else allowed
    options = launch_options(logits)
    _best_of_piece_kernel[(rows, pieces)](
        logits, temperature, keys, bits, values, tokens, vocab_size, logits.stride(0),
        bits.stride(0), pieces, HAS_ALLOWED=allowed is not None, BLOCK=_PIECE, num_warps=4,
        **options,
    )  # fmt: skip
    _best_of_all_kernel[(rows,)](
        values, tokens, out, pieces, vocab_size, BLOCK=triton.next_power_of_2(pieces), **options
    )
    return out
