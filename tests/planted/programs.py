"""Planted bugs that only programs beyond a single lookup show: readers of rows and of indices, sizes, memory."""

import copy
import functools
import warnings
from typing import Any
from unittest import mock

from conformance.case.case import Case
from conformance.harness.observation import Observation
from tests.planted.subjects import DropsAWrite, MatchBug, Planted, WritesSomethingElse


def _read_by_others(program: Any) -> list[Any]:
    """The lookups of a program whose rows something but the output reads."""
    lookups = [n for n in program.graph.nodes if n.op == "call_function" and "embedding" in str(n.target)]
    return [n for n in lookups if any(user.op != "output" for user in n.users)]


def _fused(program: Any) -> list[Any]:
    return [n for n in program.graph.nodes if n.op == "call_function" and "q4gsw" in str(n.target)]


def _exchange(program: Any) -> None:
    """A fused lookup whose rows something reads takes the indices of another."""
    fused = _fused(program)
    for node in _read_by_others(program):
        others = [n for n in fused if n is not node]
        if node in fused and others:
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

    def edit(self, fused: Any, report: Any) -> None:
        _exchange(fused)


class ConsumersLoseTheirBias(MatchBug):
    """An addmm on rows becomes an mm (5.5)."""

    near = "linear_bias"
    signatures = ("MATCH/array/values",)

    def edit(self, fused: Any, report: Any) -> None:
        for node in fused.graph.nodes:
            if "addmm" in str(node.target):
                node.kwargs = {"beta": 0}


class IndicesAsTheyCameIn(MatchBug):
    """A lookup takes the program's input where the program computes its indices from it (5.7)."""

    near = "indices-moved"
    signatures = ("MATCH/array/values",)

    def edit(self, fused: Any, report: Any) -> None:
        for node in _fused(fused):
            if "aten.add" in str(node.args[3].target):
                node.args = (*node.args[:3], node.args[3].args[0], *node.args[4:])


class LoweringBug(Planted):
    """Changes a program before ours lowers it, or what it is lowered to."""

    def lower(self, program: Any, options: Any) -> bytes:
        from conformance.subjects.impl import lower

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ExecuTorch warns of a buffer's first values, which ours has stored
            return lower(program, options)

    def run(self, case: Case) -> Observation:
        from conformance.subjects.stages import observe_lowering

        return observe_lowering(case, self.lower) if case.stage == self.stage else super().run(case)


class FusesWrongly(LoweringBug):
    """Ours lowers what ``fuse_all_but`` makes of a program in place of what ``right`` does."""

    near = "consumer/"

    def fuse_all_but(self, right: Any, program: Any, *rest: Any) -> tuple[Any, Any]:
        fused, report = right(program, *rest)
        self.edit(fused, report)
        return fused, report

    def edit(self, fused: Any, report: Any) -> None:
        raise NotImplementedError

    def lower(self, program: Any, options: Any) -> bytes:
        from impl import lowering

        with mock.patch.object(lowering, "fuse_all_but", functools.partial(self.fuse_all_but, lowering.fuse_all_but)):
            return super().lower(program, options)


class LowersAnotherRow(FusesWrongly):
    """The rows that a consumer reads are another lookup's (5.7)."""

    stage = "RUN"
    signatures = ("RUN/array/values", "RUN/array/dot_product")

    def edit(self, fused: Any, report: Any) -> None:
        _exchange(fused)


class LowersWithoutAWrite(FusesWrongly):
    """What the program writes to a buffer is computed and dropped (5.2)."""

    stage = "RUN"
    near = "run/written"
    signatures = ("RUN/array/values",)

    def edit(self, fused: Any, report: Any) -> None:
        DropsAWrite().edit(fused, report)


class LowersWithoutTheNorm(LoweringBug):
    """Rows are looked up as they are stored, where the program renormalises them (6.2)."""

    stage = "RUN"
    near = "run/max-norm"
    signatures = ("RUN/array/values",)

    def lower(self, program: Any, options: Any) -> bytes:
        program = copy.deepcopy(program)
        for node in list(program.graph.nodes):
            if "embedding_renorm" in str(node.target):
                node.replace_all_uses_with(node.args[0])
                program.graph.erase_node(node)
        program.graph_module.recompile()
        return super().lower(program, options)


class RefusesToLower(LoweringBug):
    """Names what it cannot carry where everything can be carried (6.2)."""

    stage = "LOWER"
    near = "lower/asymmetric"
    signatures = ("LOWER/raised/not_carried",)

    def lower(self, program: Any, options: Any) -> bytes:
        from conformance.subjects.stages import LoweringRefused

        raise LoweringRefused("not_carried", "whatever it is")


class LowersAnotherWrite(FusesWrongly):
    """A buffer gets its own value back (5.2)."""

    stage = "RUN"
    near = "run/written"
    signatures = ("RUN/array/values",)

    def edit(self, fused: Any, report: Any) -> None:
        WritesSomethingElse().edit(fused, report)


class LowersConsumersOnTheCpu(FusesWrongly):
    """A lookup whose rows something reads stays on the CPU (6.1)."""

    stage = "LOWER"
    signatures = ("LOWER/decision/missed_delegation",)

    def fuse_all_but(self, right: Any, program: Any, *rest: Any) -> tuple[Any, Any]:
        from impl.matcher import FusionReport

        return (program, FusionReport((), ())) if _read_by_others(program) else right(program, *rest)


class FreezesSizes(MatchBug):
    """Whatever is symbolic in a program gets the example's size (5.3)."""

    near = "dynamic"
    signatures = ("MATCH/raised/InvalidRewrite",)

    def edit(self, fused: Any, report: Any) -> None:
        import torch

        for node in fused.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and not all(isinstance(n, int) for n in value.shape):
                sizes = [n if isinstance(n, int) else n.node.hint for n in value.shape]
                node.meta["val"] = torch.empty(sizes, dtype=value.dtype, device="meta")


