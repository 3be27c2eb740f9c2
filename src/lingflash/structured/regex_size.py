"""What is seen of a regular expression without compiling it: parts and counts beyond our means."""

from __future__ import annotations

import re

from lingflash.core.errors import InvalidRequestError

MAX_REPEATS = 100_000
_COUNT = re.compile(r"\{(\d{1,9})(,(\d{0,9}))?\}")
# Look-around, back references and edges of words: no automaton follows them.
_UNSUPPORTED = re.compile(r"\(\?<?[=!]|\(\?P=|\(\?>|\\[1-9bBkGK]")


def has_unsupported_parts(regex: str) -> bool:
    """Whether a regular expression asks for what no automaton can follow."""
    # An escaped backslash escapes nothing after it; inside a class \b is a backspace, rare enough.
    return _UNSUPPORTED.search(regex.replace("\\\\", "")) is not None


def check_regex(regex: str, where: str, what: str = "the regular expression") -> None:
    """Bound the product of nested counts such as (a{100}){100}.

    Args:
        regex: in any of the usual syntaxes.
        where: the field that it came in, for messages.
        what: how to call it in messages.

    Raises:
        InvalidRequestError: it is over MAX_REPEATS.
    """
    repeats = _max_repeats(regex)
    if repeats > MAX_REPEATS:
        raise InvalidRequestError(
            f"{where}: {what} repeats a part {repeats} times; at most {MAX_REPEATS} are allowed, "
            "nested counts multiplied.",
            param=where,
        )


def _max_repeats(regex: str) -> int:
    groups = [1]  # the largest product within each open group
    last, at = 1, 0  # of the atom just read
    in_class = False
    while at < len(regex):
        char = regex[at]
        count = _COUNT.match(regex, at)
        if char == "\\":
            last, at = 1, at + 2
            continue
        if in_class:
            in_class = char != "]"
        elif char == "[":
            in_class, last = True, 1
        elif char == "(":
            groups.append(1)
        elif char == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] = max(groups[-1], last)
        elif count is not None:
            last *= max(int(count[1]), int(count[3] or 0), 1)
            groups[-1] = max(groups[-1], last)
            at = count.end()
            continue
        elif char not in "?*+|":
            last = 1
        at += 1
    return max(groups)
