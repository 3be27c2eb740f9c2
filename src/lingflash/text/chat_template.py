"""Renders a checkpoint's chat template in jinja2's sandbox, within limits (`template_limits.py`).

A template is code, so it comes from the checkpoint only; a request that brings one is refused.
Filters and globals are those that published templates rely on: `tojson` is `json.dumps(...,
ensure_ascii=False)`, without the HTML escapes that jinja2's own would add.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import loopcontrols

from lingflash.core.errors import InvalidRequestError, ModelLoadError
from lingflash.text.template_limits import LimitedEnvironment, TemplateLimitError

# Set by the server; a request may not set them through chat_template_kwargs.
_OWN_VARIABLES = frozenset(("messages", "tools", "add_generation_prompt"))
# Of processor time: a message takes 10 to 100 microseconds.
_TIME_LIMIT_S = 1.0
_TIME_PER_MESSAGE_S = 0.001
_GLOBALS = frozenset(("raise_exception", "strftime_now", "namespace", "range", "dict"))


class _TemplateRefusal(Exception):
    """The template called raise_exception."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the jinja2 text.
        special_tokens: variables such as bos_token and eos_token.
        origin: where it came from, for messages.

    Raises:
        ModelLoadError: it does not compile.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        origin: str = "chat_template.jinja",
    ) -> None:
        environment = self._environment = LimitedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = environment.limited("tojson", _tojson)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            syntax = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelLoadError(f"{origin} is not a valid template: {error}.") from None
        except (RecursionError, SyntaxError, MemoryError, ValueError) as error:
            # The code that jinja2 makes of it has limits of its own.
            problem = f"{type(error).__name__}: {error}"
            raise ModelLoadError(f"{origin} cannot be compiled ({problem}).") from None
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self._variables = frozenset(
            meta.find_undeclared_variables(syntax)
            - _OWN_VARIABLES
            - _GLOBALS
            - self.special_tokens.keys()
            - _set_inside(syntax)
        )

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """Read chat_template.jinja, or tokenizer_config.json's entry; None if there is neither.

        Raises:
            ModelLoadError: a file is there but unusable.
        """
        config: dict[str, Any] = {}
        config_path = folder / "tokenizer_config.json"
        path = folder / "chat_template.jinja"
        try:
            if config_path.is_file():
                config = json.loads(config_path.read_text(encoding="utf-8"))
            if path.is_file():
                source: Any = path.read_text(encoding="utf-8")
            else:
                path = config_path
                source = config.get("chat_template")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise ModelLoadError(f"{path} cannot be read: {error}.") from None
        if isinstance(source, list):  # several named templates
            named = [t for t in source if isinstance(t, dict)]
            source = next((t.get("template") for t in named if t.get("name") == "default"), None)
        if source is None:
            return None
        if not isinstance(source, str):
            raise ModelLoadError(f"{path} holds a template that is no text.")
        special_tokens = {}
        for key, value in config.items():
            if key.endswith("_token"):
                content = value.get("content") if isinstance(value, dict) else value
                if isinstance(content, str):
                    special_tokens[key] = content
        return cls(source, special_tokens=special_tokens, origin=str(path))

    @property
    def variables(self) -> frozenset[str]:
        """What a request may set through chat_template_kwargs."""
        return self._variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Write the prompt.

        Args:
            messages: in the form of `messages.normalize_messages`.
            tools: in the form of `messages.normalize_tools`.
            add_generation_prompt: open the assistant's turn at the end.
            template_kwargs: further variables of the template, such as thinking_option.

        Raises:
            InvalidRequestError: the template has no such variable, or refuses these messages; its
                cause is a TemplateLimitError if it takes too much time or memory.
        """
        extra = dict(template_kwargs or {})
        for name in extra:
            if name not in self._variables:
                known = ", ".join(sorted(self._variables)) or "none"
                raise InvalidRequestError(
                    f"chat_template_kwargs.{name} is not read by this model's template, so it "
                    f"would be ignored; its variables: {known}.",
                    param=f"chat_template_kwargs.{name}",
                )
        variables: dict[str, Any] = {**self.special_tokens, **extra}
        variables["messages"] = messages
        variables["tools"] = tools
        variables["add_generation_prompt"] = add_generation_prompt
        self._environment.begin(_TIME_LIMIT_S + _TIME_PER_MESSAGE_S * len(messages))
        limit: TemplateLimitError | None = None
        try:
            return self._template.render(variables)
        except TemplateLimitError as error:
            limit, problem = error, str(error)
        except _TemplateRefusal as error:
            problem = str(error)
        except RecursionError:
            problem = "the messages are nested too deeply"
        except Exception as error:  # template code can raise anything on input it does not expect
            problem = f"{type(error).__name__}: {error}"
        raise InvalidRequestError(
            f"The model's chat template refuses these messages: {problem}.", param="messages"
        ) from limit


def _set_inside(syntax: nodes.Template) -> set[str]:
    """Names that the template itself gives a value, without asking whether a request did."""
    stored = {name.name for name in syntax.find_all(nodes.Name) if name.ctx == "store"}
    asked = set()
    for test in syntax.find_all(nodes.Test):
        if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name):
            asked.add(test.node.name)
    for assign in syntax.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name):
            name = assign.target.name
            if any(each.name == name for each in assign.node.find_all(nodes.Name)):
                asked.add(name)
    return stored - asked


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateRefusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
