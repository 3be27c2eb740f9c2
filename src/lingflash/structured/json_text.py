"""A grammar of text as a grammar of the JSON string that holds it.

A custom tool's text is written inside the JSON of its call, so a newline in it is the two
characters `\\n`. Each string and regular expression of a Lark grammar is rewritten for that: what
needs no escape stays as it is, and every character that does becomes its one escape.

llguidance's lexer does not go back. An expression that could go on with an escape would swallow the
backslash of the one that follows it, so escapes are lexemes of their own: an expression that may
hold them becomes a rule of runs of plain characters and escapes, and so does a terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from re import _constants as ops  # pyright: ignore[reportAttributeAccessIssue]  # the parser of re
from re import _parser  # pyright: ignore[reportAttributeAccessIssue]  # the parser of re
from typing import Any

from lingflash.core.errors import refuse
from lingflash.core.types import GrammarSpec

# What JSON escapes, each in one way.
_ESCAPES = {
    **{chr(code): f"\\u{code:04x}" for code in range(0x20)},
    **{"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"},
}
_PLAIN = r'[^"\\\x00-\x1f]'
_SPACES = "\t\n\x0b\f\r"

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|//[^\n]*|(?<![^\n])[#][^\n]*)
    |(?P<line>\n)
    |(?P<string>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?!/)(?:\\.|[^/\\\n])+/[a-z]*)
    |(?P<name>[!?]*_?[A-Za-z][A-Za-z0-9_]*)
    |(?P<directive>%[a-z]+)
    |(?P<sign>\.\.|->|.)""",
    re.VERBOSE,
)
# Terminals that grammars import which may need escapes; the others' definitions are llguidance's.
_COMMON = {
    "CR": '"\\r"',
    "LF": '"\\n"',
    "NEWLINE": '("\\r"? "\\n")+',
    "WS": "/[ \\t\\f\\r\\n]/+",
    "WS_INLINE": "/[ \\t]/+",
    "ESCAPED_STRING": '"\\"" /([^"\\\\\\n]|\\\\.)*/ "\\""',
    "SH_COMMENT": "/#[^\\n]*/",
    "CPP_COMMENT": "/\\/\\/[^\\n]*/",
    "SQL_COMMENT": "/--[^\\n]*/",
}

_Token = tuple[str, str]


def text_call_rules(rule: str, tool_name: str, form: GrammarSpec, where: str) -> str:
    """Lark rules of a call whose one argument is a text of some form.

    Args:
        rule: the first rule's name.
        where: the request field of the form, for messages.

    Raises:
        InvalidRequestError: the form cannot be enforced inside JSON.
    """
    call = json.dumps({"name": tool_name, "arguments": {"input": ""}}, ensure_ascii=False)
    begin, end = call[:-3], call[-3:]
    grammar = form.text if form.kind == "lark" else f"start: {_as_regex(form.text)}"
    inner = quote_lark(grammar, where).replace("\n", "\n  ")
    return (
        f"{rule}: {json.dumps(begin)} {rule}_text {json.dumps(end)}\n"
        f"{rule}_text: %lark {{\n  {inner}\n}}"
    )


def quote_lark(grammar: str, where: str) -> str:
    """Rewrite a Lark grammar of texts as one of the insides of JSON strings.

    Raises:
        InvalidRequestError: it holds something whose meaning cannot be kept.
    """
    statements = _inline_imports(_statements(grammar), where)
    rules = _terminals_with_escapes(statements, where)
    lines = []
    for statement in statements:
        words = [_rewritten(statement, i, rules, where) for i in range(len(statement))]
        words = [word for word in words if word]
        if statement and statement[0][1] == "%ignore":
            # One lexeme for each, since a lexeme that repeats escapes would not end before one.
            lines += [f"%ignore {part}" for part in _ignored(statement, where)]
        else:
            lines.append(" ".join(words))
    return "\n".join(lines)


