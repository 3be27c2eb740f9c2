"""Without a GPU the Triton kernels run in Triton's interpreter, at small sizes."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
