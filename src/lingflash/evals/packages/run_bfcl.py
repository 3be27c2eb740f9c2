"""Runs inside the environment of bfcl-eval: its data, tools, simulators and scorers, line by line.

Everything that decides is the package's own. Its table of models is replaced by one entry, which
is how its pages have a model added: the table imports the libraries of thirty vendors.
"""

import importlib
import json
import os
import re
import sys
import types

import serve_lines

NAME = "lingflash"


class Bfcl:
    """One function for each question."""

    def __init__(self):
        os.environ["BFCL_PROJECT_ROOT"] = os.getcwd()
        os.environ.setdefault("OPENAI_API_KEY", "none")  # the handler makes a client, never used
        entry = types.SimpleNamespace(
            model_name=NAME, is_fc_model=True, underscore_to_dot=True, model_handler=None,
            display_name=NAME, url="", org="", license="", input_price=None, output_price=None,
            is_oss_model=False,
        )  # fmt: skip
        table = types.ModuleType("bfcl_eval.constants.model_config")
        table.MODEL_CONFIG_MAPPING = {NAME: entry}
        sys.modules[table.__name__] = table
        self.runner = importlib.import_module("bfcl_eval.eval_checker.eval_runner")
        handlers = importlib.import_module(
            "bfcl_eval.model_handler.api_inference.openai_completion"
        )
        entry.model_handler = handlers.OpenAICompletionsHandler
        self.handler = self.runner.get_handler(NAME)
        self.utils = importlib.import_module("bfcl_eval.utils")
        self.turns = importlib.import_module(
            "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils"
        )
        prompts = importlib.import_module("bfcl_eval.constants.default_prompts")
        self.more_functions = prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC
        self.max_steps = prompts.MAXIMUM_STEP_LIMIT
        self.entries, self.golds, self.categories, self.plain = {}, {}, {}, {}

    def load(self, categories):
        """Ids of each category; entries are kept."""
        found = {}
        for category in categories:
            entries = self.utils.load_dataset_entry(category, include_prereq=False)
            golds = [None] * len(entries)
            if not self.utils.is_relevance_or_irrelevance(category):
                golds = [g["ground_truth"] for g in self.utils.load_ground_truth_entry(category)]
            for entry, gold in zip(entries, golds, strict=True):
                self.entries[entry["id"]] = entry
                self.golds[entry["id"]] = gold
                self.categories[entry["id"]] = category
            found[category] = [entry["id"] for entry in entries]
        return found

    def question(self, id):
        """Turns of messages, and the tools of each."""
        self._forget(id)
        entry = self.entries[id]
        functions = list(entry["function"])
        missed = entry.get("missed_function", {})
        turns = []
        for number, messages in enumerate(entry["question"]):
            if str(number) in missed:
                functions = functions + missed[str(number)]
                messages = [{"role": "user", "content": self.more_functions}]
            made = self.handler._compile_tools({}, {"function": functions})
            turns.append({"messages": messages, "tools": made["tools"]})
        return {"turns": turns, "max_steps": self.max_steps}

    def gold(self, id):
        """The answer key, and the functions with the names that a model is told."""
        functions = [
            {**f, "name": re.sub(r"\.", "_", f["name"])} for f in self._plain_entry(id)["function"]
        ]
        return {"answer": self.golds[id], "functions": functions}

    def execute(self, id, calls):
        """What the simulators answer to a step of calls; null if the turn has ended."""
        entry, category = self.entries[id], self.categories[id]
        try:
            decoded = self.handler.decode_execute(self._safe(id, calls), has_tool_call_tag=False)
        except Exception:  # as the package's own loop: whatever cannot be read ends the turn
            return None
        if self.turns.is_empty_execute_response(decoded):
            return None
        results, _ = self.turns.execute_multi_turn_func_call(
            decoded,
            entry.get("initial_config", {}),
            entry["involved_classes"],
            NAME,
            id,
            long_context="long_context" in category,
            is_evaL_run=False,
        )
        return results

    def score(self, id, result):
        """The package's verdict on a result in its own form."""
        category = self.categories[id]
        entry = json.loads(json.dumps(self._plain_entry(id)))
        if self.utils.is_relevance_or_irrelevance(category):
            said = self.runner._evaluate_single_relevance_entry(
                self.handler, id, result, entry, NAME, category
            )
        elif self.utils.is_multi_turn(category):
            result = [[self._safe(id, step) for step in turn] for turn in result]
            said = self.runner._evaluate_single_multi_turn_entry(
                self.handler, id, result, self.golds[id], entry, NAME, category
            )
            self._forget(id)
        else:
            languages, formats = self.runner.Language, self.runner.ReturnFormat
            kind = "JAVA" if self.utils.is_java(category) else "PYTHON"
            kind = "JAVASCRIPT" if self.utils.is_js(category) else kind
            said = self.runner._evaluate_single_ast_entry(
                self.handler, id, result, self.golds[id], entry, NAME, category,
                language=getattr(languages, kind), return_format=getattr(formats, kind),
            )  # fmt: skip
        error = said.get("error")
        kind = said.get("error_type")
        if kind is None and isinstance(error, dict):
            kind = error.get("error_type")
        return {"valid": bool(said["valid"]), "error_type": kind}

    def _plain_entry(self, id):
        """As the scorer loads it: without the hints for the model in the descriptions."""
        category = self.categories[id]
        if category not in self.plain:
            entries = self.utils.load_dataset_entry(
                category, include_prereq=False, include_language_specific_hint=False
            )
            self.plain[category] = {entry["id"]: entry for entry in entries}
        return self.plain[category][id]

    def _safe(self, id, calls):
        """The calls, those apart that are none of the item's functions with plain arguments.

        The package makes Python source of names and keys and evaluates it; a model's words must not
        be run. What is taken out answers as an unknown function does.
        """
        if not isinstance(calls, list):
            return calls
        entry = self.entries[id]
        missed = entry.get("missed_function", {}).values()
        known = {f["name"] for functions in (entry["function"], *missed) for f in functions}
        return [
            call if self._is_safe(call, known) else {"no_such_function": "{}"} for call in calls
        ]

    def _is_safe(self, call, known):
        [(name, arguments)] = call.items()
        try:
            values = json.loads(arguments)
        except ValueError:
            return True  # the package cannot read it either, and ends the turn
        return name in known and isinstance(values, dict) and all(map(str.isidentifier, values))

    def _forget(self, id):
        """The simulators of an item, which the package keeps for ever."""
        mark = re.sub(r"[-./:]", "_", f"_{id}_")
        for name in [n for n in vars(self.turns) if mark in n and n.endswith("_instance")]:
            del vars(self.turns)[name]


if __name__ == "__main__":
    serve_lines.serve(Bfcl)
