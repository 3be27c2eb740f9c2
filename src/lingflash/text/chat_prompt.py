"""A checkpoint's text side as one object: tokenizer, chat template, and messages to token ids.

**Who may write special tokens.** `<|role_end|>` in a user's message must not end the turn. Before
rendering, each spelling of a special token inside a client's string (contents, names, arguments,
tool definitions) is replaced by a random word; the template runs on that, so its own logic sees
ordinary text; afterwards the rendered prompt is cut at those words, and the original spellings
are encoded as letters (`Tokenizer.encode_guarded`). A client that spells none, nearly all of
them, gets `encode(rendered)` itself.

**What was generated stays as it was.** The turns that `History` knows are not written by the
template: their token ids, or their text, go into the prompt as they were generated, so that it
continues what a prefix cache holds.

Exception: `<think>` and `</think>` in assistant messages stay, because templates look for them to
drop old reasoning.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lingflash.core.errors import InvalidRequestError, refuse
from lingflash.protocol.fields import Dropped, says_nothing
from lingflash.text.chat_template import ChatTemplate
from lingflash.text.messages import normalize_messages
from lingflash.text.start_check import check_text_files
from lingflash.text.tokenizer import EncodeRun, Piece, Tokenizer
from lingflash.text.tools import normalize_tools


class History(Protocol):
    """Remembers generated turns."""

    def turn(self, message: Mapping[str, Any], *, with_reasoning: bool) -> list[Piece] | None:
        """What stands in the prompt for an assistant message; None leaves it to the template.

        Args:
            message: with tool_calls, in the form that templates see.
            with_reasoning: the template writes this turn's thinking too.
        """
        ...


_ASSISTANT_MAY_WRITE = frozenset(("<think>", "</think>"))
_SWITCH = "thinking_option"
_OTHER_SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether an answer begins with thinking.

    Args:
        variables: of the template.
    """

    is_on: bool
    variables: dict[str, Any]


