"""Training of the bundled model: synthetic tool-call data, the batched model, the trainer."""
