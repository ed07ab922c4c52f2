"""Mutants: mutmut's operators and relaxations by rule for Python, one changed token for GLSL; one change each.

A draft says where a change is and makes the changed file when it is asked for.
"""

import difflib
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators

from tests.meta import shader_mutants

ROOT = Path(__file__).parents[3]
#: Operators of mutmut that change words, which no contract fixes.
_OF_WORDS = ("operator_string", "operator_symmetric_string_methods_swap", "operator_unsymmetrical_string_methods_swap")
#: What is no behaviour: types, imports, the text of an error.
_NOT_MUTATED = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom, cst.Assert, cst.FormattedString)
#: "contract 5.3", "docs/contract.md sections 3.4": the sections that a comment or a docstring names.
_SECTION = re.compile(r"contract(?:\.md)?(?: sections?)? (\d+(?:\.\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Draft:
    """A change that is not made yet. ``lines``: first and last line of its statement; (0, 0) where that runs on import.

    ``place`` is the change's name in its function, so that a sample stays what it is when other functions change.
    """

    file: str
    lines: tuple[int, int]
    operator: str
    place: str
    change: Callable[[], str]

    @cached_property
    def mutant(self) -> "Mutant":
        """Make the change."""
        before, after = (ROOT / self.file).read_text(), self.change()
        old, new = before.splitlines(), after.splitlines()
        while old and new and old[-1] == new[-1]:
            del old[-1], new[-1]
        first = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        texts = ("\n".join(line.strip() for line in side[first:]) for side in (old, new))
        return Mutant(self.file, first + 1, self.operator, *texts, after)


@dataclass(frozen=True)
class Mutant:
    """A file of the project with one change; ``old`` and ``new`` are the lines that differ, without indentation."""

    file: str
    line: int
    operator: str
    old: str
    new: str
    text: str

    @cached_property
    def name(self) -> str:
        """Known by the content of the changed file: what was found out of it holds for no other."""
        return hashlib.sha256(f"{self.file}\0{self.text}".encode()).hexdigest()[:16]

    def diff(self) -> str:
        """What changes, with two lines around it."""
        sides = ((ROOT / self.file).read_text().splitlines(), self.text.splitlines())
        return "\n".join(list(difflib.unified_diff(*sides, n=2, lineterm=""))[2:])

    def section(self) -> str:
        """The section of the contract that the file names nearest to the change, "" where it names none."""
        text = (ROOT / self.file).read_text()
        named = [(text.count("\n", 0, m.start()) + 1, m[1]) for m in _SECTION.finditer(text)]
        return min(named, key=lambda one: abs(one[0] - self.line))[1] if named else ""


def drafts(file: str) -> Iterable[Draft]:
    """Every change of a file, in the order of its text."""
    return _python(file) if file.endswith(".py") else _glsl(file)


def sample(every: Iterable[Draft], count: int, seed: int) -> list[Draft]:
    """Return ``count`` drafts that the seed draws: each by its own name, whatever the others are."""
    draw = lambda d: hashlib.sha256(f"{seed}\0{d.file}\0{d.operator}\0{d.place}".encode()).digest()  # noqa: E731
    return sorted(every, key=draw)[:count]


def _glsl(file: str) -> Iterator[Draft]:
    counts: Counter[str] = Counter()
    for token in shader_mutants.mutants(Path(file).stem):
        change = f"{token.old} -> {token.new}"
        counts[change] += 1
        yield Draft(file, (token.line, token.line), "token", f"{change} {counts[change]}", token.text)


def _python(file: str) -> Iterator[Draft]:
    wrapper = MetadataWrapper(cst.parse_module((ROOT / file).read_text()))
    at, parents = wrapper.resolve(PositionProvider), wrapper.resolve(ParentNodeProvider)
    counts: Counter[str] = Counter()
    for node, scope in _nodes(wrapper.module, ""):
        lines = _lines(node, at, parents) if scope else (0, 0)
        for operator, new in changes(node):
            counts[f"{scope} {operator}"] += 1
            place = f"{scope} {counts[f'{scope} {operator}']}"
            yield Draft(file, lines, operator, place, functools.partial(_written, wrapper.module, node, new))


def _written(module: cst.Module, node: cst.CSTNode, new: cst.CSTNode) -> str:
    return cst.ensure_type(module.deep_replace(node, new), cst.Module).code


def _nodes(node: cst.CSTNode, scope: str) -> Iterator[tuple[cst.CSTNode, str]]:
    """Every node that is behaviour, with the function that it is in ("" outside of any)."""
    yield node, scope
    if isinstance(node, cst.Raise):  # what an error says
        return
    if isinstance(node, cst.FunctionDef):
        scope = f"{scope}.{node.name.value}"
    for child in node.children:
        docstring = isinstance(child, cst.Expr) and isinstance(child.value, cst.BaseString)
        if not docstring and not isinstance(child, _NOT_MUTATED):
            yield from _nodes(child, scope)


def _lines(node: cst.CSTNode, at: Any, parents: Any) -> tuple[int, int]:
    """The lines of the innermost statement, of which a compound one counts up to the node."""
    statement = node
    while statement in parents and not isinstance(statement, cst.SimpleStatementLine | cst.BaseCompoundStatement):
        statement = parents[statement]
    start = at[statement].start.line
    whole = isinstance(statement, cst.SimpleStatementLine)
    end = at[statement].end.line if whole else start if statement is node else at[node].end.line
    return start, end


def changes(node: cst.CSTNode) -> Iterator[tuple[str, cst.CSTNode]]:
    """What a node may become, with the operator's name; those of relaxations begin with "relaxed"."""
    for kind, operator in mutation_operators:
        if isinstance(node, kind) and operator.__name__ not in _OF_WORDS:
            yield from ((operator.__name__.removeprefix("operator_"), new) for new in operator(node))
    yield from relaxations(node)


def relaxations(node: cst.CSTNode) -> Iterator[tuple[str, cst.CSTNode]]:
    """What makes a check say less: a condition that always or never holds, no error, no finding, a wider bound."""
    match node:
        case cst.If() | cst.IfExp():
            yield from (("relaxed condition", node.with_changes(test=cst.Name(value))) for value in ("True", "False"))
        case cst.BooleanOperation(left=left, right=right):
            yield from (("relaxed operand", side) for side in (left, right))
        case cst.Raise():
            yield "relaxed statement", cst.Pass()
        case cst.Expr(value=cst.Call()):
            yield "relaxed statement", cst.Pass()
        case cst.Return(value=cst.BaseExpression() as value) if not _is_none(value):
            spaced = node.with_changes(whitespace_after_return=cst.SimpleWhitespace(" "))
            yield "relaxed return", spaced.with_changes(value=cst.Name("None"))
        case cst.Comparison(comparisons=[cst.ComparisonTarget(operator=operator) as target]):
            if isinstance(operator, cst.LessThan | cst.LessThanEqual | cst.GreaterThan | cst.GreaterThanEqual):
                bound = target.comparator.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
                twice = cst.BinaryOperation(bound, cst.Multiply(), cst.Integer("2"))
                yield "relaxed bound", node.with_changes(comparisons=[target.with_changes(comparator=twice)])


def _is_none(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Name) and node.value == "None"
