"""bfcl-eval's own evaluation of result files, or IFBench's of its sample, by their environment.

PYTHON tests/evals_official.py bfcl RESULTS.json      {category: [{"id": ..., "result": ...}]}
PYTHON tests/evals_official.py ifbench -

Prints {category: [ids that are wrong]}. Their functions do everything, as their commands call them.
"""

import contextlib
import io
import json
import os
import random
import sys
import tempfile
import types
from pathlib import Path

PACKAGES = Path(__file__).parents[1] / "src/lingflash/evals/packages"


def bfcl(path):
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BFCL_PROJECT_ROOT"] = folder
        os.environ.setdefault("OPENAI_API_KEY", "none")
        table = types.ModuleType("bfcl_eval.constants.model_config")
        entry = types.SimpleNamespace(
            model_name="m", is_fc_model=True, underscore_to_dot=True, input_price=None,
            output_price=None, display_name="m", url="", org="", license="",
        )  # fmt: skip
        table.MODEL_CONFIG_MAPPING = {"m": entry}
        sys.modules[table.__name__] = table
        from bfcl_eval.eval_checker import eval_runner
        from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler

        entry.model_handler = OpenAICompletionsHandler
        handler = eval_runner.get_handler("m")
        wrong = {}
        for category, results in json.loads(Path(path).read_text()).items():
            scores = Path(folder, category)
            eval_runner.evaluate_task(
                category, Path(folder), scores, results, "m", handler, {}, allow_missing=True
            )
            [file] = scores.rglob("*_score.json")
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            wrong[category] = [line["id"] for line in lines[1:]]
        return wrong


def ifbench(_):
    sys.path.insert(0, str(PACKAGES))
    import run_ifbench

    lib = run_ifbench.IfBench().lib
    data = Path(lib.__file__).parent / "data"
    inputs = lib.read_prompt_list(data / "IFBench_test.jsonl")
    answers = lib.read_prompt_to_response_dict(data / "sample_output.jsonl")
    random.seed(0)
    wrong = {}
    for name, check in (
        ("strict", lib.test_instruction_following_strict),
        ("loose", lib.test_instruction_following_loose),
    ):
        wrong[name] = []
        for each in inputs:
            try:
                ok = check(each, answers).follow_all_instructions
            except LookupError:
                ok = False
            if not ok:
                wrong[name].append(str(each.key))
    return wrong


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        found = globals()[sys.argv[1]](sys.argv[2])
    print(json.dumps(found))
