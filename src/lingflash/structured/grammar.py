"""Compiles what a client asks for into a matcher that says which tokens may come next.

Everything becomes one Lark grammar for llguidance. Its own limits on its work do not hold for all
of it: {"multipleOf": 100000007} takes minutes. So a server has each grammar checked in a process
that can be killed (`compile_server.py`) before its engine compiles it, in a thread (compiling gives
up the interpreter lock). Masks are bounded twice: by the limits here, and by whoever waits for them
(`engine/run/step_masks.py`), since the limits do not hold for all of a mask's work either.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark

from lingflash.core.errors import InvalidRequestError
from lingflash.core.types import GrammarSpec
from lingflash.protocol.unicode import replace_surrogates
from lingflash.structured.json_schema import prepare_schema, refuse, refuse_long, to_json
from lingflash.structured.masks import TokenMatcher
from lingflash.structured.regex_size import check_regex
from lingflash.structured.relax import RUNGS, drop_keywords
from lingflash.structured.tool_grammar import answer_rules, call_rules
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

# What keeps a mask at about 15 milliseconds: the ambiguous `s: s s | "a" | "b" | s s s` took
# 200 with llguidance's own 50,000 items. It leaves room for what people ask for: the rows of 300
# tools, or of 500 optional properties, have 2,000 items. A lexer's states stay, 1 to 2 KB each:
# 20,000 are enough for a choice of 10,000.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=5_000,
    max_items_in_row=2_000,
    max_grammar_size=200_000,
    max_lexer_states=20_000,
    verbose_errors=False,
)


def to_lark(spec: GrammarSpec, param: str | None = None) -> str:
    """Write a grammar in llguidance's Lark.

    Raises:
        InvalidRequestError: it is malformed or cannot be enforced; the message names the keyword.
    """
    param = param or PARAMS[spec.kind]
    refuse_long(spec.text, param)
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
            # One lexeme, which is as fast with 10,000 of them as with two; rules have a limit.
            return "CHOICE\nCHOICE: " + " | ".join(map(_quoted, dict.fromkeys(choices)))
    raise AssertionError(spec.kind)


def _decoded(text: str, param: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(param, f"is not valid JSON: {error}")


def _quoted(text: str) -> str:
    # A lone surrogate has no bytes that a token could stand for.
    return json.dumps(replace_surrogates(text), ensure_ascii=False)


def check_grammar(
    spec: GrammarSpec, param: str | None = None, tokenizer: LLTokenizer | None = None
) -> GrammarSpec:
    """Find out whether a grammar can be compiled, and what of it must be left out.

    Args:
        spec: what is asked for.
        param: the request field that it came in, for messages.
        tokenizer: also make the first mask, which is part of a compiler's work.

    Returns:
        The grammar to use: of tools that are not strict, what turns out not to compile is left out
        and named in its `dropped`.

    Raises:
        InvalidRequestError: it cannot be compiled.
    """
    error = _error_of(to_lark(spec, param), tokenizer)
    if error is None:
        return spec
    if spec.kind != "answer":
        raise InvalidRequestError(_explain(error, spec, param), param=param or PARAMS[spec.kind])
    body = json.loads(spec.text)
    if body["form"] is not None:
        kind, text, where = body["form"]
        check_grammar(GrammarSpec(kind, text), where)
    left_out: list[str] = []
    for tool in body["tools"]:
        error_here = _call_error(tool)
        if error_here is None:
            continue
        if tool["strict"]:
            message = _explain(error_here, spec, tool["where"])
            raise InvalidRequestError(message, param=tool["where"])
        tool["parameters"], dropped = _relax_further(tool)
        left_out += dropped
    if not left_out:
        raise InvalidRequestError(_explain(error, spec, param), param=param or PARAMS[spec.kind])
    relaxed = GrammarSpec("answer", json.dumps(body), (*spec.dropped, *left_out))
    error = _error_of(to_lark(relaxed, param), tokenizer)
    if error is not None:
        raise InvalidRequestError(_explain(error, spec, param), param=param or PARAMS[spec.kind])
    return relaxed


def _call_error(tool: Mapping[str, Any]) -> str | None:
    try:
        lark = call_rules(tool)
    except InvalidRequestError as error:
        return error.message
    return _error_of(lark, None)


def _relax_further(tool: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """What compiles of a tool's schema, and what was left out: any object if nothing else does."""
    for keywords in RUNGS:
        parameters, dropped = drop_keywords(tool["parameters"] or {}, tool["where"], keywords)
        if dropped and _call_error({**tool, "parameters": parameters}) is None:
            return parameters, dropped
    return None, [tool["where"]]


def _error_of(lark: str, tokenizer: LLTokenizer | None) -> str | None:
    if tokenizer is None:
        error = LLMatcher.validate_grammar(lark, limits=_LIMITS)
        return error if error and not error.startswith("WARNING") else None
    return _compile(lark, tokenizer).get_error() or None


def _compile(lark: str, tokenizer: LLTokenizer) -> LLMatcher:
    compiled = LLMatcher(tokenizer, lark, log_level=0, limits=_LIMITS)
    if not compiled.is_error():
        # The lexer is built when it is first used, and shared with copies made later: here, not
        # between the engine's steps.
        first = compiled.deep_copy()
        first.compute_bitmask()
        return first if first.is_error() else compiled
    return compiled


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
        self._kept: OrderedDict[tuple[str, GrammarSpec], TokenMatcher] = OrderedDict()

    def compile(self, spec: GrammarSpec, owner: str = "") -> TokenMatcher:
        """Return a matcher at its start.

        Args:
            spec: what is asked for.
            owner: whose it is; what was compiled for one makes nothing faster for another.

        Raises:
            InvalidRequestError: the grammar is malformed or cannot be enforced.
        """
        key = owner, spec
        with self._lock:
            if self._vocabulary is None or self._tokenizer is None:
                self._vocabulary = self._load_vocabulary()
                self._tokenizer = self._vocabulary.build()
            vocabulary, tokenizer = self._vocabulary, self._tokenizer
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept.copy()
        compiled = _compile(to_lark(spec), tokenizer)
        if compiled.is_error():
            message = _explain(compiled.get_error(), spec, None)
            raise InvalidRequestError(message, param=PARAMS[spec.kind])
        matcher = TokenMatcher(compiled, vocabulary.size, vocabulary.stop_ids)
        matcher.prepare()
        with self._lock:
            self._kept[key] = matcher
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return matcher.copy()


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