def _statements(grammar: str) -> list[list[_Token]]:
    """Tokens by definition or directive."""
    tokens: list[_Token] = []
    for match in _TOKEN.finditer(grammar):
        if match.lastgroup != "space":
            tokens.append((match.lastgroup or "sign", match[0]))
    found: list[list[_Token]] = []
    at_line_start = True
    for i, (kind, text) in enumerate(tokens):
        if kind == "line":
            at_line_start = True
            continue
        begins = at_line_start and (kind == "directive" or _is_definition(tokens, i))
        at_line_start = False
        if begins or not found:
            found.append([])
        found[-1].append((kind, text))
    return found


def _is_definition(tokens: Sequence[_Token], i: int) -> bool:
    if tokens[i][0] != "name":
        return False
    following = [text for kind, text in tokens[i + 1 : i + 5] if kind != "line"]
    if following[:1] == ["."]:  # a priority
        following = following[2:]
    return following[:1] == [":"]


def _inline_imports(statements: list[list[_Token]], where: str) -> list[list[_Token]]:
    found: list[list[_Token]] = []
    for statement in statements:
        if statement[0][1] in ("%json", "%regex", "%lark", "%llguidance", "%override", "%extend"):
            refuse(f"{where}.definition", f"holds {statement[0][1]}, which is not supported")
        if statement[0][1] != "%import":
            found.append(statement)
            continue
        words = [text for _, text in statement[1:]]
        names = [word for word in words if word[:1].isupper() or word[:2].lstrip("_").isupper()]
        renamed = "->" in words
        for name in names[:1] if renamed else names:
            alias = words[-1] if renamed else name
            if name in _COMMON:
                found += _statements(f"{alias}: {_COMMON[name]}")
            else:
                found += _statements(f"%import common.{name}" + (f" -> {alias}" if renamed else ""))
    return found


def _terminals_with_escapes(statements: list[list[_Token]], where: str) -> dict[str, str]:
    """Terminals that must become rules, and their names as such."""
    taken = {text for statement in statements for kind, text in statement if kind == "name"}
    rules: dict[str, str] = {}
    while True:
        before = len(rules)
        for statement in statements:
            kind, name = statement[0]
            if kind != "name" or not _is_terminal(name) or name in rules:
                continue
            body = statement[[text for _, text in statement].index(":") + 1 :]
            if len(body) == 1 and body[0][0] == "string":
                continue  # one lexeme, whatever is in it
            if any(_needs_escapes(token, where) or token[1] in rules for token in body):
                rule = "t_" + name.lower().strip("_")
                while rule in taken:
                    rule += "_"
                taken.add(rule)
                rules[name] = rule
                if any(text in ("&", "~") for _, text in body):
                    refuse(f"{where}.definition", f"has & or ~ in {name}, which is not supported")
        if len(rules) == before:
            return rules


def _is_terminal(name: str) -> bool:
    return name.lstrip("_!?")[:1].isupper()


def _needs_escapes(token: _Token, where: str) -> bool:
    kind, text = token
    if kind == "string":
        return any(char in _ESCAPES for char in _string_of(text, where))
    return kind == "regex" and _may_escape(_parsed(text, where))


def _rewritten(statement: Sequence[_Token], i: int, rules: dict[str, str], where: str) -> str:
    kind, text = statement[i]
    if kind == "name":
        return rules.get(text, text)
    if kind == "regex":
        nodes = _parsed(text, where)
        return _Writer(where, text).sequence(nodes) if _may_escape(nodes) else text
    if text == ".." or (i and statement[i - 1][1] == ".."):
        return ""  # the range is written where it begins
    if kind == "string":
        if i + 2 < len(statement) and statement[i + 1][1] == "..":
            low, high = (_string_of(statement[j][1], where) for j in (i, i + 2))
            if len(low) == len(high) == 1:
                regex = f"/[{re.escape(low)}-{re.escape(high)}]/"
                nodes = _parsed(regex, where)
                return _Writer(where, regex).sequence(nodes) if _may_escape(nodes) else regex
        decoded = _string_of(text, where)
        if text.endswith("i") and any(char in _ESCAPES for char in decoded):
            refuse(f"{where}.definition", f"has {text}, a string without case that needs escapes")
        return json.dumps(_escaped(decoded), ensure_ascii=False) + "i" * text.endswith("i")
    if text in ("<", "@") or (kind == "directive" and i):
        refuse(f"{where}.definition", f"holds {text!r}, which is not supported")
    return text


