"""The generators: valid calls, words on the right side, text equal to the chat template's."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from importlib import resources
from itertools import pairwise
from typing import Any

import jinja2
import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from lingflash.train.data.agent import agent_dialogue
from lingflash.train.data.chinese import chinese_dialogue
from lingflash.train.data.dialogue import copy_dialogue, plain_dialogue, tool_dialogue
from lingflash.train.data.fillers import adverb
from lingflash.train.data.heldout import handwritten_cases, heldout_cases
from lingflash.train.data.library import entries
from lingflash.train.data.long_prompt import with_long_prompt
from lingflash.train.data.python_code import FAMILIES, TEXTS, code_dialogue, question
from lingflash.train.data.render import render_segments
from lingflash.train.data.stream import IGNORE, BatchStream, StreamConfig, make_batch
from lingflash.train.data.thinking import with_thinking
from lingflash.train.data.words import Words, is_held_out
from lingflash.train.evaluate import expected_text, prompt_text
from lingflash.train.tokenizer import add_characters

ASSETS = resources.files("lingflash").joinpath("assets/ling-nano")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ASSETS.joinpath("tokenizer.json")))


@pytest.fixture(scope="module")
def template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(ASSETS.joinpath("chat_template.jinja").read_text("utf-8"))


MAKERS = (
    tool_dialogue,
    chinese_dialogue,
    code_dialogue,
    agent_dialogue,
    plain_dialogue,
    copy_dialogue,
)


def _dialogues(count: int) -> list[Any]:
    rng = random.Random(3)
    words = Words(held_out=False)
    made = [MAKERS[i % len(MAKERS)](rng, words) for i in range(count)]
    made += [with_thinking(d) for d in made[: count // 2]]
    return made + [with_long_prompt(rng, words, d, 4000) for d in made[:10]]


def _rendered(dialogue: Any) -> str:
    segments = render_segments(dialogue.messages, dialogue.tools, dialogue.thinking)
    return "".join(text for text, _ in segments)


def test_render_segments_when_any_dialogue_then_equals_the_template(template):
    for dialogue in _dialogues(200):
        assert _rendered(dialogue) == template.render(
            messages=dialogue.messages,
            tools=dialogue.tools,
            thinking_option="on" if dialogue.thinking else "off",
        )


def test_render_segments_when_thinking_then_only_what_shows_it_is_trained():
    shown = 0
    for dialogue in _dialogues(120):
        if dialogue.thinking:
            trained = [
                text
                for text, flag in render_segments(dialogue.messages, dialogue.tools, True)
                if flag
            ]
            assert trained
            assert all(text.startswith("\n<think>\n") for text in trained)
            shown += 1
    assert shown > 40


def test_prompt_text_when_heldout_then_equals_the_template(template):
    for case in [*heldout_cases(50, 3), *handwritten_cases()]:
        rendered = template.render(
            messages=case["messages"], tools=case["tools"], add_generation_prompt=True
        )
        assert prompt_text(case) == rendered


def test_segments_when_tokenized_apart_then_equal_the_whole(tokenizer):
    for dialogue in _dialogues(60):
        segments = render_segments(dialogue.messages, dialogue.tools, dialogue.thinking)
        parts = [text for text, _ in segments]
        apart = [i for p in parts for i in tokenizer.encode(p, add_special_tokens=False).ids]
        assert apart == tokenizer.encode("".join(parts), add_special_tokens=False).ids


def _validate(call: dict[str, Any], tools: list[dict[str, Any]]) -> None:
    by_name = {t["function"]["name"]: t["function"] for t in tools}
    assert call["name"] in by_name
    schema = by_name[call["name"]].get("parameters", {})
    properties = schema.get("properties", {})
    assert set(call["arguments"]) <= set(properties)
    assert set(schema.get("required", [])) <= set(call["arguments"])
    types = {
        "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list,
        "object": dict,
    }  # fmt: skip
    for key, value in call["arguments"].items():
        assert isinstance(value, types[properties[key]["type"]]), (key, value, properties[key])
        if "enum" in properties[key]:
            assert value in properties[key]["enum"]


@pytest.mark.parametrize("make", MAKERS[:4])
def test_tool_dialogues_when_calling_then_calls_fit_the_schema(make):
    rng = random.Random(4)
    words = Words(held_out=False)
    calls = 0
    for _ in range(400):
        dialogue = make(rng, words)
        names = [t["function"]["name"] for t in dialogue.tools]
        assert len(set(names)) == len(names)
        for message in dialogue.messages:
            for call in message.get("tool_calls", ()):
                _validate(call["function"], dialogue.tools)
                calls += 1
    assert calls > 400


def test_heldout_cases_when_same_seed_then_same_and_valid():
    cases = heldout_cases(200, 5)
    assert cases == heldout_cases(200, 5)
    assert cases != heldout_cases(200, 6)
    for case in [*cases, *handwritten_cases()]:
        expected = case["expected"]
        assert ("calls" in expected) != ("refusal" in expected)
        for call in expected.get("calls", ()):
            _validate(call, case["tools"])
    assert len(handwritten_cases()) >= 60


def test_pools_when_split_then_no_word_is_on_both_sides():
    train, test = Words(held_out=False), Words(held_out=True)
    for pool in ("plain", "first_names", "last_names", "cities", "countries"):
        assert not set(getattr(train, pool)) & set(getattr(test, pool))
    rng = random.Random(6)
    for _ in range(500):
        for words in (train, test):
            for make in (words.made_up, words.spliced, words.pieced, words.word):
                assert is_held_out(make(rng)) == words.held_out


def test_heldout_argument_names_when_compared_with_training_then_are_new():
    rng = random.Random(7)
    words = Words(held_out=False)
    seen: set[str] = set()
    for _ in range(1500):
        for tool in tool_dialogue(rng, words).tools:
            seen |= set(tool["function"].get("parameters", {}).get("properties", {}))
            seen.add(tool["function"]["name"])
    for case in heldout_cases(300, 8):
        for tool in case["tools"]:
            function = tool["function"]
            assert function["name"] not in seen
            assert not set(function["parameters"]["properties"]) & seen


def test_handwritten_tools_when_compared_with_the_library_then_are_others():
    library = {name for entry in entries() for name in entry.names}
    used = {t["function"]["name"] for case in handwritten_cases() for t in case["tools"]}
    assert not used & library


def test_tokenizer_when_any_text_then_round_trips(tokenizer):
    rng = random.Random(9)
    ranges = ((0, 127), (128, 0x2FFF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (9, 13), (32, 32))
    for _ in range(500):
        text = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 60)))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_when_a_value_is_quoted_then_its_tokens_are_the_same(tokenizer):
    rng = random.Random(10)
    words = Words(held_out=True)
    for _ in range(200):
        word = words.word(rng) if rng.random() < 0.5 else words.proper(rng)
        ids = tokenizer.encode(word, add_special_tokens=False).ids
        for text in (f"call {word} now", f'{{"a": "{word}"}}', f"for {word}."):
            whole = tokenizer.encode(text, add_special_tokens=False).ids
            assert any(whole[i : i + len(ids)] == ids for i in range(len(whole)))


def test_add_characters_when_added_then_a_character_is_a_token_and_all_text_round_trips(
    tmp_path, tokenizer
):
    (tmp_path / "tokenizer.json").write_bytes(ASSETS.joinpath("tokenizer.json").read_bytes())
    before = tokenizer.get_vocab_size()
    add_characters(tmp_path, before + 64, count=150)
    grown = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert grown.get_vocab_size() == before + 64
    assert len(grown.encode("的", add_special_tokens=False).ids) == 1
    rng = random.Random(14)
    words = Words(held_out=False)
    for _ in range(60):
        dialogue = chinese_dialogue(rng, words)
        for text, _ in render_segments(dialogue.messages, dialogue.tools):
            ids = grown.encode(text, add_special_tokens=False).ids
            assert grown.decode(ids, skip_special_tokens=False) == text
            if text.isascii():
                assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_config_when_compared_with_the_tokenizer_then_ids_agree(tokenizer):
    config = json.loads(ASSETS.joinpath("config.json").read_text())
    generation = json.loads(ASSETS.joinpath("generation_config.json").read_text())
    end, role_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|role_end|>")
    assert config["eos_token_id"] == role_end
    assert config["pad_token_id"] == end
    assert generation["eos_token_id"] == [end, role_end]
    assert generation["bos_token_id"] == tokenizer.token_to_id("<|startoftext|>")
    assert tokenizer.get_vocab_size() == config["vocab_size"]


def test_make_batch_when_packed_then_labels_are_the_answers(tokenizer):
    config = StreamConfig(rows=2, row_tokens=1024, copy_steps=0, short_steps=0)
    words = Words(held_out=False)
    batch = make_batch(tokenizer, words, config, 5)
    again = make_batch(tokenizer, words, config, 5)
    assert np.array_equal(batch.tokens, again.tokens)
    used = batch.labels != IGNORE
    rows, columns = np.divmod(batch.index[used], config.row_tokens)
    assert np.array_equal(batch.tokens[rows, columns + 1], batch.labels[used])
    assert np.array_equal(batch.document[rows, columns], batch.document[rows, columns + 1])
    ahead = batch.labels_ahead[used]
    known = ahead != IGNORE
    assert np.array_equal(batch.tokens[rows, columns + 2][known], ahead[known])
    text = tokenizer.decode(batch.labels[used].tolist(), skip_special_tokens=False)
    assert text.count("<|role_end|>") >= 2
    assert not re.search(r"<role>|<tools>", text)


def test_batch_stream_when_started_later_then_goes_on(tokenizer):
    config = StreamConfig(rows=1, row_tokens=512)
    path = ASSETS.joinpath("tokenizer.json")
    stream = iter(BatchStream(path, config, workers=0))
    first = [next(stream) for _ in range(3)]
    later = next(iter(BatchStream(path, config, workers=0, start=2)))
    assert np.array_equal(first[2].tokens, later.tokens)


def test_expected_text_when_refusal_then_ends_the_turn():
    case = next(c for c in heldout_cases(50, 1) if "refusal" in c["expected"])
    assert expected_text(case).endswith("<|role_end|>")
    assert "<tool_call>" not in expected_text(case)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_questions_when_the_code_runs_then_it_prints_what_the_answer_says(family):
    rng = random.Random(family)
    assert TEXTS[family]["en"]
    assert TEXTS[family]["zh"]
    words = Words(held_out=True)
    fields, code = FAMILIES[family](rng, words)
    assert code.count("print(") == 1
    assert '"' not in code
    for language in ("en", "zh"):
        for wording in TEXTS[family][language]:
            assert "{" not in wording.format(**fields)


def test_question_when_drawn_then_its_code_prints_by_itself():
    rng = random.Random(12)
    words = Words(held_out=False)
    for i in range(8):
        _, code, printed = question(rng, words, i % 2 == 0)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout == printed + "\n"


def test_agent_dialogues_when_a_step_needs_a_result_then_the_result_has_it():
    rng = random.Random(13)
    words = Words(held_out=False)
    chained = 0
    for _ in range(300):
        dialogue = agent_dialogue(rng, words)
        for before, after in pairwise(dialogue.messages):
            if before["role"] == "tool" and after.get("tool_calls"):
                (call, *_) = after["tool_calls"]
                texts = [
                    v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
                    for v in call["function"]["arguments"].values()
                ]
                chained += any(
                    json.dumps(t, ensure_ascii=False)[1:-1] in before["content"] for t in texts
                )
    assert chained > 100


def test_adverb_when_made_of_a_switch_then_is_english():
    made = {adverb(w) for w in ("recursive", "verbose", "automatic", "noisy", "visible", "full")}
    assert made == {"recursively", "verbosely", "automatically", "noisily", "visibly", "fully"}
