"""Subject "executorch-runtime:PATH[@LOWERING]": a real ExecuTorch runtime with its Vulkan backend.

LOWER and RUN lower by LOWERING (this project's, or the wheel's) and execute the file. KERNEL executes files of one
operator that the suite writes itself, so that every variant is reached; with a program its table is what this
project's matcher and packer made of it. What a runtime's shaders declare cannot be asked of it: nothing is assumed.

Source: docs/runtime.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.case.case import Case, Dispatch, EndToEnd, Variant
from conformance.case.operands import operands
from conformance.harness.observation import Arrays, Facts, Observation, Refused
from conformance.sources.runtime import RuntimeSource, runtime_source
from conformance.subjects import executorch, impl
from conformance.subjects.stages import FusedTable, fused_table, observe_lowering, unlowerable
from impl import packer
from reference.table.layouts import pack_flat, pack_linear_weight

#: The image size up to which ExecuTorch prepacks a table into a texture2d, in blocks of 8 rows and of 4 columns.
TEXTURE_LIMIT = 16384
_LOWERINGS = {"impl": impl.lower, "executorch": executorch.lower}


class SubjectUnderTest:
    """One runtime."""

    def __init__(self, argument: str) -> None:
        """``argument`` is a shared library or a runner's command, and @LOWERING.

        Raises:
            ValueError: see ``conformance.sources.runtime.runtime_source``.
            BadSubject, EnvironmentProblem: see ``conformance.pte.runtime.open_runtime``.
        """
        from conformance.pte.runtime import open_runtime  # noqa: PLC0415 - torch and executorch take seconds to load

        self._source: RuntimeSource = runtime_source(argument)
        self._runtime = open_runtime(self._source)
        self._facts = Facts((), precise=False, driver=Path(self._source.words[-1]).name)

    def supports(self, case: Case) -> str | None:
        """Return why the case cannot be asked of a runtime, or None."""
        if case.stage in {"LOWER", "RUN"}:
            return unlowerable(case)
        if isinstance(case.question, Dispatch | EndToEnd):
            return not_chosen(case.question, len(operands(case.question).values))
        return f"a runtime runs files; it has no stage {case.stage}"

    def run(self, case: Case) -> Observation:
        """Answer the case.

        Raises:
            RuntimeFailed: the runtime does not load or run the file.
        """
        if isinstance(case.question, Dispatch | EndToEnd):
            return self._kernel(case.question)
        return observe_lowering(case, _LOWERINGS[self._source.lowering], self._execute)

    def _execute(self, file: Any, calls: Sequence[Sequence[Any]]) -> Any:
        from conformance.pte.lookup import LOOKUP, lookup_call, storage_of  # noqa: PLC0415 - with the runtime
        from conformance.pte.run import RunResult  # noqa: PLC0415 - the same

        storages = [
            storage_of(delegate.graph, delegate.graph.values[lookup_call(delegate.graph, call.args).out].value)
            for delegate in file.method("forward").delegates.values()
            for call in delegate.graph.chain
            if call.name == LOOKUP
        ]
        facts = tuple(replace(self._facts, io_storage=storage) for storage in storages)
        return [RunResult(outputs, facts) for outputs in self._runtime.run(file.data, calls)]

    def _kernel(self, question: Dispatch | EndToEnd) -> Arrays | Refused:
        model = lookup_file(question)
        if isinstance(model, Refused):
            return model
        ((out, *_),) = self._runtime.run(model, [[operands(question).indices]])
        return Arrays({"out": out}, replace(self._facts, io_storage=question.io_storage))


def not_chosen(variant: Variant, rows: int) -> str | None:
    """Return why a runtime would not choose the variant for a table of so many rows, or None."""
    if variant.float_modes != "declared":
        return "a runtime has one shader a variant, which declares what it declares"
    if variant.weight_layout == "block":
        chosen = "texture2d" if -(-rows // 8) <= TEXTURE_LIMIT else "buffer"
        if chosen != variant.weight_storage:
            return f"the runtime prepacks {rows} rows into a {chosen}"
    return None


def lookup_file(question: Dispatch | EndToEnd) -> bytes | Refused:
    """Return the file of one operator that asks a KERNEL case's question, or why the matcher refuses its program."""
    from conformance.subjects.one_lookup import one_lookup  # noqa: PLC0415 - loads torch and executorch

    flat = question.weight_layout == "flat"
    table: FusedTable | Refused
    if isinstance(question, Dispatch):
        own = operands(question)
        packed = (pack_flat if flat else pack_linear_weight)(own.values)
        table = FusedTable(packed, not flat, own.scales, own.group_size, own.indices, Facts())
    else:
        table = fused_table(question, impl.rewriting())
    if isinstance(table, Refused):
        return table
    # Swapping the nibbles turns either byte layout into the other.
    packed = table.packed if flat != table.linear_weight else packer.flat_to_linear_weight(table.packed)
    read = (packed, table.scales, table.group_size, table.indices, question.output_dtype)
    return one_lookup(*read, linear=not flat, storage=question.io_storage)
