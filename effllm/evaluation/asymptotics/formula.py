r"""The value of a formula in LaTeX, or in the notation of Python and SymPy, at given values of its variables.

A formula is computed while it is read, in floating point: nothing in it is run or looked up, powers overflow instead of
growing, and its length and depth are bounded. So what a model writes cannot hold up its judge.

Read are numbers, the variables that are asked for, e, \pi and the imaginary unit, + - * / ^ and products without a
sign, fractions, roots, and the functions of `_FUNCTIONS`. Everything else is no formula.
"""

import cmath
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from string import ascii_letters

LONGEST = 10_000
"""Characters of the longest formula that is read."""
_DEEPEST = 40
_LONGEST_NAME = 12
# A root of a negative number is real where its degree is odd and at most this.
_HIGHEST_ROOT = 25


class NoFormulaError(ValueError):
    """The text is no formula in these variables, or has no finite value."""


def value(text: str, variables: Mapping[str, float], real_roots: bool = True) -> complex:
    """The value of the formula `text`; `NoFormulaError` if there is none.

    `variables` by name ("x", "epsilon", "a_1"). `real_roots`: odd roots of negative numbers are the real ones, and not
    the principal ones.
    """
    reader = _Reader(_tokens(text, variables), variables, real_roots)
    try:
        result = reader.sum()
        if reader.next is not None:
            raise NoFormulaError(f"unexpected {reader.next!r}")
        if not cmath.isfinite(result):
            raise NoFormulaError("the value is not finite")
    except (OverflowError, ZeroDivisionError, ValueError) as error:
        raise error if isinstance(error, NoFormulaError) else NoFormulaError(str(error)) from None
    return result


def _real(function: Callable[[float], float]) -> Callable[[complex], complex]:
    def apply(argument: complex) -> complex:
        if argument.imag:
            raise NoFormulaError("this function takes real numbers")
        return complex(function(argument.real))

    return apply


