"""Matrix products for few rows of activations, where reading the weights is all that costs."""

from __future__ import annotations

from lingflash.kernels.skinny_gemm.reference import skinny_gemm_reference

__all__ = ["skinny_gemm_reference"]
