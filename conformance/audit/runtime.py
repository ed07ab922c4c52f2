"""What ExecuTorch's Vulkan runtime gets wrong or cannot load, although it registers every operator of a delegate.

Each finding was seen on a real runtime at cff6f4dd32; docs/lowering.md lists them.

Source: docs/contract.md 6.2, 6.3.
"""

import math
from collections.abc import Iterator

from executorch.backends.vulkan.serialization.vulkan_graph_schema import OperatorCall, VkTensor

from conformance.audit.tables import LINEAR, constant_behind
from conformance.harness.observation import Problem
from conformance.pte.file import VulkanDelegate
from conformance.pte.lookup import LOOKUP, storage_of

#: Above this many rows the partitioner gives a float table a texture layout that aten.embedding misreads.
MAX_EMBEDDING_ROWS = 16384
#: Operators that take only a constant at this position; with a computed one the process ends at load.
_CONSTANT_AT = {"aten.linear.default": (1, "weight"), "aten.embedding.default": (0, "table")}
_FLATTEN = "flatten it to two axes before the operator and view the result back"


def runtime_problems(delegate: VulkanDelegate) -> Iterator[Problem]:
    """What goes wrong with a delegate on a device."""
    where = f"{delegate.method}/vulkan{delegate.index}"
    for call in delegate.graph.chain:
        for severity, kind, detail, fix in _call_problems(delegate, call):
            yield Problem(severity, kind, where, f"{call.name}: {detail}", fix)
    for number, value in enumerate(delegate.graph.output_ids):
        if constant_behind(delegate, value) is not None:
            detail = f"output {number} is a constant, which the runtime never writes"
            yield Problem("wrong", "constant_output", where, detail, "return it from outside the delegate")


def _call_problems(delegate: VulkanDelegate, call: OperatorCall) -> Iterator[tuple[str, str, str, str]]:
    values = [delegate.graph.values[argument].value for argument in call.args]
    if call.name == LOOKUP:
        indices = values[3]
        if _batch(indices, 1) > 1 and storage_of(delegate.graph, indices) == "texture3d":
            detail = f"indices of shape {indices.dims} in a texture give wrong rows"
            yield "wrong", "batch", detail, "flatten the indices before the lookup and view the rows back"
    elif call.name in {LINEAR, "et_vk.linear_dq8ca_q4gsw.default"} and _batch(values[0], 2) > 1:
        yield "wrong", "batch", f"an input of shape {values[0].dims} gives garbage", _FLATTEN
    elif call.name == "torchao.choose_qparams_affine.default" and _batch(values[0], 2) > 1:
        yield "fails", "batch", f"scales are chosen of matrices only, the input is {values[0].dims}", _FLATTEN
    elif call.name == "aten.gelu.default" and getattr(values[1], "string_val", "none") != "tanh":
        detail = "the runtime computes the tanh approximation, the program asks for the error function"
        yield "wrong", "gelu", detail, "keep it on the CPU, or build the model with the tanh approximation"
    elif call.name in _CONSTANT_AT:
        position, what = _CONSTANT_AT[call.name]
        table = constant_behind(delegate, call.args[position])
        if table is None:
            yield "fails", "computed_weight", f"its {what} is computed; the process ends at load", "keep it on the CPU"
        elif what == "table" and table.dims[0] > MAX_EMBEDDING_ROWS:
            detail = f"a table of {table.dims[0]} rows, above {MAX_EMBEDDING_ROWS}, gives wrong rows"
            yield "wrong", "embedding_rows", detail, "keep it on the CPU, or quantize it to int4"


def _batch(tensor: object, kept: int) -> int:
    """How many slices of the last ``kept`` axes a tensor has."""
    return math.prod(tensor.dims[:-kept]) if isinstance(tensor, VkTensor) and len(tensor.dims) > kept else 1