_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    **{name: getattr(cmath, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "log", "sqrt")},
    **{name: getattr(cmath, name) for name in ("asin", "acos", "atan")},
    "ln": cmath.log,
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "gamma": _real(math.gamma),
    "Gamma": _real(math.gamma),
    "erf": _real(math.erf),
    "abs": lambda argument: complex(abs(argument)),
}
_CONSTANTS = {"pi": complex(math.pi), "e": complex(math.e), "E": complex(math.e), "i": 1j, "I": 1j}
_NAMES = {"varepsilon": "epsilon", "eps": "epsilon"}
# Minus, dash, dot, times, divided by, epsilon twice, pi.
_SIGNS = {"\u2212": "-", "\u2013": "-", "\u00b7": "*", "\u00d7": "*", "\u00f7": "/", "**": "^"} | {
    "\u03b5": "epsilon ",
    "\u03f5": "epsilon ",
    "\u03c0": "pi ",
}
_COMMANDS = {"cdot": "*", "times": "*", "ast": "*", "div": "/", "lbrace": "(", "rbrace": ")", "dfrac": "frac"}
# What changes how a formula looks and not what it says.
_LOOKS = re.compile(
    r"\\(?:left|right|displaystyle|limits|bigl?|bigr?|Bigl?|Bigr?|quad|qquad)(?![a-zA-Z])"
    r"|\\[,;:! ]|\\(?=[{}()\[\]])|[$~&]"
)
_NAMED = re.compile(r"\\(?:operatorname|mathrm|text|mathit|rm)\*?\s*\{\s*([A-Za-z]+)\s*\}")
_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|\\(?P<command>[a-zA-Z]+)|(?P<word>[a-zA-Z]+)|(?P<sign>[-+*/^(){}\[\]])"
)
_INDEX = re.compile(r"\s*_\s*(?:\{\s*(\w+)\s*\}|(\w))|(\d+)(?=\D|$)")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def _tokens(text: str, variables: Mapping[str, float]) -> list[str]:
    if len(text) > LONGEST:
        raise NoFormulaError(f"a formula of {len(text)} characters is not read")
    text = _NAMED.sub(r" \1 ", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    text = _LOOKS.sub(" ", text)
    tokens: list[str] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = _TOKEN.match(text, at)
        if not found:
            raise NoFormulaError(f"{text[at]!r} is not read")
        at = found.end()
        if found["command"]:
            name = _COMMANDS.get(found["command"], found["command"])
            name = _NAMES.get(name, name)
            if name not in {"*", "/", "(", ")", "frac", *variables, *_FUNCTIONS, "pi"}:
                raise NoFormulaError(f"\\{found['command']} is not read")
            tokens.append(name)
        elif found["word"]:
            name, at = _word(text, found.start(), variables)
            tokens.append(name)
        else:
            tokens.append(found[0])
    return tokens


def _word(text: str, at: int, variables: Mapping[str, float]) -> tuple[str, int]:
    """The longest name that the letters from `at` on begin with, and where it ends."""
    longest = text[at : at + _LONGEST_NAME]
    letters = len(longest) - len(longest.lstrip(ascii_letters))
    for end in range(at + letters, at, -1):
        name = text[at:end]
        name = _NAMES.get(name, name)
        if index := _INDEX.match(text, end):
            indexed = f"{name}_{index[1] or index[2] or index[3]}"
            if indexed in variables:
                return indexed, index.end()
        if name in variables or name in _FUNCTIONS or name in _CONSTANTS:
            return name, end
    raise NoFormulaError(f"{longest!r} is not read")


class _Reader:
    """Reads tokens from left to right, by one function for each level of the grammar."""

    def __init__(self, tokens: list[str], variables: Mapping[str, float], real_roots: bool):
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._variables = variables
        self._real_roots = real_roots

    @property
    def next(self) -> str | None:
        """The token that is to be read; None at the end."""
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def sum(self) -> complex:
        """Terms with + and - between them."""
        total = self._product()
        while self.next in ("+", "-"):
            sign = self._take()
            term = self._product()
            total = total + term if sign == "+" else total - term
        return total

    def _product(self) -> complex:
        result = self._signed()
        while self.next is not None and self.next not in ("+", "-", ")", "]", "}", "^"):
            if self.next in ("*", "/"):
                sign = self._take()
                factor = self._signed()
                result = result * factor if sign == "*" else result / factor
            else:
                result *= self._power()
        return result

    def _signed(self) -> complex:
        sign = 1
        while self.next in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        return sign * self._power()

    def _power(self) -> complex:
        base = self._atom()
        return self._raised(base, self._exponent()) if self.next == "^" else base

    def _exponent(self) -> complex:
        self._take()
        sign = 1
        while self.next in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        # To the right first: 2^3^2 is 2^9.
        with self._deeper():
            return sign * self._power()

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NoFormulaError(f"a formula nested more than {_DEEPEST} deep is not read")
        yield
        self._depth -= 1

    def _atom(self) -> complex:
        with self._deeper():
            return self._after(self._take())

    def _after(self, token: str) -> complex:
        if token in _CLOSING:
            result = self.sum()
            if self._take() != _CLOSING[token]:
                raise NoFormulaError(f"{token} is not closed")
            return result
        if token == "frac":
            above = self._atom()
            return above / self._atom()
        if token == "sqrt":
            return self._root()
        if token in self._variables:
            return complex(self._variables[token])
        if token in _FUNCTIONS:
            return self._function(token)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token[0] in ".0123456789":
            return complex(float(token))
        raise NoFormulaError(f"unexpected {token!r}")

    def _root(self) -> complex:
        degree = self._atom() if self.next == "[" else complex(2)
        return self._raised(self._atom(), 1 / degree)

    def _function(self, name: str) -> complex:
        power = self._exponent() if self.next == "^" else None
        if self.next in _CLOSING:
            argument = self._atom()
        else:
            # sin 2 x: numbers, variables and fractions that follow without a sign.
            argument = self._signed()
            while self.next is not None and (
                self.next in self._variables or self.next == "frac" or self.next[0] in ".0123456789"
            ):
                argument *= self._power()
        result = _plain(_FUNCTIONS[name](argument))
        return result if power is None else self._raised(result, power)

    def _raised(self, base: complex, power: complex) -> complex:
        if self._real_roots and base.real < 0 == base.imag == power.imag and not power.real.is_integer():
            share = Fraction(power.real).limit_denominator(_HIGHEST_ROOT)
            if share.denominator % 2 and math.isclose(float(share), power.real, rel_tol=1e-9):
                sign = -1 if share.numerator % 2 else 1
                return complex(sign * (-base.real) ** power.real)
        return _plain(base**power)

    def _take(self) -> str:
        token = self.next
        if token is None:
            raise NoFormulaError("the formula ends too early")
        self._at += 1
        return token


def _plain(result: complex) -> complex:
    """Without a negative zero as imaginary part, by which a root would change its branch."""
    return complex(result.real, result.imag + 0.0)
