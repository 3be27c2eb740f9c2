"""Benchmarks with known answers, asked of any OpenAI-compatible server, over HTTP alone."""
