"""Compiles what a client asks for into a matcher that says which tokens may come next.

Everything becomes one Lark grammar for llguidance. Compiling may take long and is bounded by
llguidance's own limits on its work; whoever calls from an event loop does so in a thread (it gives
up the interpreter lock).
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark

from lingflash.core.errors import InvalidRequestError
from lingflash.core.types import GrammarSpec
from lingflash.structured.json_schema import MAX_SCHEMA_CHARS, prepare_schema, refuse, to_json
from lingflash.structured.masks import TokenMatcher
from lingflash.structured.regex_size import check_regex
from lingflash.structured.tool_grammar import answer_rules, call_schema
from lingflash.structured.vocabulary import Vocabulary

MAX_CHOICES = 10_000
MAX_KEPT = 64

# The request field of each kind, for messages.
PARAMS = {
    "json_schema": "structured_outputs.json",
    "json_object": "response_format",
    "regex": "structured_outputs.regex",
    "choice": "structured_outputs.choice",
    "lark": "structured_outputs.grammar",
    "answer": "tools",
}

# A second at most to compile, 15 milliseconds for a token's mask; the rest is llguidance's default.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    max_grammar_size=200_000,
    max_lexer_states=100_000,
    verbose_errors=False,
)


def to_lark(spec: GrammarSpec, param: str | None = None) -> str:
    """Write a grammar in llguidance's Lark.

    Raises:
        InvalidRequestError: it is malformed or cannot be enforced; the message names the keyword.
    """
    param = param or PARAMS[spec.kind]
    if len(spec.text) > MAX_SCHEMA_CHARS:
        refuse(param, f"has {len(spec.text)} characters; at most {MAX_SCHEMA_CHARS} are allowed")
    if spec.kind == "lark":
        return spec.text
    if spec.kind == "answer":
        form = json.loads(spec.text)["form"]
        rule = None if form is None else _rule(GrammarSpec(*form[:2]), form[2])
        return answer_rules(spec.text, rule)
    return f"start: form\nform: {_rule(spec, param)}\n"


def _rule(spec: GrammarSpec, param: str) -> str:
    """The right side of a Lark rule for a grammar that is not Lark itself."""
    match spec.kind:
        case "json_schema":
            return f"%json {to_json(prepare_schema(_decoded(spec.text, param), param))}"
        case "json_object":
            return f"%json {to_json(prepare_schema({'type': 'object'}, param))}"
        case "regex":
            if not spec.text:
                refuse(param, "is empty; a regular expression is needed")
            check_regex(spec.text, param)
            return f"/{regex_to_lark(spec.text)}/"
        case "choice":
            choices = _decoded(spec.text, param)
            if not isinstance(choices, list) or not 0 < len(choices) <= MAX_CHOICES:
                refuse(param, f"must be a list of 1 to {MAX_CHOICES} strings")
            if not all(isinstance(choice, str) and choice for choice in choices):
                refuse(param, "holds something else than non-empty strings")
            return " | ".join(_quoted(choice) for choice in dict.fromkeys(choices))
    raise AssertionError(spec.kind)


def _decoded(text: str, param: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(param, f"is not valid JSON: {error}")


def _quoted(text: str) -> str:
    # A lone surrogate has no bytes that a token could stand for.
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)


def check_grammar(spec: GrammarSpec, param: str | None = None) -> None:
    """Compile without a vocabulary, to find out early whether it can be.

    Raises:
        InvalidRequestError: it cannot.
    """
    error = _error_of(to_lark(spec, param))
    if error is None:
        return
    if spec.kind == "answer":
        body = json.loads(spec.text)
        if body["form"] is not None:
            kind, text, where = body["form"]
            check_grammar(GrammarSpec(kind, text), where)
        for tool in body["tools"]:
            error_here = _error_of(f"start: %json {to_json(call_schema(tool))}")
            if error_here is not None:
                message = _explain(error_here, spec, tool["where"])
                raise InvalidRequestError(message, param=tool["where"])
    raise InvalidRequestError(_explain(error, spec, param), param=param or PARAMS[spec.kind])


def _error_of(lark: str) -> str | None:
    error = LLMatcher.validate_grammar(lark, limits=_LIMITS)
    return error if error and not error.startswith("WARNING") else None


class GrammarCompiler:
    """Compiles grammars for one vocabulary and keeps the latest; may be used from several threads.

    Args:
        load_vocabulary: called when the first grammar comes, since most servers run without one.
    """

    def __init__(self, load_vocabulary: Callable[[], Vocabulary]) -> None:
        self._load_vocabulary = load_vocabulary
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[GrammarSpec, LLMatcher] = OrderedDict()

    def compile(self, spec: GrammarSpec) -> TokenMatcher:
        """Return a matcher at its start.

        Raises:
            InvalidRequestError: the grammar is malformed or cannot be enforced.
        """
        with self._lock:
            if self._vocabulary is None or self._tokenizer is None:
                self._vocabulary = self._load_vocabulary()
                self._tokenizer = self._vocabulary.build()
            vocabulary, tokenizer = self._vocabulary, self._tokenizer
            kept = self._kept.get(spec)
            if kept is not None:
                self._kept.move_to_end(spec)
                return TokenMatcher(kept.deep_copy(), vocabulary.size, vocabulary.stop_ids)
        compiled = LLMatcher(tokenizer, to_lark(spec), log_level=0, limits=_LIMITS)
        if not compiled.is_error():
            # The lexer is built when it is first used: here, not between the engine's steps.
            compiled.deep_copy().compute_bitmask()
        if compiled.is_error():
            message = _explain(compiled.get_error(), spec, None)
            raise InvalidRequestError(message, param=PARAMS[spec.kind])
        with self._lock:
            self._kept[spec] = compiled
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return TokenMatcher(compiled.deep_copy(), vocabulary.size, vocabulary.stop_ids)


_KEYWORD_OF = (
    ("Unimplemented keys", None),
    ("Unknown format", "format"),
    ("Invalid type", "type"),
    ("oneOf constraints", "oneOf"),
    ("Pointer", "$ref"),
    ("Resource", "$ref"),
    ("look-around", "pattern"),
    ("regex parse error", "pattern"),
)


def _explain(error: str, spec: GrammarSpec, param: str | None) -> str:
    """llguidance's message for a client: what is wrong, without our grammar around it."""
    lines = [line for line in error.splitlines() if not re.match(r"\s*(\d+ \||\^+$)", line)]
    text = " ".join(" ".join(lines).split())
    text = re.sub(r"^at \d+\(\d+\): ", "", text).removeprefix("failed to compile JSON schema: ")
    param = param or PARAMS[spec.kind]
    text = text[:300].rstrip(".")
    keys = re.search(r"Unimplemented keys: \[(.*?)\]", text)
    if keys is not None:
        names = keys[1].replace('"', "'")
        return f"{param} has keywords that are not supported: {names}. Remove them."
    if spec.kind in ("json_schema", "answer"):
        for sign, keyword in _KEYWORD_OF:
            if sign in text and keyword is not None:
                return f"{param} cannot be enforced because of the keyword '{keyword}': {text}."
    return f"{param} cannot be enforced: {text}."
