"""A calculator that a model may be given: arithmetic of a text, in a process that can be killed. No torch."""

from __future__ import annotations

import ast
import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

from stepstack.scoring.child_process import ChildDied, ChildProcess, ChildTimeout, serve

MAX_EXPRESSION = 1000  # characters
MAX_RESULT = 100
MEMORY_GIB = 1.0

Number = int | float
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def evaluate(expression: str) -> str:
    """Value of an expression of numbers, ``+ - * / // % **`` and brackets; a whole number without a decimal point, else
    ten significant digits. ValueError, ZeroDivisionError, OverflowError and MemoryError for everything else."""
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"an expression of {len(expression)} characters: at most {MAX_EXPRESSION} are read")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, RecursionError):
        raise ValueError(f"{expression!r:.80} is no arithmetic") from None
    if isinstance(value, complex) or not math.isfinite(value):
        raise ValueError(f"the value of {expression!r:.80} is no finite real number")
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    text = str(value) if isinstance(value, int) else f"{value:.10g}"
    if len(text) > MAX_RESULT:
        raise ValueError(f"the value of {expression!r:.80} has {len(text)} characters: at most {MAX_RESULT} are given")
    return text


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=bool() | complex()):
            raise ValueError(f"{node.value!r} is no number")
        case ast.Constant(value=int() | float()):
            return node.value  # type: ignore[return-value]
        case ast.BinOp(op=op) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(node.left), _value(node.right))
        case ast.UnaryOp(op=op) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(node.operand))
        case _:
            raise ValueError(f"{type(node).__name__} is no arithmetic")


class Calculator:
    """Values of expressions, computed in a child process that starts with the first and is killed where one takes
    longer than ``timeout`` seconds."""

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._child: ChildProcess | None = None
        self._known: dict[str, str | None] = {}

    def __call__(self, expressions: Sequence[str]) -> list[str | None]:
        """The value of each expression, in order; None for what has none, or none in time."""
        self._known = {text: self._known[text] if text in self._known else self._ask(text) for text in expressions}
        return [self._known[text] for text in expressions]

    def close(self) -> None:
        """Kill the process. Another call starts another one."""
        if self._child is not None:
            self._child.close()
        self._child = None

    def _ask(self, expression: str) -> str | None:
        if self._child is None:
            self._child = ChildProcess(__name__, self._timeout, MEMORY_GIB)
        try:
            return self._child.ask(expression)
        except (ChildTimeout, ChildDied):  # the caller counts a call that failed
            return None


def reply(expression: str) -> str | None:
    """The child's answer to one expression."""
    try:
        return evaluate(expression)
    except (ValueError, ArithmeticError, MemoryError):
        return None


if __name__ == "__main__":
    serve(sys.argv[1:], reply)
