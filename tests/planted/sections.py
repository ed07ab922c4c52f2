"""Planted bugs, a further set: one for each sentence of the contract that ``subjects`` leaves without one.

The arithmetic ones change the implementation's output after the fact, so that nothing but the accept sets can see them.
"""

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from conformance.case.case import Case, Dispatch, Table
from conformance.case.model import Model
from conformance.harness.observation import Arrays, Facts, Observation, Refused
from tests.planted import operands, programs, subjects
from tests.planted.subjects import MatchBug, Planted, ShaderBug


class OutputBug(Planted):
    """Changes the output of cases whose id has ``near`` in it."""

    stage = "KERNEL"
    signatures = ("KERNEL/array/values",)

    def wrong(self, out: Any) -> Any:
        raise NotImplementedError

    def run(self, case: Case) -> Observation:
        found = super().run(case)
        if case.stage != "KERNEL" or self.near not in case.id or not isinstance(found, Arrays):
            return found
        return replace(found, arrays={"out": self.wrong(found.arrays["out"].copy())})


class RoundsToHalfFirst(OutputBug):
    """A float16 scale's product is rounded to float16 on its way to float32 (3.1)."""

    near = "f16-f32/bits"

    def wrong(self, out: Any) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            return out.astype(np.float16).astype(np.float32)


class OneUlp(OutputBug):
    """One float32 product is the second neighbour: outside of either rounding (3.2)."""

    near = "f32-f32/scales"

    def wrong(self, out: Any) -> Any:
        flat = out.reshape(-1)
        at = np.flatnonzero(flat)[-1]
        flat.view(np.uint32)[at] += 2
        return out


class HalfUlps(OutputBug):
    """Every float16 result two neighbours away (3.3)."""

    near = "f16/scales"

    def wrong(self, out: Any) -> Any:
        usual = np.isfinite(out) & (out != 0)
        out.view(np.uint16)[usual] ^= 2
        return out


class SubnormalBecomesNormal(OutputBug):
    """A subnormal result becomes the smallest normal: neither it, nor a zero, nor its neighbour (3.4)."""

    near = "no-modes/flat-buffer-buffer/float32-float32/special"

    def wrong(self, out: Any) -> Any:
        tiny = np.finfo(np.float32).tiny
        out[(np.abs(out) < tiny / 4) & (out != 0)] = tiny
        return out


class InfinityBecomesLargest(OutputBug):
    """Infinities are cut to the largest finite number where the shader declares that it keeps them (3.5)."""

    near = "specials"

    def wrong(self, out: Any) -> Any:
        limit = np.finfo(out.dtype).max
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(out), np.copysign(limit, out), out)


class IgnoresLimit(Planted):
    """Beyond an image's width it returns what fits, and zeros (7.5)."""

    stage = "KERNEL"
    near = "limit/"
    signatures = ("KERNEL/array/values",)

    def run(self, case: Case) -> Observation:
        found = super().run(case)
        if isinstance(found, Refused) and found.reason == "device_limit" and isinstance(case.question, Dispatch):
            shape = (*case.question.indices_shape, case.question.embed_dim)
            return Arrays({"out": np.zeros(shape, case.question.output_dtype)}, Facts(arithmetic="host"))
        return found


class RefusesWithoutTheLimit(IgnoresLimit):
    """Refuses what is too large, without saying which limit it was (7.5)."""

    signatures = ("KERNEL/raised/device_limit",)

    def run(self, case: Case) -> Observation:
        found = Planted.run(self, case)
        return replace(found, detail="too large", limit="") if isinstance(found, Refused) else found


class ShaderPlaneOrder(ShaderBug):
    """Planes of an index tensor of rank 3 in another order (7.2)."""

    bug = "plane_order"
    near = "texture3d/shape"
    signatures = ("KERNEL/array/",)


class ShaderNegativeIndex(ShaderBug):
    """An index below zero is not refused by the shader (7.3)."""

    bug = "negative_index"
    near = "out-of-range"
    signatures = ("KERNEL/array/values",)


class ShaderIndexLane(ShaderBug):
    """Two neighbouring indices of a texel exchanged (7.1)."""

    bug = "index_lane"
    near = "texture3d"
    signatures = ("KERNEL/array/values",)


