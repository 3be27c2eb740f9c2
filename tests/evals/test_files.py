"""Questions from the user's files: the schemas, the published forms, and what is refused."""

from __future__ import annotations

import csv
import json

import pytest

from lingflash.cli import _run, report_errors
from lingflash.core.errors import ConfigError
from lingflash.evals.tasks.files import (
    FileTask,
    choice_prompt,
    code_prompt,
    judge_choice,
    read_items,
)
from lingflash.evals.tasks.human_eval import code_of

CHOICE = {"question": "Two?", "choices": ["1", "2", "3"], "answer": "B"}
BOXED = {"question": "Two?", "answer": "2"}
TURN = {"prompt": "Hi", "instructions": ["a:b"], "kwargs": [{}]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("choice", {}, "row 1: question, choices, answer missing for --kind choice"),
        ("choice", {**CHOICE, "answer": "D"}, "answer is 'D'; one of A, B, C"),
        ("choice", {**CHOICE, "answer": 2}, "answer is 2; a text needed"),
        ("choice", {**CHOICE, "choices": ["1"]}, "1 choices; 2 to 10"),
        ("choice", {**CHOICE, "choices": "12"}, "choices is '12'; a list needed"),
        ("choice", {"Question": "q", "Correct Answer": "a", "Incorrect Answer 1": "b"}, "as GPQA"),
        ("boxed", {"problem": "q"}, "MATH-500's answer, problem, unique_id"),
        ("boxed", {**BOXED, "question": ""}, "question is ''"),
        ("multi_if", {"turns": [{"prompt": "p"}]}, "a turn needs prompt, instructions and kwargs"),
        ("multi_if", {"turns": [{**TURN, "kwargs": []}]}, "are not as many"),
        ("code", {"question": "q", "tests": [{"input": ""}]}, "a test needs input and output"),
    ],
)  # fmt: skip
def test_read_items_when_a_row_is_wrong_then_row_and_field_are_named(tmp_path, kind, row, said):
    with pytest.raises(ConfigError) as caught:
        read_items(write(tmp_path / "f.jsonl", row), kind)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "\n\n", "[]", "[1]", "{", "3\n", '{"a": 1}\n{', "\xff\xfe", "[" * 100_000]
)
def test_read_items_when_the_file_is_no_json_then_it_says_what_is_needed(tmp_path, text):
    path = tmp_path / "f.jsonl"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"^FILE is .*f\.jsonl"):
        read_items(path, "choice")


def test_read_items_when_it_is_csv_then_lists_are_json_and_a_field_may_be_long(tmp_path):
    path = tmp_path / "f.csv"
    question = "word\u2028" * 40_000
    path.write_text(f'question,choices,answer\n{question},"[""a"", ""b""]",B\n', encoding="utf-8")
    (item,) = read_items(path, "choice")
    assert (item.data["question"], item.data["choices"]) == (question, ["a", "b"])


def test_read_items_when_an_id_comes_twice_then_it_is_refused(tmp_path):
    path = write(tmp_path / "f.jsonl", {**CHOICE, "id": "a"}, {**CHOICE, "id": "a"})
    with pytest.raises(ConfigError, match="row 2: id 'a' was there before"):
        read_items(path, "choice")


@pytest.mark.parametrize("words", [["human-eval"], ["file", "F", "--kind", "code"]])
def test_code_when_no_sandbox_is_named_then_it_is_refused_by_name(words, capsys):
    assert report_errors(lambda: _run(["eval", *words, "--model", "x"])) == 2
    assert "start one with `ling sandbox` and say with --sandbox-url" in capsys.readouterr().err


def test_code_of_then_the_block_with_the_function_counts():
    text = (
        "Use it:\n```python\nf(1)\n```\nor\n```python\ndef f(x):\n    return x\n```\n```\nno\n```"
    )
    assert code_of(text, "f") == "def f(x):\n    return x\n"
    assert code_of("    return x", "f") == "    return x"
    assert code_of("```py\ndef f(): pass", "f") == "def f(): pass"


