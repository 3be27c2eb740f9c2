"""Sums over the GPUs that share a model, small enough that latency is all they cost.

    values                                        kernel
    a decode step's, GPUs that reach each other   triton_one_shot.py (by parallel/peers.py)
    any other                                     NCCL or gloo (parallel/mesh.py)

The definition is torch.distributed's all_reduce, in float32.
"""
