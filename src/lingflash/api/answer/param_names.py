"""Errors of the chat route in the words of the endpoint that a request came to.

Responses and messages are translated to a chat request and checked as one. What is wrong is then
found under chat's name for it, such as `messages[3].content`; the client must read where it stands
in what it sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from lingflash.core.errors import InvalidRequestError

_MESSAGE = re.compile(r"messages\[(\d+)\]")
_TOOL_FIELD = re.compile(r"(tools\[\d+\])\.function\b")


class ParamNames:
    """Translates `param` and the message's first word.

    Args:
        names: chat's field to the endpoint's.
        sources: where each chat message came from, such as `input[2]`.
        tool_parameters: the endpoint's name of a tool's `parameters`.
        call_id: the endpoint's name of a tool result's `tool_call_id`.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        sources: Sequence[str],
        *,
        tool_parameters: str = "parameters",
        call_id: str = "call_id",
    ) -> None:
        self._names = names
        self._sources = sources
        self._tool_parameters = tool_parameters
        self._call_id = call_id

    def translate(self, param: str) -> str:
        """The endpoint's name of chat's `param`."""
        match = _MESSAGE.match(param)
        if match is not None and int(match[1]) < len(self._sources):
            rest = param[match.end() :].replace(".tool_call_id", f".{self._call_id}")
            return self._sources[int(match[1])] + rest
        # These tools are flat: their fields are not inside `function`.
        param = _TOOL_FIELD.sub(r"\1", param)
        param = param.replace("].parameters", f"].{self._tool_parameters}")
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
            raise type(error)(message, param=param) from None
