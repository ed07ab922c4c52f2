"""Planted bugs that only programs beyond a single lookup show: readers of rows and of indices, sizes, memory."""

from typing import Any
from unittest import mock

from conformance.case.case import Case
from conformance.harness.observation import Observation
from tests.planted.subjects import MatchBug, Planted


def _read_by_others(program: Any) -> list[Any]:
    """The lookups of a program whose rows something but the output reads."""
    lookups = [n for n in program.graph.nodes if n.op == "call_function" and "embedding" in str(n.target)]
    return [n for n in lookups if any(user.op != "output" for user in n.users)]


def _fused(program: Any) -> list[Any]:
    return [n for n in program.graph.nodes if n.op == "call_function" and "q4gsw" in str(n.target)]


def _exchange(program: Any) -> None:
    """A fused lookup whose rows something reads takes the indices of another."""
    for node in _read_by_others(program):
        if others := [n for n in _fused(program) if n is not node and node in _fused(program)]:
            node.args = (*node.args[:3], others[0].args[3], *node.args[4:])


class RaisesForConsumers(MatchBug):
    """Meets a lookup whose rows something reads with an exception (5.1)."""

    near = "consumer/"
    signatures = ("MATCH/raised/AssertionError",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import fuse_q4_embeddings

        assert not _read_by_others(program), "a lookup with other users than the output"
        return fuse_q4_embeddings(program)


class RefusesForConsumers(MatchBug):
    """Leaves a program alone in which something reads looked up rows (5.5)."""

    near = "consumer/torchao"
    signatures = ("MATCH/decision/missed_fusion:no_reason",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import FusionReport, fuse_q4_embeddings

        return (program, FusionReport((), ())) if _read_by_others(program) else fuse_q4_embeddings(program)


class ConsumersReadAnotherRow(MatchBug):
    """A fused lookup whose rows something reads takes the indices of another (5.7)."""

    near = "consumer/torchao"
    signatures = ("MATCH/array/values",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import fuse_q4_embeddings

        fused, report = fuse_q4_embeddings(program)
        _exchange(fused)
        return fused, report


class ConsumersLoseTheirBias(MatchBug):
    """An addmm on rows becomes an mm (5.5)."""

    near = "linear_bias"
    signatures = ("MATCH/array/values",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import fuse_q4_embeddings

        fused, report = fuse_q4_embeddings(program)
        for node in fused.graph.nodes:
            if "addmm" in str(node.target):
                node.kwargs = {"beta": 0}
        return fused, report


class IndicesAsTheyCameIn(MatchBug):
    """A lookup takes the program's input where the program computes its indices from it (5.7)."""

    near = "indices-moved"
    signatures = ("MATCH/array/values",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import fuse_q4_embeddings

        fused, report = fuse_q4_embeddings(program)
        for node in _fused(fused):
            if "aten.add" in str(node.args[3].target):
                node.args = (*node.args[:3], node.args[3].args[0], *node.args[4:])
        return fused, report


class LoweringBug(Planted):
    """Changes a program before ours lowers it, or what it is lowered to."""

    def lower(self, program: Any, options: Any) -> bytes:
        from conformance.subjects.impl import lower

        return lower(program, options)

    def run(self, case: Case) -> Observation:
        from conformance.subjects.stages import observe_lowering

        return observe_lowering(case, self.lower) if case.stage == self.stage else super().run(case)


class LowersAnotherRow(LoweringBug):
    """The rows that a consumer reads are another lookup's (5.7)."""

    stage = "RUN"
    signatures = ("RUN/array/values", "RUN/array/dot_product")
    near = "consumer/"

    def lower(self, program: Any, options: Any) -> bytes:
        from impl import lowering

        fuse = lowering.fuse_all_but

        def wrong(*arguments: Any) -> tuple[Any, Any]:
            fused, report = fuse(*arguments)
            _exchange(fused)
            return fused, report

        with mock.patch.object(lowering, "fuse_all_but", wrong):
            return super().lower(program, options)


class LowersConsumersOnTheCpu(LoweringBug):
    """A lookup whose rows something reads stays on the CPU (6.1)."""

    stage = "LOWER"
    near = "consumer/"
    signatures = ("LOWER/decision/missed_delegation",)

    def lower(self, program: Any, options: Any) -> bytes:
        from impl import lowering
        from impl.matcher import FusionReport

        fuse = lowering.fuse_all_but

        def wrong(edge: Any, *rest: Any) -> tuple[Any, Any]:
            return (edge, FusionReport((), ())) if _read_by_others(edge) else fuse(edge, *rest)

        with mock.patch.object(lowering, "fuse_all_but", wrong):
            return super().lower(program, options)


ALL: tuple[type[Planted], ...] = (
    RaisesForConsumers,
    RefusesForConsumers,
    ConsumersReadAnotherRow,
    ConsumersLoseTheirBias,
    IndicesAsTheyCameIn,
    LowersAnotherRow,
    LowersConsumersOnTheCpu,
)