def _ignored(statement: Sequence[_Token], where: str) -> list[str]:
    """The lexemes of a %ignore."""
    found: list[str] = []
    for kind, text in statement[1:]:
        if kind == "string":
            found.append(json.dumps(_escaped(_string_of(text, where)), ensure_ascii=False))
        elif kind == "regex":
            for node in _parsed(text, where):
                op, value = node
                if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
                    node = value[2][0]
                found += _Writer(where, text).lexemes(node)
        elif kind == "name":
            found.append(text)
    return found


def _string_of(text: str, where: str) -> str:
    try:
        decoded = json.loads(text.removesuffix("i"))
    except ValueError:
        refuse(f"{where}.definition", f"has the string {text}, which cannot be read")
    assert isinstance(decoded, str)
    return decoded


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(char, char) for char in text)


def _as_regex(text: str) -> str:
    return "/" + re.sub(r"(?<!\\)/", r"\\/", text.replace("\n", "\\n")) + "/"


def _parsed(text: str, where: str) -> list[Any]:
    """The parts of a regular expression as Lark writes it."""
    end = text.rindex("/")
    flags = text[end + 1 :]
    if set(flags) - set("is"):
        refuse(f"{where}.definition", f"has the flags {flags!r} in {text}; allowed: i, s")
    known = (re.I if "i" in flags else 0) | (re.S if "s" in flags else 0)
    try:
        parsed = _parser.parse(text[1:end].replace("\\/", "/"), known)
    except (re.error, OverflowError, RecursionError) as error:
        refuse(f"{where}.definition", f"has {text}, which cannot be read: {error}")
    nodes = list(parsed)
    if nodes and nodes[0] == (ops.AT, ops.AT_BEGINNING):
        nodes = nodes[1:]
    if nodes and nodes[-1] == (ops.AT, ops.AT_END):
        nodes = nodes[:-1]
    return nodes


def _specials(node: Any, *, all_chars: bool = False) -> str:
    """The characters of one place that JSON escapes."""
    op, value = node
    if op is ops.LITERAL:
        return chr(value) if chr(value) in _ESCAPES else ""
    if op is ops.NOT_LITERAL:
        return "".join(char for char in _ESCAPES if ord(char) != value)
    if op is ops.ANY:
        return "".join(char for char in _ESCAPES if char != "\n")
    found = [char for char in _ESCAPES if any(_holds(item, char) for item in value)]
    if value[0][0] is ops.NEGATE:
        found = [char for char in _ESCAPES if char not in found]
    return "".join(found)


def _holds(item: Any, char: str) -> bool:
    op, value = item
    if op is ops.LITERAL:
        return ord(char) == value
    if op is ops.RANGE:
        return value[0] <= ord(char) <= value[1]
    if op is ops.CATEGORY:
        if value is ops.CATEGORY_SPACE:
            return char in _SPACES
        if value is ops.CATEGORY_NOT_SPACE:
            return char not in _SPACES
        return value in (ops.CATEGORY_NOT_DIGIT, ops.CATEGORY_NOT_WORD)
    return False


_PLACES = (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN)


def _may_escape(nodes: Any) -> bool:
    for op, value in nodes:
        if op in _PLACES:
            if _specials((op, value)):
                return True
        elif op is ops.BRANCH:
            if any(_may_escape(branch) for branch in value[1]):
                return True
        elif (op is ops.SUBPATTERN and _may_escape(value[3])) or (
            op in (ops.MAX_REPEAT, ops.MIN_REPEAT) and _may_escape(value[2])
        ):
            return True
    return False


