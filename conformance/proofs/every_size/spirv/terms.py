"""Integer terms in normal form: polynomials over atoms, which are variables of z3, reads and quotients.

Two addresses that are the same polynomial are the same object, so most obligations hold before a solver sees them.
Quotients are brought into one form by identities of floor division that hold for all integers:

- floor((g*a + b) / (g*c)) = floor(a / c) for 0 <= b < g, c > 0
- floor((c*a + b) / c) = a + floor(b / c)
- a*b / b = a for b other than 0

and by quotients that the sizes' definitions give (``define``), each proven before it is used.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import z3

#: The texts of its atoms, sorted: the same in every process.
Monomial = tuple[str, ...]


@dataclass(frozen=True)
class Poly:
    """A sum of monomials with coefficients; () is the constant's monomial."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: "Term") -> "Term":
        return total([(self, 1), (other, 1)])

    __radd__ = __add__

    def __sub__(self, other: "Term") -> "Term":
        return total([(self, 1), (other, -1)])

    def __rsub__(self, other: "Term") -> "Term":
        return total([(other, 1), (self, -1)])

    def __neg__(self) -> "Term":
        return total([(self, -1)])

    def __mul__(self, other: "Term") -> "Term":
        found: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in monomials(other):
                key = _named(tuple(sorted((*left, *right))))
                found[key] = found.get(key, 0) + a * b
        return _poly(found)

    __rmul__ = __mul__

    def __floordiv__(self, other: "Term") -> "Term":
        return quotient(self, other)

    def __mod__(self, other: "Term") -> "Term":
        return remainder(self, other)

    def __rshift__(self, other: int) -> "Term":
        return quotient(self, 1 << other)

    def __and__(self, mask: int) -> "Term":
        """A run of ones."""
        low = mask & -mask
        return low * remainder(quotient(self, low), mask // low + 1)


Term = int | Poly
_ATOMS: dict[str, Any] = {}
_DEFINED: dict[tuple[Term, Term], Term] = {}
_PRODUCTS: dict[Monomial, str] = {}
_CACHE: dict[Poly, Any] = {}


def monomials(term: Term) -> tuple[tuple[Monomial, int], ...]:
    """The monomials of a term with their coefficients."""
    return term.terms if isinstance(term, Poly) else (((), term),) if term else ()


def _poly(found: Mapping[Monomial, int]) -> Term:
    kept = tuple(sorted((key, value) for key, value in found.items() if value))
    if not kept:
        return 0
    return kept[0][1] if len(kept) == 1 and kept[0][0] == () else Poly(kept)


def total(parts: Iterable[tuple[Term, int]]) -> Term:
    """The sum of terms times factors."""
    found: dict[Monomial, int] = {}
    for term, factor in parts:
        for key, value in monomials(term):
            found[key] = found.get(key, 0) + factor * value
    return _poly(found)


def atom(expression: Any) -> Poly:
    """A term that is an integer expression of z3, taken whole."""
    text = expression.sexpr()
    _ATOMS[text] = expression
    return Poly((((text,), 1),))


def variable(name: str) -> Poly:
    """An integer variable."""
    return atom(z3.Int(name))


def z(term: Term) -> Any:
    """The term as z3 sees it."""
    if isinstance(term, int):
        return z3.IntVal(term)
    if term not in _CACHE:
        products = []
        for key, factor in term.terms:
            parts = [_ATOMS[text] for text in key]
            if factor != 1 or not parts:
                parts.insert(0, z3.IntVal(factor))
            products.append(z3.Product(parts) if len(parts) > 1 else parts[0])
        _CACHE[term] = z3.Sum(products) if len(products) > 1 else products[0]
    return _CACHE[term]


def define(numerator: Term, denominator: Term, quotient: Term) -> None:
    """From here on the quotient of these two is that term; the caller has proven it."""
    _DEFINED[*_reduced(numerator, denominator)] = quotient


def name(factors: Iterable[str], product: str) -> Poly:
    """From here on the product of these variables is that variable, which stands for it."""
    _PRODUCTS[tuple(sorted(factors))] = product
    return variable(product)


def forget() -> None:
    """Drop every definition and name: another shader's sizes mean something else."""
    _DEFINED.clear()
    _PRODUCTS.clear()
    _CACHE.clear()
    _ATOMS.clear()


def _named(key: Monomial) -> Monomial:
    for factors, product in _PRODUCTS.items():
        left = _without(key, factors)
        if left is not None:
            return _named(tuple(sorted((*left, product))))
    return key


def _reduced(a: Term, b: Term) -> tuple[Term, Term]:
    """Numerator and denominator without their common factor, the numerator rounded down to a multiple of it."""
    factor = math.gcd(*(value for _key, value in monomials(b)))
    common = math.gcd(factor, *(value for key, value in monomials(a) if key != ()))
    if common <= 1:
        return a, b
    return _scaled(a, common), _scaled(b, common)


def _scaled(term: Term, factor: int) -> Term:
    """Every coefficient divided, the constant rounded down."""
    return _poly({key: value // factor for key, value in monomials(term)})


def quotient(a: Term, b: Term) -> Term:
    """floor(a / b), for b > 0."""
    a, b = _reduced(a, b)
    if (a, b) in _DEFINED:
        return _DEFINED[a, b]
    if isinstance(b, int):
        if isinstance(a, int):
            return a // b
        whole = _poly({key: value // b for key, value in a.terms if value % b == 0 or key == ()})
        rest = _poly({key: value % b if key == () else value for key, value in a.terms if key == () or value % b})
        if whole != 0:
            return whole + quotient(rest, b)
        return _quotient_atom(rest, b) if isinstance(rest, Poly) else 0
    if len(b.terms) == 1:
        (own, factor), left = b.terms[0], dict[Monomial, int]()
        kept: dict[Monomial, int] = {}
        for key, value in monomials(a):
            without = _without(key, own)
            if without is None or value % factor:
                left[key] = value
            else:
                kept[without] = kept.get(without, 0) + value // factor
        if kept:
            rest = _poly(left)
            return _poly(kept) + (0 if rest == 0 else quotient(rest, b))
    return 0 if a == 0 else _quotient_atom(a, b)


def remainder(a: Term, b: Term) -> Term:
    """The remainder of floor division, for b > 0."""
    return a - b * quotient(a, b)


def _without(key: Monomial, part: Monomial) -> Monomial | None:
    """A monomial divided by another, or None."""
    left = list(key)
    for text in part:
        if text not in left:
            return None
        left.remove(text)
    return tuple(left)


def _quotient_atom(a: Term, b: Term) -> Term:
    return atom(z(a) / z(b))
