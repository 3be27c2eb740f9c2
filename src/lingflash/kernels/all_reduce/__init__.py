"""Sums over the GPUs that share a model, small enough that latency is all they cost."""
