"""Seeded faults: the optimized implementation with one mistake each, judged by the unmodified catalogue.

A class is one bug. ``stage`` is where it has to be caught and ``signatures`` what it may look like there; the runner
loads it as ``path.py:Class``, in a child process of its own, so that patching the implementation affects nothing else.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np

from conformance.case.case import Case
from conformance.case.operands import operands
from conformance.harness.observation import Arrays, Facts, Observation
from conformance.subjects.impl import SubjectUnderTest, run_kernel, run_match, run_pack
from tests.planted.glsl import planted_source


class Planted(SubjectUnderTest):
    """The optimized implementation; a subclass breaks one thing."""

    stage: ClassVar[str]
    signatures: ClassVar[tuple[str, ...]]
    near: ClassVar[str] = ""  # the test asks cases with this in their id first, to save time


# --- PACK and PREPACK ---------------------------------------------------------------------------------------------


class PackBug(Planted):
    stage = "PACK"

    def wrong(self, packed: Any) -> Any:
        raise NotImplementedError

    def run(self, case: Case) -> Observation:
        if case.stage != self.stage:
            return super().run(case)
        observation = run_pack(case.question)
        return replace(observation, arrays={k: self.wrong(v) for k, v in observation.arrays.items()})


class NibbleOrder(PackBug):
    """Even and odd column of a byte are swapped."""

    signatures = ("PACK/layout/nibble_order",)

    def wrong(self, packed: Any) -> Any:
        return (packed >> 4) | (packed << 4)


class Offset(PackBug):
    """Nibbles hold two's complement values: the offset of 8 is forgotten."""

    signatures = ("PACK/layout/offset",)

    def wrong(self, packed: Any) -> Any:
        return packed ^ 0x88


class LastByte(PackBug):
    """The last byte of the last row is wrong, and nothing else."""

    signatures = ("PACK/layout/codes", "PACK/layout/nibble_order")

    def wrong(self, packed: Any) -> Any:
        packed.reshape(-1)[-1:] ^= 0x10
        return packed


class SignedBytes(PackBug):
    """The packed bytes are int8."""

    signatures = ("PACK/dtype_shape/dtype",)

    def wrong(self, packed: Any) -> Any:
        return packed.view(np.int8)


class RowWithinBlock(PackBug):
    """The upper and lower four rows of a block are swapped."""

    stage = "PREPACK"
    signatures = ("PREPACK/layout/row_order", "PREPACK/layout/codes")

    def wrong(self, packed: Any) -> Any:
        bits = packed.view(np.uint32)
        return (((bits >> 4) & 0x0F0F0F0F) | ((bits & 0x0F0F0F0F) << 4)).view(np.int32)


class PaddingRows(PackBug):
    """Rows past V hold code 0 instead of code 8 (q = 0)."""

    stage = "PREPACK"
    signatures = ("PREPACK/layout/padding",)

    def run(self, case: Case) -> Observation:
        observation = super().run(case)
        rows = case.question.vocab_size % 8 if case.stage == "PREPACK" else 0
        if rows:
            last = observation.arrays["blocks"][-1].view(np.uint32)  # type: ignore[union-attr]  # PREPACK answers Arrays
            for row in range(rows, 8):
                last[:, row & 3] &= np.uint32(0xF0F0F0F0 if row < 4 else 0x0F0F0F0F)
        return observation

    def wrong(self, packed: Any) -> Any:
        return packed


# --- MATCH --------------------------------------------------------------------------------------------------------


class MatchBug(Planted):
    """``edit`` changes what ours has fused; a bug of another kind replaces ``fuse``."""

    stage = "MATCH"

    def edit(self, fused: Any, report: Any) -> None:
        raise NotImplementedError

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import fuse_q4_embeddings

        fused, report = fuse_q4_embeddings(program)
        self.edit(fused, report)
        return fused, report

    def run(self, case: Case) -> Observation:
        return run_match(case.program, self.fuse) if case.stage == "MATCH" else super().run(case)


