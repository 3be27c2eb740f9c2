"""Kernels at the true shapes of Ling-2.6-flash: timed alone, and swept over their sizes."""
