"""Matrix products for few rows of activations, where reading the weights is all that costs.

    rows                         weights      kernel, on a GPU
    one, a decode step           BF16, FP8    triton_one_row.py, with the norm before it
    up to 256, a decode step     BF16, FP8    triton_few_rows.py

The definition is reference.py.
"""

from __future__ import annotations

from lingflash.kernels.skinny_gemm.reference import skinny_gemm_reference

__all__ = ["skinny_gemm_reference"]
