"""Half surrogates, which JSON can spell and UTF-8 cannot hold, become U+FFFD.

A client that cuts a string between the two halves of an emoji sends one as `\\ud83d`, and a model
may write one. It has no bytes, so it can be neither encoded for the model nor sent to a client.
"""

from __future__ import annotations

import re

_HALF = re.compile("[\ud800-\udfff]")
# In JSON: escaped backslashes, then the escapes of two halves that belong together, or of one.
_ESCAPED = re.compile(
    r"(?<!\\)((?:\\\\)*)"
    r"(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def replace_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: two halves that belong together are their character."""
    if _HALF.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def replace_escaped_surrogates(json_text: str) -> str:
    """JSON without escapes of half surrogates; else to the letter as it was."""
    if "\\u" not in json_text:
        return json_text
    return _ESCAPED.sub(lambda match: match[1] + (match[2] or "\\ufffd"), json_text)
