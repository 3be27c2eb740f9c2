"""Runs inside the environment of nvidia-long-context-eval: RULER's prompts and scores.

Its programs write the prompts, each by itself, called as its command calls them. Where they would
load a tokenizer by transformers, one stands that is read from a file, because nothing else of
transformers is wanted.
"""

import concurrent.futures
import importlib
import importlib.util
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import types
from pathlib import Path

import serve_lines

# The package writes 500 of each task. Most runs want few, and a smaller number is the beginning of
# a larger one: each sample follows from those before it.
FEW, ALL = 20, 500
SEED = 42
# Processor time of a program, besides its share for each token.
LIMIT_S = 60
ROOT = Path(importlib.util.find_spec("long_context_eval").submodule_search_locations[0])


class Ruler:
    """One function for each question."""

    def __init__(self):
        yaml = importlib.import_module("yaml")
        bases = importlib.import_module("long_context_eval.data.synthetic.constants").TASKS
        set_up_nltk()
        self.metrics = importlib.import_module("long_context_eval.eval.synthetic.constants").TASKS
        self.clean = read_clean()
        rows = yaml.safe_load((ROOT / "synthetic.yaml").read_text())
        self.tasks = {name: {**row, **bases[row["task"]]} for name, row in rows.items()}

    def load(self, length, tokenizer, tasks):
        """Write the first prompts of these tasks, all at once; the number of samples of each."""
        self.length, self.tokenizer = length, tokenizer
        with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda task: self._write(task, FEW), tasks))
        return ALL

    def prompt(self, task, index):
        """What the model is asked, and the most tokens that it may answer with."""
        text = self._sample(task, index)["input"]
        return {"text": text, "max_tokens": self.tasks[task]["tokens_to_generate"]}

    def answer(self, task, index):
        """What is wanted."""
        return self._sample(task, index)["outputs"]

    def score(self, task, index, text):
        """Share of what was wanted that an answer has, 0 to 1."""
        score = self.metrics[self.tasks[task]["task"]]["metric_fn_per_sample"]
        wanted = self._sample(task, index)["outputs"]
        return score([self.clean(text, None)], [wanted])[0] / 100

    def _sample(self, task, index):
        size = FEW if index < FEW else ALL
        path = Path(str(size), task, "validation.jsonl")
        if not path.exists():
            self._write(task, size)
        with path.open(encoding="utf-8") as lines:
            return json.loads(next(line for number, line in enumerate(lines) if number == index))

    def _write(self, task, size):
        row = self.tasks[task]
        options = {
            "save_dir": size, "save_name": task, "subset": "validation",
            "tokenizer_path": self.tokenizer, "tokenizer_type": "hf",
            "max_seq_length": self.length, "tokens_to_generate": row["tokens_to_generate"],
            "num_samples": size, "random_seed": SEED, **row["args"],
            "template": row["template"] + row["answer_prefix"],
        }  # fmt: skip
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        limit_s = round(LIMIT_S + size * self.length / 10_000)
        command = [sys.executable, "-s", __file__, str(limit_s), row["task"], *words]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode == -signal.SIGXCPU:
            # It tries for ever when its shortest prompt is too long.
            raise ValueError(
                f"{task} has no prompt of {self.length} tokens of this tokenizer after "
                f"{limit_s} s; give a longer --length, or leave the task out with --category"
            )
        if done.returncode:
            raise ValueError(f"{task}: {done.stderr.strip().splitlines()[-1:]}")


def set_up_nltk():
    """Its data are there; what is not cannot be downloaded."""
    nltk = importlib.import_module("nltk")
    core = importlib.util.find_spec("llama_index.core")
    data = Path(core.submodule_search_locations[0], "_static", "nltk_cache")
    nltk.data.path.insert(0, str(data))
    nltk.download = lambda *names, **options: None


def read_clean():
    """The package's clearing up of an answer; its module parses a command line when imported.

    It wants pandas, too, for tables that nobody asks of it here.
    """
    sys.modules["pandas"] = types.ModuleType("pandas")
    argv, sys.argv = sys.argv, ["evaluate", "--data_dir", "."]
    try:
        return importlib.import_module("long_context_eval.eval.evaluate").postprocess_pred
    finally:
        sys.argv = argv


class FileTokenizer:
    """A tokenizer.json, with the method of transformers' that counts."""

    def __init__(self, path):
        read = importlib.import_module("tokenizers").Tokenizer.from_file(path)
        self.tokenize = lambda text: read.encode(text, add_special_tokens=False).ids


def write(limit_s, name, words):
    """Run one of the package's programs, which is ended after so much processor time."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))
    stand_in = types.ModuleType("transformers")
    stand_in.AutoTokenizer = types.SimpleNamespace(
        from_pretrained=lambda path, **options: FileTokenizer(path)
    )
    sys.modules["transformers"] = stand_in
    set_up_nltk()
    folder = ROOT / "data" / "synthetic"
    sys.path[:0] = [str(folder), str(folder.parent)]
    sys.argv = [name, *words]
    runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
    else:
        serve_lines.serve(Ruler)
