r"""A small LaTeX reader: one closed expression or relation to sympy, or a refusal.

It reads school algebra: numbers, letters with subscripts, ``+ - * / ^ !``, fractions, roots, binomials, absolute
values and named functions. It refuses everything else whole (sets, tuples, ``\pm``, mixed numbers such as
``1\frac45``, numbers in another base), so a caller never compares two prefixes. Constants are symbols (``\pi`` is not
3.14...), as in ORZ's reader. Written by hand because sympy's own ``parse_latex`` needs another antlr than math-verify
does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import sympy

MAX_DEPTH = 40
MAX_BITS = 1 << 14  # bits of an integer power or factorial, above which it is refused and not computed

_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SPACE = re.compile(r"(?:\s|\\[,;:! ]|~)+")
_RELATIONS = {"=": "=", "<": "<", ">": ">", "\\leq": "<=", "\\le": "<=", "\\geq": ">=", "\\ge": ">="}
_PRODUCTS = ("\\cdot", "\\times", "*", "\\div", "/")
_GREEK = re.compile(
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|chi|psi|omega"
    "|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega"
)
_SUBSCRIPT = re.compile(r"_(?:\{([A-Za-z0-9]+)\}|([A-Za-z0-9]))")
_FUNCTIONS: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "cot": sympy.cot,
    "sec": sympy.sec,
    "csc": sympy.csc,
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "sinh": sympy.sinh,
    "cosh": sympy.cosh,
    "tanh": sympy.tanh,
    "ln": sympy.log,
    "exp": sympy.exp,
}
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}


class Unreadable(ValueError):
    """The text is not one expression this reader knows."""


@dataclass(frozen=True, slots=True)
class Relation:
    """Relation ``sides[0] signs[0] sides[1] signs[1] ...``; an expression alone has one side and no sign."""

    sides: tuple[sympy.Expr, ...]
    signs: tuple[str, ...]

    def equals(self, other: Relation) -> bool:
        """Whether the signs are the same, and the sides equal one by one."""
        if self.signs != other.signs:
            return False
        return all(_same(a, b) for a, b in zip(self.sides, other.sides, strict=True))


def read(text: str) -> Relation:
    """Relation or expression of the whole ``text``. Unreadable names the place."""
    text = text.replace("\\left", "").replace("\\right", "")
    return _Reader(text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")).relation()


class _Reader:
    def __init__(self, text: str):
        self.text = text
        self.at = 0
        self.depth = 0

    def relation(self) -> Relation:
        sides, signs = [self.sum()], []
        while (sign := self.take(*_RELATIONS)) is not None:
            signs.append(_RELATIONS[sign])
            sides.append(self.sum())
        if self.peek():
            raise self.error()
        if any(side.has(sympy.nan, sympy.zoo) for side in sides):
            raise Unreadable(f"{self.text!r} divides by zero")
        return Relation(tuple(sides), tuple(signs))

    def error(self) -> Unreadable:
        return Unreadable(f"cannot read {self.text!r} at character {self.at}")

    def peek(self) -> str:
        """Next character after spaces; empty at the end."""
        if space := _SPACE.match(self.text, self.at):
            self.at = space.end()
        return self.text[self.at : self.at + 1]

    def take(self, *symbols: str) -> str | None:
        r"""Consume the first of ``symbols`` that comes next; ``\le`` does not match the head of ``\left``."""
        self.peek()
        for symbol in symbols:
            if not self.text.startswith(symbol, self.at):
                continue
            end = self.at + len(symbol)
            if symbol[-1].isalpha() and self.text[end : end + 1].isalpha():
                continue
            self.at = end
            return symbol
        return None

    def need(self, symbol: str) -> None:
        if self.take(symbol) is None:
            raise self.error()

    def sum(self) -> sympy.Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error()
        total = self.product()
        while (sign := self.take("+", "-")) is not None:
            term = self.product()
            total = total + term if sign == "+" else total - term
        self.depth -= 1
        return total

    def product(self) -> sympy.Expr:
        total = self.signed()
        while True:
            operator = self.take(*_PRODUCTS)
            if operator is not None:
                factor = self.signed()
                total = _quotient(total, factor) if operator in ("/", "\\div") else total * factor
            elif self.starts_factor():
                total = total * self.factor()
            else:
                return total

    def signed(self) -> sympy.Expr:
        sign = 1
        while (symbol := self.take("+", "-")) is not None:
            sign = -sign if symbol == "-" else sign
        return sign * self.factor()

    def starts_factor(self) -> bool:
        """Whether a product continues without an operator. It does not for a number, or a fraction of numbers, after a
        number."""
        character = self.peek()
        after_number = self.text[: self.at].rstrip()[-1:].isdigit()
        if character.isascii() and character.isdigit():
            return not after_number
        if character in ("(", "{") or (character.isascii() and character.isalpha()):
            return True
        command = _COMMAND.match(self.text, self.at)
        if command is None or f"\\{command[1]}" in (*_RELATIONS, *_PRODUCTS):
            return False
        return not (after_number and command[1] == "frac")

    def factor(self) -> sympy.Expr:
        base = self.atom()
        while self.take("!"):
            base = _factorial(base)
        if self.take("^"):
            base = _power(base, self.argument())
        return base

    def argument(self) -> sympy.Expr:
        """Braced group, or one token like in TeX: a letter, a command, or here a whole number."""
        return self.group("{") if self.peek() == "{" else self.atom()

    def digit_or_group(self) -> sympy.Expr:
        r"""Argument that may be a single digit: ``\frac12`` is one half."""
        character = self.peek()
        if character.isascii() and character.isdigit():
            self.at += 1
            return sympy.Integer(character)
        return self.argument()

    def group(self, opening: str) -> sympy.Expr:
        self.need(opening)
        inside = self.sum()
        self.need(_CLOSING[opening])
        return inside

    def atom(self) -> sympy.Expr:
        character = self.peek()
        if number := _NUMBER.match(self.text, self.at):
            self.at = number.end()
            digits = number.group()
            return sympy.Float(digits) if "." in digits else sympy.Integer(digits)
        if character in ("(", "[", "{"):
            return self.group(character)
        if character == "|":
            return sympy.Abs(self.group("|"))
        if character.isascii() and character.isalpha():
            self.at += 1
            return sympy.Symbol(character + self.subscript())
        if command := _COMMAND.match(self.text, self.at):
            self.at = command.end()
            return self.command(command[1])
        raise self.error()

    def subscript(self) -> str:
        match = _SUBSCRIPT.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return f"_{match[1] or match[2]}"

    def command(self, name: str) -> sympy.Expr:
        if _GREEK.fullmatch(name):
            return sympy.Symbol(name + self.subscript())
        if name == "infty":
            return sympy.oo
        if name in ("frac", "binom"):
            top, bottom = self.digit_or_group(), self.digit_or_group()
            return _quotient(top, bottom) if name == "frac" else _binomial(top, bottom)
        if name == "sqrt":
            index = self.group("[") if self.peek() == "[" else sympy.Integer(2)
            return _power(self.digit_or_group(), _quotient(sympy.Integer(1), index))
        if name == "log":
            base = self.argument() if self.take("_") else None
            inside = self.applied()
            return sympy.log(inside) if base is None else sympy.log(inside, base)
        if name in _FUNCTIONS:
            power = self.argument() if self.take("^") else sympy.Integer(1)
            return _FUNCTIONS[name](self.applied()) ** power
        raise self.error()

    def applied(self) -> sympy.Expr:
        r"""Argument of a function: a group, otherwise the factors up to the next operator (``\sin 2x``)."""
        if self.peek() in ("(", "{"):
            return self.group(self.peek())
        inside = self.factor()
        while self.starts_factor() and self.peek() != "\\":
            inside = inside * self.factor()
        return inside


def _same(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether two expressions are structurally equal or equal at 15 digits. Two exact rationals must be exactly
    equal."""
    if a == b:
        return True
    return not (a.is_Rational and b.is_Rational) and bool(a.evalf() == b.evalf())


def _quotient(top: sympy.Expr, bottom: sympy.Expr) -> sympy.Expr:
    if bottom.is_zero:
        raise Unreadable("a division by zero")
    return top / bottom


def _power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    if base.is_Rational and exponent.is_Rational:
        bits = max(int(base.p).bit_length(), int(base.q).bit_length())
        if bits * abs(exponent) > MAX_BITS:
            raise Unreadable(f"a power of more than {MAX_BITS} bits")
    elif exponent.is_number and not base.is_Symbol and abs(exponent) > MAX_BITS:
        raise Unreadable(f"an exponent above {MAX_BITS}")
    return base**exponent


def _factorial(base: sympy.Expr) -> sympy.Expr:
    if base.is_Integer and base > 1000:
        raise Unreadable("a factorial above 1000!")
    return sympy.factorial(base)


def _binomial(top: sympy.Expr, bottom: sympy.Expr) -> sympy.Expr:
    if any(part.is_number and abs(part) > 1000 for part in (top, bottom)):
        raise Unreadable("a binomial above 1000")
    return sympy.binomial(top, bottom)