def test_gpqa_when_it_is_the_published_csv_then_choices_are_shuffled_the_same_way(tmp_path):
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="") as file:
        columns = ["Record ID", "Question", "Correct Answer", "High-level domain"]
        columns += [f"Incorrect Answer {n}" for n in (1, 2, 3)]
        out = csv.DictWriter(file, columns)
        out.writeheader()
        for number in range(40):
            wrong = {f"Incorrect Answer {n}": f"wrong {n}\nline" for n in (1, 2, 3)}
            out.writerow(
                {"Record ID": f"r{number}", "Question": f"q{number}", "Correct Answer": "right ",
                 "High-level domain": "Physics", **wrong}
            )  # fmt: skip
    first, second = read_items(path, "choice"), read_items(path, "choice")
    assert first == second
    assert {item.data["answer"] for item in first} == set("ABCD")
    for item in first:
        assert item.data["choices"]["ABCD".index(item.data["answer"])] == "right"
    assert first[0].id == "r0"
    assert first[0].category == "Physics"


def test_published_files_then_each_becomes_our_schema(tmp_path):
    longbench = {f"choice_{x}": x * 2 for x in "ABCD"} | {
        "_id": "l1", "context": "long", "question": "q", "answer": "C", "length": "short",
    }  # fmt: skip
    [item] = read_items(write(tmp_path / "l.json", longbench), "choice")
    assert choice_prompt(item.data).startswith("long\n\nq\n\nA) AA\nB) BB")
    math = {"problem": "p", "solution": "s", "answer": "\\frac{1}{2}", "unique_id": "t/1.json"}
    [item] = read_items(write(tmp_path / "m.jsonl", {**math, "subject": "Algebra"}), "boxed")
    assert (item.id, item.category, item.data["answer"]) == ("t/1.json", "Algebra", "\\frac{1}{2}")
    [item] = read_items(write(tmp_path / "a.jsonl", {"problem": "p", "answer": 204}), "boxed")
    assert item.data["answer"] == "204"
    turn = {
        "turn_1_prompt": json.dumps({"role": "user", "content": "Hi"}),
        "turn_1_instruction_id_list": json.dumps(["length_constraints:number_words"]),
        "turn_1_kwargs": json.dumps([json.dumps({"num_words": 3})]),
    }
    [item] = read_items(write(tmp_path / "i.jsonl", {**turn, "key": "k", "language": "German"}),
                        "multi_if")  # fmt: skip
    assert item.data["turns"] == [
        {"prompt": "Hi", "instructions": ["length_constraints:number_words"],
         "kwargs": [{"num_words": 3}]}
    ]  # fmt: skip


def test_livecodebench_when_it_is_the_published_file_then_its_public_tests_and_no_functions(
    tmp_path,
):
    def row(name, kind, starter=""):
        tests = [{"input": "1\n", "output": "2\n", "testtype": kind}]
        return {
            "question_id": name, "question_content": "Add one.", "difficulty": "easy",
            "starter_code": starter, "public_test_cases": json.dumps(tests),
            "private_test_cases": "cGlja2xl", "platform": "atcoder",
        }  # fmt: skip

    path = write(tmp_path / "lcb.jsonl", row("a", "stdin"), row("b", "functional", "class S:"))
    task = FileTask(path, "code")
    [item] = task.items()
    assert (item.id, item.category) == ("a", "easy")
    assert item.data["tests"][0]["output"] == "2\n"
    assert "1 items call a function: left out" in task.notes
    assert "Begin with" not in code_prompt(item.data)
    own = {"question": "Add one.", "starter": "import sys", "tests": item.data["tests"]}
    [item] = read_items(write(tmp_path / "own.jsonl", own), "code")
    assert "```python\nimport sys\n```" in code_prompt(item.data)


@pytest.mark.parametrize(
    ("text", "solved"),
    [
        ("Answer: B", True), ("**Answer:** (B)", True), ("answer is B.", True), ("B", False),
        ("The answer is \\boxed{B}", True), ("Answer: A. No. Answer: B", True), ("", False),
        ("the answer is a cat. Answer: I think", False),
        ("Answer: C", False), ("Answer: Because", False), ("Answer: $B$", True),
    ],
)  # fmt: skip
def test_judge_choice_then_the_last_letter_named_counts(text, solved):
    assert judge_choice(CHOICE, text).is_solved is solved
