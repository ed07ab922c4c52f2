"""The observer of a model at RUN: what its file holds, and what it computes call by call, beside the model itself.

Source: docs/contract.md 6.4.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from conformance.case.model import Model
from conformance.harness.observation import Facts, Graph, Place, named_at
from conformance.models import recipes, zoo
from conformance.observe.lowered import Execute
from conformance.program.tensors import Array, to_numpy
from conformance.pte.file import PteFile, read_pte
from conformance.pte.lookup import LOOKUP

if TYPE_CHECKING:
    from collections.abc import Callable

#: Upstream's linears on 4-bit weights.
LINEARS = ("et_vk.linear_q4gsw.default", "et_vk.linear_dq8ca_q4gsw.default")
#: Kinds whose calls follow one another, so that one call on all rows gives the same.
_CAUSAL = ("decoder", "speech", "images")


def observe_model(question: Model, lower: "Callable[[Any, dict[str, Any]], bytes]", execute: Execute) -> Graph:
    """Build, quantize, export and lower a model, run its file call by call, and the model beside it.

    Returns:
        ``places``: every 4-bit lookup and linear in a delegate. ``outputs``, by "NAME@CALL": "output0" and on, and
        "rows0" and on of the lookups that were seen. ``source_outputs``: the same of the model in its own arithmetic;
        besides, in float64, "exact0" and on, computed in one call where the model is causal, and, where linears
        quantize their inputs, "unrounded0" and on, without that. Facts of the file's size, and of time and memory to
        lower it.
    """
    model = recipes.quantize(zoo.build(question), question)
    calls = zoo.inputs(question)
    lowered = copy.deepcopy(model)  # which the lowering may alter
    program = torch.export.export(lowered, calls[0], dynamic_shapes=zoo.dynamic_shapes(question))
    before, started = peak_memory(reset=True), time.monotonic()
    file = read_pte(lower(program, {}))
    places = dict(_places(file))
    measured = {
        "lookups": str(sum(name.startswith("lookup") for name in places)),
        "linears": str(sum(name.startswith("linear") for name in places)),
        "file_bytes": str(len(file.data)),
        "lower_seconds": f"{time.monotonic() - started:.1f}",
        "lower_megabytes": f"{(peak_memory() - before) / 1e6:.0f}",
    }
    outputs: dict[str, Array] = {}
    sources = model_outputs(question, model)
    for call, result in enumerate(execute(file, calls)):
        arrays = {f"output{n}": array for n, array in enumerate(result.outputs)}
        outputs |= named_at(str(call), arrays | {f"rows{n}": rows for n, rows in enumerate(result.rows)})
    return Graph((), outputs, sources, places=places, facts=Facts(provenance=measured))


def _places(file: PteFile) -> Iterator[tuple[str, Place]]:
    chains = [delegate.graph.chain for delegate in file.method("forward").delegates.values()]
    names = [call.name for chain in chains for call in chain]
    for what, known in (("lookup", (LOOKUP,)), ("linear", LINEARS)):
        found = [name for name in names if name in known]
        yield from ((f"{what}{number}", Place("vulkan", name)) for number, name in enumerate(found))


def model_outputs(question: Model, model: Any) -> dict[str, Array]:
    """The model itself on every call, and what it means exactly: ``source_outputs`` of ``observe_model``."""
    calls = zoo.inputs(question)
    found: dict[str, Array] = {}
    rows: list[Array] = []
    hooks = [
        table.register_forward_hook(lambda _module, _inputs, out: rows.append(to_numpy(out)))
        for table in recipes.tables(model)
    ]
    for call, given in enumerate(calls):
        rows.clear()
        arrays = {f"output{n}": to_numpy(out) for n, out in enumerate(_outputs(model, given))}
        found |= named_at(str(call), arrays | {f"rows{n}": array for n, array in enumerate(rows)})
    for hook in hooks:
        hook.remove()
    meant = {"exact": recipes.exact(model)}
    if question.recipe.startswith("8da"):
        meant["unrounded"] = recipes.exact(model, rounded=False)
    for name, wide in meant.items():
        for call, outs in enumerate(_exactly(question, wide, calls)):
            found |= named_at(str(call), {f"{name}{n}": to_numpy(out) for n, out in enumerate(outs)})
    return found


def _exactly(question: Model, wide: Any, calls: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The outputs of each call in float64: of one call on everything, where that is the same."""
    zoo.forget(wide)
    widened = [[x.double() if x.is_floating_point() else x for x in given] for given in calls]
    if question.kind not in _CAUSAL:
        return [_outputs(wide, given) for given in widened]
    tokens, positions, *others = (list(part) for part in zip(*widened, strict=True))
    joined = [torch.cat(tokens, 1), torch.cat(positions)]
    joined += [torch.cat(part, 1) if question.kind == "images" else part[0] for part in others]
    rows = [given.shape[1] for given in tokens]
    return [(out,) for out in _outputs(wide, joined)[0].split(rows, dim=1)]


def _outputs(model: Any, given: Sequence[Any]) -> tuple[Any, ...]:
    with torch.no_grad():
        result = model(*given)
    return result if isinstance(result, tuple) else (result,)


def peak_memory(*, reset: bool = False) -> int:
    """The most memory that this process had since the last reset, in bytes; 0 where the system does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