class PrepackShaderColumns(Planted):
    """The prepack shader's two columns of a byte exchanged (7.1)."""

    stage = "PREPACK"
    near = "texture2d"
    signatures = ("PREPACK/layout/",)

    def run(self, case: Case) -> Observation:
        found = super().run(case)
        if not isinstance(case.question, Table) or case.question.storage == "buffer" or not isinstance(found, Arrays):
            return found
        bits = found.arrays["blocks"].view(np.uint32)
        swapped = ((bits >> 8) & 0x00FF00FF) | ((bits & 0x00FF00FF) << 8)
        return replace(found, arrays={"blocks": swapped.view(np.int32)})


class SecondRunAddsAClone(MatchBug):
    """Every run adds a node: fusing a fused program changes it (5.6)."""

    near = "torchao/control"
    signatures = ("MATCH/mutated/second_run",)

    def edit(self, fused: Any, report: Any) -> None:
        import torch

        name = f"left_over_{len(fused.state_dict)}"
        fused.state_dict[name] = torch.zeros(1)


class NibblesOfThePackedDialect(MatchBug):
    """embedding_4bit's flat bytes are taken over without exchanging their nibbles (section 4)."""

    near = "embedding_4bit"
    signatures = ("MATCH/array/values",)

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl import matcher
        from impl.fusion import rewrite

        with mock.patch.object(rewrite, "flat_to_linear_weight", lambda data: data.clone()):
            return matcher.fuse_q4_embeddings(program)


class RoundsHalvesUp(Planted):
    """torchao's codes with halves rounded up instead of to even, by one where a code could be (section 4)."""

    stage = "QUANTIZE"
    signatures = ("QUANTIZE/array/values",)

    def run(self, case: Case) -> Observation:
        found = super().run(case)
        if case.stage != "QUANTIZE" or not isinstance(found, Arrays):
            return found
        codes = found.arrays["qdata"].copy()
        codes.reshape(-1)[int(np.argmin(np.abs(codes)))] += 1
        return replace(found, arrays={**found.arrays, "qdata": codes})


class ExportBug(Planted):
    """Changes the exported program before it is observed."""

    stage = "EXPORT"

    def wrong(self, program: Any) -> None:
        raise NotImplementedError

    def run(self, case: Case) -> Observation:
        if case.stage != self.stage or case.program is None:
            return super().run(case)
        from conformance.observe.export import observe_export
        from conformance.program.build import build

        built = build(case.program)
        self.wrong(built.program)
        return observe_export(built)


class ExportsFloat32(ExportBug):
    """The output dtype that a float16 table needs is left out (section 4)."""

    near = "export/float16"
    signatures = ("EXPORT/decision/form",)

    def wrong(self, program: Any) -> None:
        for node in program.graph.nodes:
            if "dequantize_affine" in str(node.target):
                node.args = node.args[:7]


class ExportsAnotherZeroPoint(ExportBug):
    """A zero point becomes a zero on the way (section 4)."""

    near = "export/zero-point-one_nonzero"
    signatures = ("EXPORT/array/values",)

    def wrong(self, program: Any) -> None:
        for name, tensor in (program.state_dict | program.constants).items():
            if "zero_point" in name:
                tensor.zero_()


class ExportsFixedSizes(ExportBug):
    """A symbolic number of indices becomes the example's (section 4)."""

    near = "export/dynamic-indices"
    signatures = ("EXPORT/dtype_shape/dynamic",)

    def wrong(self, program: Any) -> None:
        import torch

        for node in program.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and value is not None and not all(isinstance(n, int) for n in value.shape):
                node.meta["val"] = torch.empty([5] * value.dim(), dtype=value.dtype, device="meta")


class MakesUpAZeroPoint(ExportBug):
    """A table that has no zero point gets one (section 4)."""

    near = "export/zero-point-none"
    signatures = ("EXPORT/dtype_shape/made_up",)

    def wrong(self, program: Any) -> None:
        for node in program.graph.nodes:
            if "dequantize_affine" in str(node.target):
                node.args = (*node.args[:3], node.args[2], *node.args[4:])


class LosesAnOption(programs.LoweringBug):
    """force_fp16 is dropped without a word (3.7)."""

    stage = "LOWER"
    near = "force-fp16"
    signatures = ("LOWER/decision/force_fp16",)

    def lower(self, program: Any, options: Any) -> bytes:
        return super().lower(program, {})


