"""A custom tool's grammar, enforced inside the JSON of its call."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from lingflash.core.errors import InvalidRequestError
from lingflash.core.types import GrammarSpec
from lingflash.structured.answer_form import answer_grammar
from lingflash.structured.grammar import check_grammar, to_lark
from lingflash.structured.json_text import quote_lark, text_call_rules

BYTES = LLTokenizer("byte")
# A patch in the manner of coding agents: lines that may hold whatever JSON escapes.
PATCH = r"""
start: "*** Begin" LF hunk+ "*** End" LF?
hunk: "*** File: " name LF (context | line)+ rest?
name: /(.+)/
context: ("@@" | "@@ " /(.+)/) LF
line: ("+" | "-" | " ") /(.*)/ LF -> changed
rest: "*** End of File" LF
%import common.LF
"""
CASES = [
    ("lark", 'start: "a"', ["a"], ["b", "a\n", ""]),
    ("lark", 'start: X "\\n" X\nX: "a".."c"', ["a\nb"], ["a\nd", "a\\nb"]),
    ("lark", 'start: "\\"" /[^"]*/ "\\""', ['"x\ny"', '"\\"'], ['"', 'x"']),
    ("lark", 'start: e\ne: t ("+" t)*\nt: N | "(" e ")"\nN: /[0-9]+/', ["1+(2+3)"], ["1+", "(1"]),
    (
        "lark",
        'start: pair+\npair: KEY "=" VALUE LF\nKEY: /[a-z]+/\nVALUE: "\\"" /[^"]*/ "\\""\n'
        "%import common.LF",
        ['a="b\tc"\n', 'a="\\"\nb=""\n'],
        ["a=b\n", 'a=""'],
    ),
    (
        "lark",
        "start: WORD (NEWLINE WORD)*\n%import common.WORD\n%import common.NEWLINE\n"
        "%ignore /[ \\t]+/",
        ["a\n b\r\n\nc", "a \t\n b"],
        ["\n", "1", "a b"],
    ),
    ("lark", 'start: "é" /./ "\\t"', ["éx\t", 'é"\t', "é\\\t", "é😀\t"], ["é\n\t", "éx"]),
    ("lark", "// words\nstart: W\n# more\nW: /a|\\n/i", ["A", "a", "\n"], ["b"]),
    ("regex", r"[0-9]{3}-\w+", ["123-ab"], ["12-a", "123-"]),
    ("regex", r'^say "[^"]*"$', ['say "x\ny"', 'say ""'], ["say x"]),
    ("regex", r"(?:a|b\n){2,3}", ["ab\n", "aaa", "b\nb\n"], ["a", "aaaa"]),
    ("regex", r".*", ["", 'a"b\\c', "\t"], ["a\nb"]),
    ("regex", r"[\s\S]+", ["\n", "\x01\n x"], [""]),
    ("regex", r"a/b\\c", ["a/b\\c"], ["a/bc"]),
]


def accepts(rules, text):
    matcher = LLMatcher(BYTES, rules, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = BYTES.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def call(text):
    return json.dumps({"name": "p", "arguments": {"input": text}}, ensure_ascii=False)


@pytest.mark.parametrize(("kind", "grammar", "good", "bad"), CASES)
def test_rules_when_a_text_is_in_a_call_then_as_the_grammar_says(kind, grammar, good, bad):
    rules = text_call_rules("start", "p", GrammarSpec(kind, grammar), "format")
    for text in good:
        assert accepts(rules, call(text)), text
    for text in bad:
        assert not accepts(rules, call(text)), text
    assert not accepts(rules, json.dumps({"name": "q", "arguments": {"input": good[0]}}))


LINES = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.tuples(st.sampled_from("+- "), LINES), min_size=1, max_size=4), LINES)
@settings(max_examples=60, deadline=None)
def test_rules_when_a_patch_holds_any_text_then_taken_and_a_broken_one_not(lines, name):
    body = "".join(f"{sign}{line}\n" for sign, line in lines)
    patch = f"*** Begin\n*** File: {name or 'x'}\n@@ f()\n{body}*** End of File\n*** End"
    rules = text_call_rules("start", "p", GrammarSpec("lark", PATCH), "format")
    assert accepts(rules, call(patch))
    cut = random.Random(len(patch)).randrange(len(patch) - 1)
    assert not accepts(rules, call(patch[:cut]))


@pytest.mark.parametrize(
    ("grammar", "word"),
    [
        ("start: %json {}", "%json"),
        ("start: <think>", "<"),
        ('start: /(?=a)"/', "look-around"),
        ('start: /("|(?i:a))/', "flags"),
        ("start: /[/", "cannot be read"),
        ('start: /"/x', "flags"),
        ('start: "\\n"i', "without case"),
        ('start: X\nX: /"/ & /a/', "&"),
    ],
)
def test_quote_when_a_meaning_cannot_be_kept_then_refused_by_name(grammar, word):
    with pytest.raises(InvalidRequestError, match="format") as caught:
        quote_lark(grammar, "tools[0].format")
    assert word in caught.value.message


def test_grammar_when_a_custom_tool_has_a_form_then_it_is_enforced_in_auto_too():
    tool = {
        "function": {"name": "p", "parameters": None, "strict": True},
        "where": "tools[0].format",
        "form": GrammarSpec("lark", 'start: "a\\n"+'),
    }
    assert answer_grammar(tools=[tool]) is not None
    spec = answer_grammar(tools=[tool], tool_choice="required")
    check_grammar(spec)
    lark = to_lark(spec).replace("<tool_call>", '"T"').replace("</tool_call>", '"E"')
    assert accepts(lark, f"T\n{call('a' + chr(10))}\nE")
    assert not accepts(lark, f"T\n{call('a')}\nE")
    bad = {**tool, "form": GrammarSpec("lark", "start: missing")}
    with pytest.raises(InvalidRequestError) as caught:
        check_grammar(answer_grammar(tools=[bad]))
    assert caught.value.param == "tools[0].format"
