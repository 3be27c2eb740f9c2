"""Kernels at Ling-2.6-flash's shapes as benchmark cases; imports torch, Triton, kernels only."""
