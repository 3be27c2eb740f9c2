"""Runs inside the environment of math-verify: whether two answers are the same, line by line."""

import importlib

import serve_lines


class Math:
    """One function for each question."""

    def __init__(self):
        self.package = importlib.import_module("math_verify")

    def same(self, gold, text):
        """Whether the answer that a text gives is the right one, however it is written."""
        wanted = self.package.parse(f"${gold}$")
        return bool(self.package.verify(wanted, self.package.parse(text)))


if __name__ == "__main__":
    serve_lines.serve(Math)
