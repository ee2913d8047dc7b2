"""Schedules read from text: Python's syntax, of which a short list of forms is allowed. Nothing is evaluated."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import torch

from purestep._checks import listed, near_misses
from purestep.schedules._schedule import CONSTRUCTORS, Schedule

METHODS = ("then", "shift", "clamp", "repeat")
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_LARGEST_POWER = 64  # in bits: no count of steps is larger, and a power must not fill the memory


def parse(text: str) -> Schedule:
    """Build the schedule that ``text`` says, as Python would be written: for command lines and configuration files.

    ``parse(repr(schedule)) == schedule`` for every schedule. The text is one expression, made of

    - constructors by their names (one's own too, once defined), called with numbers, strings, ``True``, ``False``,
      ``None``, tuples, lists and schedules: ``cosine(peak=0.1, total_steps=10_000)``;
    - ``+``, ``-``, ``*``, ``/``, parentheses, and ``**`` between ints (``2**20``);
    - the methods ``then``, ``shift``, ``clamp`` and ``repeat``;
    - ``torch.tensor(0.1, dtype=torch.float64)``, as it is in a ``repr``.

    Nothing else is understood, and nothing is evaluated. The one way to other code is a schedule that takes a function
    by name, as ``function('package.module:name')`` does: it calls that function of an imported module with steps.

    Raises:
        TypeError: ``text`` is no ``str``.
        ValueError: what the text says is no schedule. The message ends with its line, the place marked under it.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str that says a schedule, got {text!r} of type {type(text).__name__}")
    text = text.strip().replace("\r\n", "\n")
    if not text:
        raise ValueError("text must say a schedule, such as 'cosine(peak=0.1, total_steps=1000)', got nothing")
    try:
        node = ast.parse(text, mode="eval").body
        value = _Reader(text).read(node)
    except SyntaxError as error:
        raise _marked(f"text must be a Python expression: {error.msg}", text, *_place(error)) from None
    except UnicodeEncodeError as error:  # what a terminal passes on of bytes that are no UTF-8
        raise ValueError(f"text must be Unicode, got {text!r}: {error}") from None
    except (RecursionError, MemoryError):
        raise ValueError("text must be an expression of less depth, got one that is nested too deeply") from None
    if not isinstance(value, Schedule):
        raise _Reader(text).error(node, f"text must say a schedule, got {value!r} of type {type(value).__name__}")
    return value


class _Reader:
    """Follows the syntax tree of one text; the text is kept for the messages."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read(self, node: ast.expr) -> Any:
        """Return what a node says: a schedule, a number, a string, a bool, ``None``, or a tuple of these."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.Tuple() | ast.List():
                return tuple(self.read(element) for element in node.elts)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                operand = self.operand(node.operand)
                return -operand if isinstance(node.op, ast.USub) else operand
            case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Pow()):
                left, right = self.operand(node.left), self.operand(node.right)
                if isinstance(node.op, ast.Pow):
                    self.check_power(node, left, right)
                return self.called(node, _OPERATORS[type(node.op)], left, right)
            case ast.Call():
                return self.call(node)
            case ast.Name(id=name) if name in CONSTRUCTORS:
                raise self.error(node, f"{name} must be called, as {name}(...)")
            case ast.Name(id=name):
                raise self.error(node, self.unknown(name))
            case ast.Starred():
                raise self.error(node, "each argument must be written by itself, not unpacked")
            case _:
                raise self.error(
                    node,
                    "text must be made of schedules, numbers, strings, True, False, None, tuples, lists, + - * / **, "
                    f"and the methods {', '.join(METHODS)}",
                )

    def operand(self, node: ast.expr) -> Any:
        """Return a schedule or a number: what may stand beside an operator."""
        value = self.read(node)
        if isinstance(value, bool) or not isinstance(value, int | float | torch.Tensor | Schedule):
            raise self.error(node, f"an operand must be a schedule or a number, got {value!r}")
        return value

    def check_power(self, node: ast.BinOp, base: Any, exponent: Any) -> None:
        whole = isinstance(base, int) and isinstance(exponent, int)
        if not whole or exponent < 0 or base.bit_length() * exponent > _LARGEST_POWER:
            raise self.error(node, f"a power must be one of ints, of at most {_LARGEST_POWER} bits, such as 2**20")

    def call(self, node: ast.Call) -> Any:
        """Return what a constructor, a method of a schedule, or ``torch.tensor`` returns."""
        match node.func:
            case ast.Attribute(value=ast.Name(id="torch"), attr="tensor"):
                return self.tensor(node)
            case ast.Name(id=name) if name in CONSTRUCTORS:
                function: Callable[..., Any] = CONSTRUCTORS[name]
            case ast.Name(id=name):
                raise self.error(node.func, self.unknown(name))
            case ast.Attribute(value=inner, attr=name):
                receiver = self.read(inner)
                if not isinstance(receiver, Schedule):
                    raise self.error(inner, f"a schedule must stand before .{name}, got {receiver!r}")
                if name not in METHODS:
                    near = near_misses(name, METHODS) or f": it has {listed(METHODS)}"
                    raise self.error(_last_word(node.func), f"a schedule has no method {name!r} here{near}")
                function = getattr(receiver, name)
            case _:
                raise self.error(node.func, "what is called must be the name of a schedule, or a method of one")
        given, named = self.arguments(node)
        return self.called(node, function, *given, **named)

    def arguments(self, node: ast.Call) -> tuple[list[Any], dict[str, Any]]:
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.error(keyword.value, "each argument must be written by itself, not unpacked")
            if keyword.arg in named:
                raise self.error(keyword, f"{keyword.arg} must be given once")
            named[keyword.arg] = self.read(keyword.value)
        return [self.read(argument) for argument in node.args], named

    def tensor(self, node: ast.Call) -> torch.Tensor:
        """Read ``torch.tensor(number, dtype=torch.NAME, device=STRING)``, the form that ``repr`` writes."""
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            match keyword:
                case ast.keyword(arg="dtype", value=ast.Attribute(value=ast.Name(id="torch"), attr=name)):
                    named["dtype"] = getattr(torch, name, None)
                    if not isinstance(named["dtype"], torch.dtype):
                        raise self.error(keyword, f"dtype must be one that torch has, got torch.{name}")
                case ast.keyword(arg="device", value=ast.Constant(value=str(device))):
                    named["device"] = device
                case _:
                    raise self.error(keyword, "torch.tensor takes dtype=torch.float64 and device='cpu' and their like")
        if len(node.args) != 1:
            raise self.error(node, f"torch.tensor must be given one number, got {len(node.args)}")
        return self.called(node, torch.tensor, self.operand(node.args[0]), **named)

    def called(self, node: ast.expr, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Call ``function``; what it raises about its arguments is raised with the place of the one it names."""
        try:
            return function(*given, **named)
        except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
            message = str(error)
            blamed = (
                keyword
                for keyword in getattr(node, "keywords", ())
                if message.startswith(f"{keyword.arg} must") or f"hyperparameter {keyword.arg!r}" in message
            )
            raise self.error(next(blamed, node), message) from error

    def unknown(self, name: str) -> str:
        written = [known for known in CONSTRUCTORS if CONSTRUCTORS[known].formula.style == "call"]  # type: ignore[attr-defined]
        return f"no schedule is named {name!r}{near_misses(name, written)}"

    def error(self, node: ast.expr | ast.keyword, message: str) -> ValueError:
        """Return an error about a node, its line and place marked."""
        line = self.text.split("\n")[node.lineno - 1].encode()
        start = len(line[: node.col_offset].decode())
        end = len(line[: node.end_col_offset].decode()) if node.end_lineno == node.lineno else None
        return _marked(message, self.text, node.lineno, start, end)


def _last_word(node: ast.Attribute) -> ast.expr:
    """The part of ``a.b`` that says ``b``, for a mark."""
    word = ast.copy_location(ast.Name(node.attr), node)
    word.lineno = node.end_lineno or node.lineno
    word.col_offset = max((node.end_col_offset or 0) - len(node.attr.encode()), 0)
    return word


def _place(error: SyntaxError) -> tuple[int, int, int | None]:
    """The line, from 1, and the first and last character, from 0, that a syntax error speaks of."""
    end = (error.end_offset or 0) - 1 if error.end_lineno == error.lineno else -1
    return error.lineno or 1, max((error.offset or 1) - 1, 0), end if end >= 0 else None


def _marked(message: str, text: str, number: int, start: int, end: int | None) -> ValueError:
    lines = text.split("\n")
    line = lines[min(number, len(lines)) - 1]
    end = max(start + 1, len(line) if end is None else end)
    before = "".join(character if character == "\t" else " " for character in line[:start]).ljust(start)
    where = f"line {number}: " if len(lines) > 1 else ""
    return ValueError(f"{where}{message}\n  {line}\n  {before}{'^' * (end - start)}")
