"""Answers that follow a grammar: what is asked for, compiled, and masks of the tokens allowed."""
