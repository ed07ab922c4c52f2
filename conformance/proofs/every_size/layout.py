"""The layouts for every V and D, as polynomials: each nibble is one code's, and obligations look for it there.

A place counts nibbles. Row and column split into digits by division with remainder. A place that is the sum of weight
times digit, where each weight is the product of the ranges below it, is a mixed-radix number and names every nibble
once. Digits with a range that depends on sizes are variables here, so nothing is left to particular sizes.

Source: docs/contract.md section 1, as ``reference.table.positions`` has it.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import z3

from conformance.proofs.every_size.contract import Lookup, Prepack
from conformance.proofs.every_size.spirv.terms import Poly, Term, quotient, variable
from reference.table.positions import block_place, flat_place, linear_weight_place

#: Ranges of the digits of a place, the lowest weight first; 0 stands for the last, rows or blocks, which has no end.
_Digits = Callable[[Term], tuple[Term, ...]]
_DIGITS: dict[str, _Digits] = {
    "flat": lambda columns: (2, quotient(columns, 2), 0),
    "linear_weight": lambda columns: (2, quotient(columns, 2), 0),
    "block": lambda columns: (2, 4, 4, quotient(columns, 4), 0),
}


def nibble(layout: str, digits: Sequence[Term], columns: Term) -> Term:
    """Nibbles before the code of these digits."""
    row, column = _row_and_column(layout, digits)
    # Written for numbers; of terms they make terms.
    places: dict[str, Callable[..., Any]] = {"flat": flat_place, "linear_weight": linear_weight_place}
    byte, shift = places.get(layout, block_place)(row, column, columns)
    place: Term = 2 * byte + shift // 4
    return place


def is_bijection(layout: str, columns: Term) -> bool:
    """Whether the places of all codes of a table with so many columns are its nibbles, each once."""
    spans = _DIGITS[layout](columns)
    origin: tuple[Term, ...] = (0,) * len(spans)
    zero = nibble(layout, origin, columns)
    total: Term = 1
    lowest: Term = 0
    weights = [nibble(layout, (*origin[:i], 1, *origin[i + 1 :]), columns) - zero for i in range(len(spans))]
    for i, (weight, span) in enumerate(zip(weights, spans, strict=True)):
        # A negative weight counts its digit from the other end: the flat layout's even column is in the high nibble.
        if weight not in {total, -total if isinstance(total, int) else total}:
            return False
        if weight != total:
            lowest += weight * (span - 1)
        total = total * span if i < len(spans) - 1 else total
    choices = [_values(span, f"digit{i}") for i, span in enumerate(spans)]
    return zero + lowest == 0 and all(
        nibble(layout, digits, columns) == zero + _weighted(weights, digits) for digits in itertools.product(*choices)
    )


def reads_as_laid_out(sizes: Lookup) -> bool:
    """Whether ``sizes.code`` looks for every code in the nibble of its layout."""
    layout, columns = sizes.variant.weight_layout, sizes.embed_dim
    spans = _DIGITS[layout](columns)
    # Two bytes a digit pair of the flat layout: a word holds the digits of four.
    for digits in _points(layout, spans):
        row, column = _row_and_column(layout, digits)
        at, code = sizes.code(row, column, 8)
        word = at[0] if len(at) == 1 else (at[1] * quotient(columns, 4) + at[0]) * 4 + at[2]
        inside = nibble(layout, digits, columns) - 8 * word
        if not isinstance(inside, int) or not 0 <= inside < 8:  # noqa: PLR2004 - nibbles of a word
            return False
        if not z3.is_true(z3.simplify(code == z3.LShR(sizes.word(*at), 4 * inside) & 15)):
            return False
    return True


def packs_as_laid_out(sizes: Prepack) -> bool:
    """Whether ``sizes.word`` is made of the nibbles of the linear-weight layout, in the places of blocks."""
    block, pair = variable("block"), variable("pair")
    for parity, number, half, byte in itertools.product(range(2), range(4), range(2), range(4)):
        four = 2 * pair + parity
        row, column = 8 * block + 4 * half + number, 4 * four + byte
        source = 8 * (row * quotient(sizes.embed_dim, 8) + pair) + 4 * parity + byte
        target = 8 * (4 * (block * quotient(sizes.embed_dim, 4) + four) + number) + 2 * byte + half
        laid = nibble("linear_weight", (column % 2, quotient(column, 2), row), sizes.embed_dim)
        if source != laid or target != nibble("block", (half, byte, number, four, block), sizes.embed_dim):
            return False
    return True


def _values(span: Term, name: str) -> Sequence[Term]:
    """Every value of a digit, or a variable for any of them."""
    return [variable(name)] if isinstance(span, Poly) or span == 0 else range(span)


def _weighted(weights: Sequence[Term], digits: Sequence[Term]) -> Term:
    result: Term = 0
    for weight, digit in zip(weights, digits, strict=True):
        result = result + weight * digit
    return result


def _row_and_column(layout: str, digits: Sequence[Term]) -> tuple[Term, Term]:
    if layout == "block":
        half, byte, word, four, block = digits
        return 8 * block + 4 * half + word, 4 * four + byte
    odd, pair, row = digits
    return row, 2 * pair + odd


def _points(layout: str, spans: Sequence[Term]) -> list[tuple[Term, ...]]:
    """Every code of a word, of an arbitrary word."""
    if layout == "block":
        small = itertools.product(*(_values(span, "") for span in spans[:3]))
        return [(*digits, variable("four"), variable("row")) for digits in small]
    words = [4 * variable("word") + pair for pair in range(4)]
    return [(odd, pair, variable("row")) for pair in words for odd in range(2)]
