"""jinja2's sandbox with limits on time and memory.

The sandbox keeps a template away from the process, but not from its time and memory: ten characters
can ask for ten gigabytes, some of them while the template is being compiled. A checkpoint may be
anybody's, so:

- nothing is computed at compile time;
- what makes text or lists longer is measured before it is made (`+`, `~`, `*`, `%`, `**`, widths,
  `replace`, `join`, blocks), and the text of a whole rendering is limited;
- loops, calls, filters and tests look at a clock of processor time.

What no single look can stop, such as writing lists within lists within lists, meets the limits of
the process that renders a message at the start (`start_check.py`).
"""

from __future__ import annotations

import functools
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_CHARS = 32 * 2**20  # of one text, and of a rendering
MAX_ITEMS = 1_000_000  # of one list
_MAX_WIDTH = 10_000
_MAX_BITS = 4096
_MOST_CHARS = 16 * MAX_CHARS  # of all texts together
# Not worth counting, and nearly all there is.
_SHORT = 4096
_LOOK_EVERY = 16

# Nobody needs them in a prompt, and their time grows faster than their text.
_NO_FILTERS = frozenset(("pprint", "striptags", "urlize", "wordwrap", "xmlattr"))
_WIDE_FILTERS = frozenset(("batch", "center", "indent", "round", "slice", "tojson", "truncate"))
_WIDE_METHODS = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))
# A width of five digits, or one that is an argument.
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)|\{[^{}]*(:[^{}]*\d{5}|:[^{}]*\{)")


class TemplateLimitError(Exception):
    """A template asks for more time or memory than a prompt can need."""


class _Spent(threading.local):
    """What the rendering in this thread has used."""

    ends_s = float("inf")
    chars = 0


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """See the module; `limits` says how long a rendering may take."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, **options)
        self.code_generator_class = _WithoutFolding
        self.spent = _Spent()
        self._looks = itertools.count(1)  # of all threads: only now and then is enough
        self.concat = self._joined
        self.globals.pop("lipsum", None)
        for name in _NO_FILTERS:
            self.filters.pop(name, None)
        for table in (self.filters, self.tests):
            for name, function in table.items():
                table[name] = self.limited(name, function)

    def begin(self, time_limit_s: float) -> None:
        """Before a rendering in this thread: it gets so much processor time."""
        self.spent.ends_s = time.thread_time() + time_limit_s
        self.spent.chars = 0

    def tick(self) -> bool:
        """Look at the clock now and then; true."""
        if not next(self._looks) % _LOOK_EVERY:
            self._look()
        return True

    def _look(self) -> None:
        if time.thread_time() > self.spent.ends_s:
            raise TemplateLimitError("it takes too long")

    def make(self, num_chars: int) -> None:
        """Refuse a text that is too long before it is made."""
        if num_chars > _SHORT:
            self.spent.chars += num_chars
            if num_chars > MAX_CHARS or self.spent.chars > _MOST_CHARS:
                raise TemplateLimitError(f"it writes over {MAX_CHARS} characters")

    def join_text(self, *parts: Any) -> str:
        """What `~` does."""
        texts = [str(part) for part in parts]
        self.make(sum(map(len, texts)))
        return "".join(texts)

    def add(self, *parts: Any) -> Any:
        """What `+` does, from left to right."""
        total = 0
        for part in parts:
            if type(part) is not str:
                break
            total += len(part)
        else:
            if total > _SHORT:
                self.make(total)
            return "".join(parts)
        result, *rest = parts
        for part in rest:
            self._check_sum(result, part)
            result = result + part
        return result

    def _check_sum(self, left: Any, right: Any) -> None:
        if isinstance(left, str) and isinstance(right, str):
            self.make(len(left) + len(right))
        elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
            self._check_items((*left, *right))

    def _check_items(self, items: Sequence[Any], times: int = 1) -> None:
        if len(items) * times > MAX_ITEMS:
            raise TemplateLimitError(f"it makes a list of over {MAX_ITEMS} items")
        self.make(_text_in(items) * times)  # as it would be written

    def _check_format(self, text: str, values: Iterable[Any]) -> None:
        if _WIDE_FORMAT.search(text):
            raise TemplateLimitError(f"it asks for a width over {_MAX_WIDTH}")
        longest = max((len(value) for value in values if isinstance(value, str)), default=0)
        self.make(len(text) + (text.count("%") + text.count("{")) * longest)

    def _joined(self, parts: Iterable[str]) -> str:
        """What blocks, macros and the whole template do with their parts."""
        made, total = [], 0
        for part in parts:
            made.append(part)
            total += len(part)
            if total > MAX_CHARS:
                break
        self.make(total)
        return "".join(made)

    def limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test that looks at the clock and at what it would make."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            if name in _WIDE_FILTERS:
                _check_widths((*args, *kwargs.values()))
            elif name == "format":
                self._check_format(str(args[0]), (*args[1:], *kwargs.values()))
            elif name == "replace":
                self._check_replace([a for a in (*args, *kwargs.values()) if isinstance(a, str)])
            elif name == "join":
                args = self._check_join(*args, **kwargs)
                kwargs.pop("d", None)
            result = function(*args, **kwargs)
            if type(result) is str:
                self.make(len(result))
            return result

        return wrapped

    def _check_join(
        self, eval_ctx: Any, value: Iterable[Any], d: Any = "", *more: Any, **_: Any
    ) -> tuple[Any, ...]:
        items = list(value)
        self.make(len(str(d)) * len(items) + _text_in(items))
        return (eval_ctx, items, d, *more)

    def _check_replace(self, texts: list[str]) -> None:
        if len(texts) >= 3:
            text, old, new = texts[:3]
            if len(new) > len(old):
                count = len(text) + 1 if not old else text.count(old)
                self.make(len(text) + count * (len(new) - len(old)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Do `*`, `**` or `%`, if what comes of it is not too large."""
        if operator == "%":
            if isinstance(left, str):
                values = right.values() if isinstance(right, dict) else right
                self._check_format(left, values if isinstance(right, dict | tuple) else (right,))
        elif isinstance(left, int) and isinstance(right, int):
            bits, more = left.bit_length(), right.bit_length()
            if (bits * abs(right) if operator == "**" else bits + more) > _MAX_BITS:
                raise TemplateLimitError("it computes with numbers that are too large")
        elif operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(sized, str):
                    self.make(len(sized) * times)
                elif isinstance(times, int) and isinstance(sized, list | tuple):
                    self._check_items(sized, times)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something, looking at the clock first, and at what a method of a text would make."""
        if not next(__self._looks) % _LOOK_EVERY:
            __self._look()
        if args and type(__obj) is BuiltinMethodType and isinstance(__obj.__self__, str):
            name, text = __obj.__name__, __obj.__self__
            if name in _WIDE_METHODS:
                _check_widths(args)
            elif name == "replace":
                __self._check_replace([text, *(a for a in args if isinstance(a, str))])
            elif name == "join":
                items = list(args[0])
                __self.make(len(text) * len(items) + _text_in(items))
                args = (items,)
        if not __self.is_safe_callable(__obj):
            raise SecurityError(f"{__obj!r} is not safely callable")
        return __context.call(__obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` within the sandbox, without widths of millions."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        def formatted(*args: Any, **kwargs: Any) -> str:
            self._check_format(text, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return formatted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Ticking().visit(super()._parse(source, name, filename))


class _Ticking(NodeTransformer):
    """Makes loops look at the clock, by a name that no template can set to something else."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("tick()")))
        if node.test is not None:
            node.test = nodes.And(nodes.EnvironmentAttribute("tick()"), node.test)
        return node


class _WithoutFolding(CodeGenerator):
    """Leaves all but plain constants to the rendering, and `+` and `~` to the environment."""

    def visit_Add(self, node: nodes.Add, frame: Frame) -> None:
        parts: list[nodes.Expr] = [node.right]
        left = node.left
        while isinstance(left, nodes.Add):
            parts.append(left.right)
            left = left.left
        self._write_call("add", [left, *reversed(parts)], frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._write_call("join_text", node.nodes, frame)

    def _write_call(self, method: str, args: list[nodes.Expr], frame: Frame) -> None:
        self.write(f"environment.{method}(")
        for arg in args:
            self.visit(arg, frame)
            self.write(", ")
        self.write(")")

    def _output_child_to_const(
        self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo
    ) -> str:
        if not isinstance(node, nodes.Const | nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_EvalContextModifier(self, node: nodes.EvalContextModifier, frame: Frame) -> None:
        self.fail("autoescape is not supported in a chat template", node.lineno)


def _check_widths(args: Iterable[Any]) -> None:
    if any(isinstance(arg, int) and arg > _MAX_WIDTH for arg in args):
        raise TemplateLimitError(f"it asks for a width over {_MAX_WIDTH}")


def _text_in(items: Iterable[Any]) -> int:
    return sum(len(item) for item in items if isinstance(item, str))