class MissingCheck(MatchBug):
    """Does not look at the conditions that ``reasons`` name."""

    reasons: ClassVar[tuple[str, ...]]

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl import matcher
        from impl.fusion import rules

        def some(whole: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            return lambda *arguments: (v for v in whole(*arguments) if str(v[0]) not in self.reasons)

        with (
            mock.patch.object(rules.TableJudge, "violations", some(rules.TableJudge.violations)),
            mock.patch.object(rules, "_lookup_violations", some(rules._lookup_violations)),
        ):
            return matcher.fuse_q4_embeddings(program)


class NoZeroPointCheck(MissingCheck):
    reasons = ("zero_point_nonzero",)
    near = "synthetic/zero-point"
    signatures = ("MATCH/decision/undue_fusion:zero_point_nonzero",)


class NoRangeCheck(MissingCheck):
    reasons = ("qmin_qmax",)
    near = "synthetic/qrange"
    signatures = ("MATCH/decision/undue_fusion:qmin_qmax",)


class NoGroupCheck(MissingCheck):
    reasons = ("group_size_not_multiple_of_4",)
    near = "synthetic/torchao/g"
    signatures = ("MATCH/decision/undue_fusion:group_size_not_multiple_of_4",)


class NoWidthCheck(MissingCheck):
    reasons = ("embed_dim_not_multiple_of_32",)
    near = "synthetic/torchao/d"
    signatures = ("MATCH/decision/undue_fusion:embed_dim_not_multiple_of_32",)


class NoWriteCheck(MissingCheck):
    reasons = ("weight_written",)
    near = "table-from-mutated"
    signatures = ("MATCH/decision/undue_fusion:weight_written",)


class FusesNothing(MatchBug):
    """Refuses every lookup, which is safe and useless."""

    near = "synthetic/torchao/v"
    signatures = ("MATCH/decision/missed_fusion:no_reason",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import FusionReport

        return program, FusionReport((), ())


class WrongReason(MatchBug):
    """Refuses rightly, for a reason that does not hold."""

    signatures = ("MATCH/decision/wrong_reason",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import RefusalReason, fuse_q4_embeddings

        fused, report = fuse_q4_embeddings(program)
        return fused, replace(report, refused=tuple(replace(r, reason=RefusalReason.MAX_NORM) for r in report.refused))


class DoublePack(MatchBug):
    """A table's second lookup reads bytes that were packed twice."""

    near = "lookups"
    signatures = ("MATCH/array/values",)

    def edit(self, fused: Any, report: Any) -> None:
        if len(report.fused) > 1:
            constants = {**fused.constants, **fused.state_dict}
            targets = {s.arg.name: s.target for s in fused.graph_signature.input_specs}
            packed = constants[targets[report.fused[0].packed]]
            packed.copy_((packed >> 4) | (packed << 4))


class FirstGroupSizeForAll(MatchBug):
    """One table under several group sizes: the first one is used for every lookup."""

    near = "uses/float32-groups"
    signatures = ("MATCH/array/values", "MATCH/raised/ValueError")

    def edit(self, fused: Any, report: Any) -> None:
        nodes = [n for n in fused.graph.nodes if "embedding_q4gsw" in str(n.target)]
        for node in nodes[1:]:
            node.args = (*node.args[:1], *nodes[0].args[1:3], *node.args[3:])


class PackedForOtherConsumer(MatchBug):
    """The table's other consumer gets the packed bytes: the constant is overwritten where the caller sees it."""

    near = "uses/torchao-read"
    signatures = ("MATCH/array/values", "MATCH/mutated/source")

    def fuse(self, program: Any) -> tuple[Any, Any]:
        import torch

        from impl.matcher import fuse_q4_embeddings

        fused, report = fuse_q4_embeddings(program)
        for fusion in report.fused:
            held = {**program.constants, **program.state_dict}[fusion.table]
            with torch.no_grad():
                held.copy_(held ^ 8)
        return fused, report


class LinearWithoutZeroPoint(MatchBug):
    """A linear's table is dequantized without its zero point."""

    near = "linear/asymmetric"
    signatures = ("MATCH/array/dot_product",)

    def edit(self, fused: Any, report: Any) -> None:
        for node in fused.graph.nodes:
            readers = [str(user.target) for user in node.users]
            if "dequantize_affine" in str(node.target) and any("permute" in reader for reader in readers):
                node.args = (*node.args[:3], None, *node.args[4:])


class DropsAWrite(MatchBug):
    """What the program writes back to a buffer or an input is no longer an output of it."""

    near = "match/written"
    signatures = ("MATCH/dtype_shape/not_written",)

    def edit(self, fused: Any, report: Any) -> None:
        from torch.export.graph_signature import OutputKind

        output = next(n for n in fused.graph.nodes if n.op == "output")
        specs = fused.graph_signature.output_specs
        kept = [i for i, spec in enumerate(specs) if spec.kind == OutputKind.USER_OUTPUT]
        output.args = (tuple(output.args[0][i] for i in kept),)
        specs[:] = [specs[i] for i in kept]


class WritesSomethingElse(MatchBug):
    """The buffer or input that the program writes to gets its old value back."""

    near = "match/written"
    signatures = ("MATCH/array/values",)

    def edit(self, fused: Any, report: Any) -> None:
        from executorch.exir.dialects._ops import ops

        for node in fused.graph.nodes:
            if node.op == "call_function" and "aten.neg" in str(node.target):
                node.target = ops.edge.aten.abs.default


class WipesTheSource(MatchBug):
    """The source forgets where its nodes come from, its example inputs and its call graph."""

    signatures = ("MATCH/mutated/source",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import fuse_q4_embeddings

        result = fuse_q4_embeddings(program)
        self.wipe(program)
        return result

    def wipe(self, program: Any) -> None:
        program.module_call_graph.clear()


class WipesExampleInputs(WipesTheSource):
    """The source forgets its example inputs."""

    near = "match/torchao"

    def wipe(self, program: Any) -> None:
        program.example_inputs = None


class WipesMetadata(WipesTheSource):
    """Every node of the source forgets the line that it comes from."""

    near = "match/torchao"

    def wipe(self, program: Any) -> None:
        for node in program.graph.nodes:
            if "stack_trace" in node.meta:
                node.meta["stack_trace"] = ""


class RefusesWithoutReason(MatchBug):
    """Reports that a lookup is refused, and not why."""

    near = "zero-point"
    signatures = ("MATCH/decision/no_reason",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import fuse_q4_embeddings

        fused, report = fuse_q4_embeddings(program)
        return fused, replace(report, refused=tuple(replace(r, reason="") for r in report.refused))


class ZeroesOtherRows(MatchBug):
    """Rows that nothing looks up are packed as zeros."""

    near = "match/torchao/v"
    signatures = ("MATCH/array/values",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl import matcher
        from impl.fusion import rewrite

        def some(values: Any) -> Any:
            kept = values.clone()
            kept[::2] = 0
            return rewrite_pack(kept)

        rewrite_pack = rewrite.pack_linear_weight
        with mock.patch.object(rewrite, "pack_linear_weight", some):
            return matcher.fuse_q4_embeddings(program)


class PacksAtRunTime(MatchBug):
    """The packed table is handed through an operator, so that no kernel can prepack it."""

    signatures = ("MATCH/decision/unservable",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from executorch.exir.dialects._ops import ops

        from impl.matcher import fuse_q4_embeddings

        fused, report = fuse_q4_embeddings(program)
        for node in [n for n in fused.graph.nodes if "embedding_q4gsw" in str(n.target)]:
            packed = node.args[0]
            if packed.op == "placeholder":
                with fused.graph.inserting_before(node):
                    flipped = fused.graph.call_function(ops.edge.aten.bitwise_not.default, (packed,))
                    back = fused.graph.call_function(ops.edge.aten.bitwise_not.default, (flipped,))
                for new in (flipped, back):
                    new.meta["val"] = packed.meta["val"]
                node.args = (back, *node.args[1:])
        return fused, report


class LosesFloat16(MatchBug):
    """The operator's own float32 is handed on where the program had float16."""

    near = "match/synthetic/torchao/float16"
    signatures = ("MATCH/dtype_shape/dtype",)

    def edit(self, fused: Any, report: Any) -> None:
        casts = [n for n in fused.graph.nodes if "_to_dim_order_copy" in str(n.target)]
        for node in [n for n in casts if "embedding_q4gsw" in str(n.args[0].target)]:
            wide = node.args[0]
            node.replace_all_uses_with(wide)
            fused.graph_signature.replace_all_uses(node.name, wide.name)
            fused.graph.erase_node(node)
        fused.graph_module.recompile()


class Asserts(MatchBug):
    """Meets an asymmetric table with an assertion in mid-rewrite."""

    signatures = ("MATCH/raised/AssertionError",)

    def edit(self, fused: Any, report: Any) -> None:
        assert all(str(r.reason) != "zero_point_nonzero" for r in report.refused), "requires symmetric quantization"


# --- KERNEL -------------------------------------------------------------------------------------------------------


class ShaderBug(Planted):
    stage = "KERNEL"
    bug: ClassVar[str]

    def run(self, case: Case) -> Observation:
        if case.stage != "KERNEL":
            return super().run(case)
        with tempfile.TemporaryDirectory() as folder:
            return run_kernel(case.question, shader_source=planted_source(self.bug, Path(folder)))


class ShaderNibbleOrder(ShaderBug):
    bug = "nibble_order"
    signatures = ("KERNEL/array/values",)


class ShaderOffset(ShaderBug):
    bug = "offset"
    signatures = ("KERNEL/array/values",)


class ShaderRowWithinBlock(ShaderBug):
    bug = "row_within_block"
    signatures = ("KERNEL/array/values",)


class ShaderBlockRow(ShaderBug):
    bug = "block_row"
    signatures = ("KERNEL/array/values",)


class ShaderGroupIndex(ShaderBug):
    bug = "group_index"
    signatures = ("KERNEL/array/values",)


class ShaderScaleOfFirstHalf(ShaderBug):
    bug = "scale_of_first_half"
    signatures = ("KERNEL/array/values",)


class ShaderUnwrittenTail(ShaderBug):
    bug = "unwritten_tail"
    signatures = ("KERNEL/array/unwritten",)


class ShaderUnwrittenRow(ShaderBug):
    bug = "unwritten_row"
    signatures = ("KERNEL/array/unwritten",)


class ShaderWritesBehind(ShaderBug):
    bug = "write_behind"
    signatures = ("KERNEL/mutated/guard_band",)


class ClaimsTextures(Planted):
    """Buffer outputs rounded away from the product, under the claim that they went through a texture's store."""

    stage = "KERNEL"
    near = "buffer-buffer/float16"
    signatures = ("KERNEL/array/values",)

    def run(self, case: Case) -> Observation:
        found = super().run(case)
        if not isinstance(found, Arrays) or case.stage != self.stage or found.arrays["out"].dtype != np.float16:
            return found
        read = operands(case.question)  # type: ignore[arg-type]  # KERNEL asks a Dispatch or an EndToEnd
        if read.indices.size == 0 or read.indices.min() < 0 or read.indices.max() >= len(read.values):
            return found
        rows = read.indices.astype(np.int64)
        exact = read.values[rows].astype(np.float64) * read.scales_by_column()[rows].astype(np.float64)
        out = found.arrays["out"].copy()
        with np.errstate(invalid="ignore", over="ignore"):
            inexact = np.isfinite(out) & np.isfinite(exact) & (out.astype(np.float64) != exact) & (np.abs(out) < 60000)
        other = np.nextafter(out, np.where(out.astype(np.float64) < exact, np.inf, -np.inf).astype(np.float16))
        out[inexact] = other[inexact]
        return replace(found, arrays={"out": out}, facts=replace(found.facts, io_storage="texture3d"))


class Silent(Planted):
    """Values rounded away from zero by a shader of which nothing is said: no answer that can be judged."""

    stage = "KERNEL"
    signatures = ("KERNEL/raised/BadObservation",)

    def run(self, case: Case) -> Observation:
        found = super().run(case)
        if not isinstance(found, Arrays) or case.stage != self.stage:
            return found
        out = found.arrays["out"]
        return Arrays({"out": np.nextafter(out, np.copysign(np.array(np.inf, out.dtype), out))}, Facts())


ALL: tuple[type[Planted], ...] = (
    NibbleOrder,
    Offset,
    LastByte,
    SignedBytes,
    RowWithinBlock,
    PaddingRows,
    NoZeroPointCheck,
    NoRangeCheck,
    NoGroupCheck,
    NoWidthCheck,
    NoWriteCheck,
    FusesNothing,
    WrongReason,
    DoublePack,
    FirstGroupSizeForAll,
    PackedForOtherConsumer,
    LinearWithoutZeroPoint,
    ZeroesOtherRows,
    PacksAtRunTime,
    DropsAWrite,
    WritesSomethingElse,
    WipesTheSource,
    WipesExampleInputs,
    WipesMetadata,
    RefusesWithoutReason,
    LosesFloat16,
    Asserts,
    ShaderNibbleOrder,
    ShaderOffset,
    ShaderRowWithinBlock,
    ShaderBlockRow,
    ShaderGroupIndex,
    ShaderScaleOfFirstHalf,
    ShaderUnwrittenTail,
    ShaderUnwrittenRow,
    ShaderWritesBehind,
    ClaimsTextures,
)