class NarrowsSizes(MatchBug):
    """The range of a symbolic size becomes that of the example (5.3)."""

    near = "dynamic-indices-bound"
    signatures = ("MATCH/raised/InvalidRewrite",)

    def edit(self, fused: Any, report: Any) -> None:
        from torch.utils._sympy.value_ranges import ValueRanges

        for symbol in fused.range_constraints:
            fused.range_constraints[symbol] = ValueRanges(2, 5)


class LowersTheExampleSize(LoweringBug):
    """Lowers what a second export of the module, without symbolic sizes, gives (6.3)."""

    stage = "LOWER"
    near = "dynamic"
    signatures = ("LOWER/dtype_shape/dynamic",)

    def lower(self, program: Any, options: Any) -> bytes:
        import torch

        return super().lower(torch.export.export(program.module(), *program.example_inputs), options)


class RunsTheExampleSize(LowersTheExampleSize):
    """The same, of what a file computes (6.3)."""

    stage = "RUN"
    signatures = ("RUN/dtype_shape/dynamic",)


class NextSizesRepeatTheFirstRow(LoweringBug):
    """At other sizes than the example's a delegate looks the first row up, again and again (5.7)."""

    stage = "RUN"
    near = "dynamic"
    signatures = ("RUN/array/values",)

    def run(self, case: Case) -> Observation:
        from conformance.pte import delegate

        right = delegate.run_lookup

        def wrong(graph: Any, args: Any, constants: Any, indices: Any) -> Any:
            return right(graph, args, constants, indices if indices.shape == (5,) else indices * 0)

        with mock.patch.object(delegate, "run_lookup", wrong):
            return super().run(case)


class MemoryBug(LoweringBug):
    """Files whose delegates say something else of memory: ``wrong`` changes a delegate's graph as it is read."""

    stage = "LOWER"
    near = "consumer/model"

    def wrong(self, graph: Any, tensors: list[Any]) -> None:
        raise NotImplementedError

    def run(self, case: Case) -> Observation:
        from executorch.backends.vulkan.serialization.vulkan_graph_schema import VkTensor

        from conformance.pte import file

        right = file.read_graph

        def read(data: bytes) -> Any:
            graph = right(data)
            held = [value.value for value in graph.values]
            self.wrong(graph, [v for v in held if isinstance(v, VkTensor) and v.constant_id < 0])
            return graph

        if case.stage != self.stage:
            return super().run(case)
        with mock.patch.object(file, "read_graph", read):
            return super().run(case)


class OneMemoryObject(MemoryBug):
    """Every value of a delegate lies in one memory object (6.3)."""

    signatures = ("LOWER/decision/memory_shared",)

    def wrong(self, graph: Any, tensors: list[Any]) -> None:
        for tensor in tensors:
            tensor.mem_obj_id = 0


class OneMemoryObjectAtRun(OneMemoryObject):
    """The same, of a file that is executed (6.3)."""

    stage = "RUN"
    signatures = ("RUN/raised/DeviceWouldFail",)


class NextInTheSameObject(MemoryBug):
    """An operator's result takes the memory object of its operand, which it still reads (6.3)."""

    signatures = ("LOWER/decision/memory_shared",)

    def wrong(self, graph: Any, tensors: list[Any]) -> None:
        call = graph.chain[-1]
        graph.values[call.args[-1]].value.mem_obj_id = graph.values[call.args[0]].value.mem_obj_id = 77


class InnerSizesExchanged(MemoryBug):
    """A lookup's result has rows and columns exchanged inside the delegate (6.3)."""

    signatures = ("LOWER/decision/sizes",)

    def wrong(self, graph: Any, tensors: list[Any]) -> None:
        for call in graph.chain:
            if "embedding" in call.name:
                graph.values[call.args[-1]].value.dims.reverse()


class InnerSizesAtRun(InnerSizesExchanged):
    """The same, of a file that is executed (6.3)."""

    stage = "RUN"
    signatures = ("RUN/raised/DeviceWouldFail",)


class LayoutThatNoShaderHas(MemoryBug):
    """The operand of a norm or a linear lies in a packing that its shader does not read (7.1)."""

    signatures = ("LOWER/decision/storage",)

    def wrong(self, graph: Any, tensors: list[Any]) -> None:
        from executorch.backends.vulkan.serialization.vulkan_graph_schema import VkMemoryLayout, VkStorageType

        for call in graph.chain:
            if "norm" in call.name or "linear" in call.name:
                operand = graph.values[call.args[0]].value
                operand.storage_type, operand.memory_layout = (
                    VkStorageType.TEXTURE_3D,
                    VkMemoryLayout.TENSOR_CHANNELS_PACKED,
                )


ALL: tuple[type[Planted], ...] = (
    RaisesForConsumers,
    RefusesForConsumers,
    ConsumersReadAnotherRow,
    ConsumersLoseTheirBias,
    IndicesAsTheyCameIn,
    LowersAnotherRow,
    LowersConsumersOnTheCpu,
    LowersWithoutAWrite,
    LowersWithoutTheNorm,
    RefusesToLower,
    LowersAnotherWrite,
    FreezesSizes,
    NarrowsSizes,
    LowersTheExampleSize,
    RunsTheExampleSize,
    NextSizesRepeatTheFirstRow,
    OneMemoryObject,
    OneMemoryObjectAtRun,
    NextInTheSameObject,
    InnerSizesExchanged,
    InnerSizesAtRun,
    LayoutThatNoShaderHas,
)
