"""Synthetic dialogues with tool calls: generators, rendering, packing, the held-out test."""