class FusesNothingToLower(Planted):
    """Lowers without delegating any lookup (6.1)."""

    stage = "LOWER"
    near = "lower/control"
    signatures = ("LOWER/decision/missed_delegation",)

    def run(self, case: Case) -> Observation:
        from conformance.subjects.impl import lower
        from conformance.subjects.stages import observe_lowering
        from impl import lowering
        from impl.matcher import FusionReport

        if case.stage != self.stage:
            return super().run(case)

        def nothing(program: Any, *_: Any) -> tuple[Any, Any]:
            return program, FusionReport((), ())

        with mock.patch.object(lowering, "fuse_all_but", nothing):
            return observe_lowering(case, lower)


class LowersLikeTheWheel(Planted):
    """Group sizes that 4 does not divide are delegated, as the wheel's own partitioner does (6.2)."""

    stage = "LOWER"
    near = "lower/g3-refused"
    signatures = ("LOWER/decision/undue_delegation:group_size_not_multiple_of_4",)

    def run(self, case: Case) -> Observation:
        from conformance.subjects import executorch
        from conformance.subjects.stages import observe_lowering

        return observe_lowering(case, executorch.lower) if case.stage == self.stage else super().run(case)


class HandsOverHalf(programs.LoweringBug):
    """A delegate that hands float16 to a program that holds float32: a runtime converts the other way only (6.3)."""

    stage = "LOWER"
    near = "lower/float16"
    signatures = ("LOWER/decision/dtype",)

    def lower(self, program: Any, options: Any) -> bytes:
        return with_float_outputs(super().lower(program, options))


def with_float_outputs(data: bytes) -> bytes:
    """The file with float32 where its plan has float16 outputs."""
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
    from executorch.exir.schema import ScalarType

    content = deserialize_pte_binary(data)
    for plan in content.program.execution_plan:
        for value in plan.outputs:
            if plan.values[value].val.scalar_type == ScalarType.HALF:
                plan.values[value].val.scalar_type = ScalarType.FLOAT
    return bytes(serialize_pte_binary(content, extract_delegate_segments=True))


class DotProductOfAnotherScale(Planted):
    """A tied linear's result is off by a factor in one row (3.6)."""

    stage = "RUN"
    near = "run/tied-before"
    signatures = ("RUN/array/dot_product",)

    def run(self, case: Case) -> Observation:
        found = super().run(case)
        if case.stage != self.stage:
            return found
        outputs = {k: v.copy() for k, v in found.outputs.items()}  # type: ignore[union-attr]  # RUN answers Graph
        outputs["linear"][0, 0] *= np.float32(1.001)
        return replace(found, outputs=outputs)  # type: ignore[call-arg]  # see above


class FoldsWithoutZeroPoint(Planted):
    """A table that a linear reads becomes a float constant without its zero point (3.6)."""

    stage = "RUN"
    near = "run/tied-asymmetric"
    signatures = ("RUN/array/dot_product",)

    def run(self, case: Case) -> Observation:
        from impl.lower import plan

        whole = plan.dequantized
        with mock.patch.object(plan, "dequantized", lambda table, operands: whole(table, (*operands[:2], None))):
            return super().run(case)


class TableBug(Planted):
    """Rows that nothing looks up have the scale 0 in the file, and the code 0 (5.2)."""

    stage = "LOWER"
    near = "lower/control"
    signatures = ("LOWER/array/values",)

    def run(self, case: Case) -> Observation:
        from impl import matcher
        from impl.fusion import rewrite

        if case.stage != self.stage:
            return super().run(case)
        clone = rewrite.pack_linear_weight

        def packed(values: Any) -> Any:
            kept = values.clone()
            kept[-1] = 0
            return clone(kept)

        assert matcher  # loads the rewriting
        with mock.patch.object(rewrite, "pack_linear_weight", packed):
            return super().run(case)


class WrongRowsOnTheCpu(Planted):
    """A refused table's last row has other values on the CPU, where nothing looks it up (6.2)."""

    stage = "LOWER"
    near = "lower/g3-refused"
    signatures = ("LOWER/array/values",)

    def run(self, case: Case) -> Observation:
        from impl.lower import plan

        whole = plan.byte_form

        def wrong(table: Any) -> Any:
            form = whole(table)
            if form is None:
                return None
            scales = form.scales.clone()
            scales[-1] = 0
            return form._replace(scales=scales)

        with mock.patch.object(plan, "byte_form", wrong):
            return super().run(case)


