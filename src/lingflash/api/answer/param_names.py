"""Errors of chat's options in the words of the endpoint that a request came to.

Responses and messages have options of other names. What is wrong with them is found under chat's
name; the client must read the name of what it sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lingflash.core.errors import ContextLengthError, InvalidRequestError


class ParamNames:
    """Translates `param` and the message's first word.

    Args:
        names: chat's field to the endpoint's.
        too_long: what is said of a prompt that is longer than the context; None says what is found.
    """

    def __init__(self, names: Mapping[str, str], too_long: str | None = None) -> None:
        self._names = names
        self._too_long = too_long

    def translate(self, param: str) -> str:
        """The endpoint's name of chat's `param`."""
        for name, other in self._names.items():
            if param == name or param.startswith((name + ".", name + "[")):
                return other + param[len(name) :]
        return param

    @contextmanager
    def errors_translated(self) -> Iterator[None]:
        """Raise the errors of what is inside with the endpoint's names."""
        try:
            yield
        except InvalidRequestError as error:
            if error.param is None:
                raise
            param = self.translate(error.param)
            message = error.message
            if message.startswith(error.param):
                message = param + message[len(error.param) :]
            elif (name := error.param.split("[")[0].split(".")[0]) in self._names:
                message = re.sub(rf"\b{re.escape(name)}\b", self._names[name], message, count=1)
            if isinstance(error, ContextLengthError) and error.num_tokens and self._too_long:
                message = self._too_long.format(tokens=error.num_tokens, limit=error.limit)
            raise type(error)(message, param=param) from None