class _Writer:
    """Writes a regular expression that may hold escapes as a Lark expression.

    Args:
        regex: as it stands in the grammar.
    """

    def __init__(self, where: str, regex: str) -> None:
        self._where = where
        self._regex = regex
        flags = regex[regex.rindex("/") + 1 :]
        self._ignores_case = "i" in flags
        self._is_dotall = "s" in flags

    def sequence(self, nodes: Any) -> str:
        words: list[str] = []
        letters = ""
        for node in nodes:
            op, value = node
            if op is ops.LITERAL and not (self._ignores_case and chr(value).isalpha()):
                letters += chr(value)
                continue
            if letters:
                words.append(json.dumps(_escaped(letters), ensure_ascii=False))
                letters = ""
            words.append(self._node(node))
        if letters or not words:
            words.append(json.dumps(_escaped(letters), ensure_ascii=False))
        return "(" + " ".join(words) + ")"

    def lexemes(self, node: Any, repeat: str = "") -> list[str]:
        """What one place may be: plain characters, and escapes."""
        specials = _specials(node)
        if node[0] is ops.ANY and self._is_dotall:
            specials += "\n"
        found = []
        plain = self._plain(node)
        if plain is not None:
            found.append(f"/{plain}{repeat}/")
        if specials:
            escapes = "|".join(re.escape(_ESCAPES[char][1:]) for char in specials)
            found.append(f"/\\\\({escapes})/".replace('\\"', '"'))
        if not found:
            refuse(f"{self._where}.definition", f"has {self._regex}, which nothing matches")
        return found

    def _node(self, node: Any) -> str:
        op, value = node
        if op in _PLACES:
            return "(" + " | ".join(self.lexemes(node)) + ")"
        if op is ops.SUBPATTERN:
            if value[1] or value[2]:
                self._refuse("flags inside")
            return self.sequence(value[3])
        if op is ops.BRANCH:
            return "(" + " | ".join(self.sequence(branch) for branch in value[1]) + ")"
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            return self._repeated(*value)
        self._refuse("look-around, anchors or references")
        return ""

    def _repeated(self, low: int, high: Any, nodes: Any) -> str:
        many = high is ops.MAXREPEAT
        if len(nodes) == 1 and nodes[0][0] in _PLACES and many and low <= 1:
            # Runs of plain characters are one lexeme each.
            return "(" + " | ".join(self.lexemes(nodes[0], "+")) + ")" + "*+"[low]
        inner = self.sequence(nodes)
        if many:
            return inner + {0: "*", 1: "+"}.get(low, f"{{{low},}}")
        return inner + ("?" if (low, high) == (0, 1) else f"{{{low},{high}}}")

    def _plain(self, node: Any) -> str | None:
        """A class of the characters of one place that need no escape; None if there are none."""
        op, value = node
        if op is ops.ANY:
            return _PLAIN
        if op is ops.LITERAL:
            value = [(ops.LITERAL, value)]
        elif op is ops.NOT_LITERAL:
            value = [(ops.NEGATE, None), (ops.LITERAL, value)]
        items = [item for item in value if item[0] is not ops.NEGATE]
        is_negated = len(items) != len(value)
        if not is_negated and all(
            op is ops.LITERAL and chr(code) in _ESCAPES for op, code in items
        ):
            return None
        inner = "".join(self._item(item) for item in items)
        found = f"[[{'^' * is_negated}{inner}]&&{_PLAIN}]"
        return f"(?i:{found})" if self._ignores_case else found

    def _item(self, item: Any) -> str:
        op, value = item
        if op is ops.LITERAL:
            return f"\\x{{{value:x}}}"
        if op is ops.RANGE:
            return f"\\x{{{value[0]:x}}}-\\x{{{value[1]:x}}}"
        letters = {
            ops.CATEGORY_DIGIT: "\\d",
            ops.CATEGORY_NOT_DIGIT: "\\D",
            ops.CATEGORY_WORD: "\\w",
            ops.CATEGORY_NOT_WORD: "\\W",
            ops.CATEGORY_SPACE: "\\s",
            ops.CATEGORY_NOT_SPACE: "\\S",
        }
        if op is not ops.CATEGORY or value not in letters:
            self._refuse("a class that is not known")
        return letters[value]

    def _refuse(self, what: str) -> None:
        refuse(
            f"{self._where}.definition",
            f"has {self._regex} with {what}, which cannot be enforced inside JSON",
        )