class CopyBug(programs.LoweringBug):
    """The file holds a transposed float copy of the table, which nothing reads (6.1)."""

    stage = "LOWER"
    near = "lower/control"
    signatures = ("LOWER/decision/unread_constant",)

    def lower(self, program: Any, options: Any) -> bytes:
        return with_copy(super().lower(program, options))


def with_copy(data: bytes) -> bytes:
    """The file with one more constant: a float table, turned."""
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
    from executorch.exir.schema import Buffer

    content = deserialize_pte_binary(data)
    copy = np.arange(9 * 64, dtype=np.float32).reshape(9, 64).T
    constants = content.program.constant_buffer or [Buffer(storage=b"")]
    content.program.constant_buffer = [*constants, Buffer(storage=copy.tobytes())]
    return bytes(serialize_pte_binary(content))


class OneBitOfARun(Planted):
    """One bit of a whole file's output (5.7)."""

    stage = "RUN"
    near = "run/control"
    signatures = ("RUN/array/values",)

    def run(self, case: Case) -> Observation:
        found = super().run(case)
        if case.stage != self.stage:
            return found
        outputs = {k: v.copy() for k, v in found.outputs.items()}  # type: ignore[union-attr]  # RUN answers Graph
        outputs["lookup0"].reshape(-1)[-1:].view(np.uint16)[0] ^= 4
        return replace(found, outputs=outputs)  # type: ignore[call-arg]  # see above


class ScalesOfAModelTwice(Planted):
    """The scales of a model's first linear are taken twice (6.4)."""

    stage = "RUN"
    near = "run/model/bert"  # of level deep
    signatures = ("RUN/array/distance",)

    def run(self, case: Case) -> Observation:
        if not isinstance(case.question, Model):
            return super().run(case)
        from conformance.subjects.impl import lower
        from conformance.subjects.stages import observe_lowering

        def wrong(program: Any, options: Any) -> bytes:
            program.state_dict["mixers.0.q.weight"].scale.mul_(2)
            return lower(program, options)

        return observe_lowering(case, wrong)


#: For every section of the contract with a "must", the bug that its cases kill.
BY_SECTION: dict[str, type[Planted]] = {
    "1": subjects.NibbleOrder,
    "2": subjects.ShaderNibbleOrder,
    "3.1": RoundsToHalfFirst,
    "3.2": OneUlp,
    "3.3": HalfUlps,
    "3.4": SubnormalBecomesNormal,
    "3.5": InfinityBecomesLargest,
    "3.6": DotProductOfAnotherScale,
    "3.7": LosesAnOption,
    "4": NibblesOfThePackedDialect,
    "5.1": subjects.Asserts,
    "5.2": subjects.PackedForOtherConsumer,
    "5.3": subjects.FusesNothing,
    "5.4": subjects.NoGroupCheck,
    "5.5": subjects.FirstGroupSizeForAll,
    "5.6": SecondRunAddsAClone,
    "5.7": OneBitOfARun,
    "6.1": FusesNothingToLower,
    "6.2": LowersLikeTheWheel,
    "6.3": HandsOverHalf,
    "6.4": ScalesOfAModelTwice,
    "7.1": subjects.ShaderGroupIndex,
    "7.2": ShaderPlaneOrder,
    "7.3": ShaderNegativeIndex,
    "7.4": subjects.ShaderWritesBehind,
    "7.5": IgnoresLimit,
}
MORE = (
    TableBug,
    WrongRowsOnTheCpu,
    CopyBug,
    FoldsWithoutZeroPoint,
    RefusesWithoutTheLimit,
    ShaderIndexLane,
    PrepackShaderColumns,
    RoundsHalvesUp,
    ExportsFloat32,
    ExportsAnotherZeroPoint,
    ExportsFixedSizes,
    MakesUpAZeroPoint,
)
ALL: tuple[type[Planted], ...] = tuple(
    dict.fromkeys((*subjects.ALL, *BY_SECTION.values(), *MORE, *programs.ALL, *operands.ALL))
)