class ModelText:
    """Turns prompts into tokens for one checkpoint.

    Args:
        template: its chat template; None if it has none (a base model).
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.tokenizer = tokenizer
        self.template = template

    @classmethod
    def from_folder(cls, folder: Path) -> ModelText | None:
        """Read a checkpoint's tokenizer and template; None without tokenizer.json (token-id mode).

        Raises:
            ModelLoadError: a file is there but unusable, or takes too much time or memory.
        """
        check_text_files(folder)
        tokenizer = Tokenizer.from_folder(folder)
        if tokenizer is None:
            return None
        return cls(tokenizer, ChatTemplate.from_folder(folder))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        history: History | None = None,
    ) -> list[Piece]:
        """Check messages and write the prompt; pieces that a client must not command are literal.

        Args:
            add_generation_prompt: open the assistant's turn at the end.
            template_kwargs: further variables of the template.
            history: turns that are written as they were generated.

        Raises:
            InvalidRequestError: a message or tool is malformed, or there is no template.
        """
        return self.render(
            normalize_messages(messages),
            tools=normalize_tools(tools),
            add_generation_prompt=add_generation_prompt,
            template_kwargs=template_kwargs,
            history=history,
        )

    def render(
        self,
        checked: Sequence[dict[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        history: History | None = None,
    ) -> list[Piece]:
        """`render_chat` of messages and tools that are in the form that templates see.

        Raises:
            InvalidRequestError: there is no template, or it refuses them.
        """
        if self.template is None:
            raise InvalidRequestError(
                "This model has no chat template; use /v1/completions.", param="messages"
            )
        guard = _Guard(self.tokenizer.special_pattern)
        guarded = [guard.message(message) for message in checked]
        if history is not None:
            last_user = max((i for i, m in enumerate(checked) if m["role"] == "user"), default=-1)
            for i, message in enumerate(checked):
                if message.get("tool_calls"):
                    turn = history.turn(message, with_reasoning=i > last_user)
                    if turn is not None:
                        content = "".join(map(guard.insert, turn))
                        guarded[i] = {"role": "assistant", "content": content}
        guarded_tools = guard.value(tools) if tools else None
        text = self.template.render(
            guarded,
            tools=guarded_tools,
            add_generation_prompt=add_generation_prompt,
            template_kwargs=guard.value(dict(template_kwargs or {})),
        )
        return guard.cut(text)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        history: History | None = None,
        encode_run: EncodeRun | None = None,
    ) -> list[int]:
        """`render_chat`, then `encode_pieces`."""
        pieces = self.render_chat(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            template_kwargs=template_kwargs,
            history=history,
        )
        return self.encode_pieces(pieces, encode_run)

    def encode_pieces(
        self, pieces: Sequence[Piece], encode_run: EncodeRun | None = None
    ) -> list[int]:
        """Encode what `render_chat` returned.

        Args:
            encode_run: `Tokenizer.encode_run`, or what remembers its results.
        """
        if encode_run is not None and self.tokenizer.splits_exactly:
            return self.tokenizer.encode_guarded(pieces, encode_run)
        if any(piece.is_literal or piece.token_ids is not None for piece in pieces):
            return self.tokenizer.encode_guarded(pieces)
        return self.tokenizer.encode("".join(piece.text for piece in pieces))

    def thinking(
        self,
        reasoning_effort: str | None,
        template_kwargs: Mapping[str, Any] | None,
        dropped: Dropped | None = None,
    ) -> Thinking:
        """Whether an answer begins with thinking, and the template's variables that say so.

        Args:
            reasoning_effort: "none" is off, any other on; None leaves what template_kwargs say.
            template_kwargs: the request's own variables. `enable_thinking` and `thinking`, other
                templates' switches, stand for this one's.
            dropped: takes variables that say nothing.

        Raises:
            InvalidRequestError: the template has no switch, or the request sets it in two ways.
        """
        has_switch = self.template is not None and _SWITCH in self.template.variables
        variables: dict[str, Any] = {}
        for name, value in (template_kwargs or {}).items():
            where = f"chat_template_kwargs.{name}"
            if self.template is not None and name in self.template.variables:
                if name == _SWITCH and value not in ("on", "off"):
                    refuse(where, f"is {value!r}; allowed: 'on', 'off'")
                variables[name] = value
            elif name in _OTHER_SWITCHES and isinstance(value, bool) and has_switch:
                variables[_SWITCH] = "on" if value else "off"
            elif says_nothing(value) and dropped is not None:
                dropped.add(where, "chat_template_kwargs")
            else:
                variables[name] = value  # the template refuses it, and says what it has
        if reasoning_effort is not None:
            option = "off" if reasoning_effort == "none" else "on"
            if has_switch:
                given = variables.setdefault(_SWITCH, option)
                if given != option:
                    refuse(
                        "reasoning_effort",
                        f"is {reasoning_effort!r}, but chat_template_kwargs.{_SWITCH} is "
                        f"{given!r}; give one of them",
                    )
            elif option == "on":
                refuse(
                    "reasoning_effort",
                    f"is {reasoning_effort!r}, but this model's template has no switch for "
                    "thinking; leave it out",
                )
        return Thinking(variables.get(_SWITCH) == "on", variables)


class _Guard:
    """Swaps special spellings in client strings for random words, and back."""

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern
        self._word = "x" + secrets.token_hex(8) + "x"  # letters and digits survive any template
        self._pieces: list[Piece] = []

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._pattern is None:
            return message
        allowed = _ASSISTANT_MAY_WRITE if message["role"] == "assistant" else frozenset()
        return {
            key: value if key == "role" else self.value(value, allowed)
            for key, value in message.items()
        }

    def value(self, value: Any, allowed: frozenset[str] = frozenset()) -> Any:
        """A copy of a JSON value with every string guarded, keys too."""
        if isinstance(value, str):
            return self._text(value, allowed)
        if isinstance(value, Mapping):
            return {
                self._text(k, allowed) if isinstance(k, str) else k: self.value(v, allowed)
                for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(item, allowed) for item in value]
        return value

    def _text(self, text: str, allowed: frozenset[str]) -> str:
        if self._pattern is None:
            return text

        def swap(match: re.Match[str]) -> str:
            if match.group() in allowed:
                return match.group()
            return self.insert(Piece(match.group(), is_literal=True))

        return self._pattern.sub(swap, text)

    def insert(self, piece: Piece) -> str:
        """The word that stands for a piece while the template runs."""
        self._pieces.append(piece)
        return f"{self._word}{len(self._pieces) - 1}z"

    def cut(self, rendered: str) -> list[Piece]:
        if not self._pieces:
            return [Piece(rendered, is_literal=False)]
        parts = re.split(f"{self._word}([0-9]+)z", rendered)
        pieces = []
        for i, part in enumerate(parts):
            if i % 2:
                pieces.append(self._pieces[int(part)])
            elif part:
                pieces.append(Piece(part, is_literal=False))
        return pieces
