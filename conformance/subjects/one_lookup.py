"""Writes a ``.pte`` of one operator, ``et_vk.embedding_q4gsw``, with chosen storage, dtypes and sizes.

No exporter is involved: a lowering chooses storage and dtypes itself, and reaches few of the shader's variants.

Source: docs/contract.md 6.1, 7.1; backends/vulkan/serialization/schema.fbs and schema/program.fbs of ExecuTorch.
"""

import math
from typing import Any

import numpy as np
import torch
from executorch.backends.vulkan.serialization.vulkan_graph_schema import (
    Bool,
    Int,
    OperatorCall,
    VkDataType,
    VkGraph,
    VkMemoryLayout,
    VkStorageType,
    VkTensor,
    VkValue,
)
from executorch.backends.vulkan.serialization.vulkan_graph_serialize import serialize_vulkan_graph
from executorch.exir import schema
from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
from executorch.exir.scalar_type import ScalarType

from conformance.pte.file import DTYPES, VULKAN
from conformance.pte.lookup import LOOKUP

Array = np.ndarray[Any, Any]
_VK = {name: getattr(VkDataType, kind) for kind, name in DTYPES.items()}
_SCALAR = {
    "float32": ScalarType.FLOAT,
    "float16": ScalarType.HALF,
    "int32": ScalarType.INT,
    "int64": ScalarType.LONG,
}
_STORAGE = {"buffer": VkStorageType.BUFFER, "texture3d": VkStorageType.TEXTURE_3D}
_ALIGNMENT = 16


def one_lookup(
    packed: Array, scales: Array, group_size: int, indices: Array, output_dtype: str, *, linear: bool, storage: str
) -> bytes:
    """Return the file, whose method ``forward`` takes indices of that shape and dtype and returns their rows.

    Args:
        packed: uint8 [V, D/2], of the flat or with ``linear`` of the linear-weight layout.
        scales: float32|float16 [V, D/G].
        group_size: G.
        indices: int32|int64; its values are no part of the file.
        output_dtype: "float32" or "float16".
        linear: whether the table has the linear-weight layout.
        storage: of indices and output, "buffer" or "texture3d".
    """
    shape = (*indices.shape, 2 * packed.shape[1])
    constants = [np.ascontiguousarray(packed), np.ascontiguousarray(scales)]
    values = [
        *(
            _tensor(str(array.dtype), array.shape, VkStorageType.DEFAULT_STORAGE, n)
            for n, array in enumerate(constants)
        ),
        Int(group_size),
        _tensor("int32", indices.shape, _STORAGE[storage]),
        Bool(linear),
        _tensor(output_dtype, shape, _STORAGE[storage]),
    ]
    call = OperatorCall(0, LOOKUP, [0, 1, 2, 3, 4, 5])
    graph = VkGraph("0", [call], [VkValue(value) for value in values], [3], [5], [], [])
    blob = serialize_vulkan_graph(graph, [torch.from_numpy(array) for array in constants], [])
    return _program(bytes(blob), (str(indices.dtype), indices.shape), (output_dtype, shape))


def _tensor(dtype: str, shape: tuple[int, ...], storage: VkStorageType, constant: int = -1) -> VkTensor:
    layout = VkMemoryLayout.DEFAULT_LAYOUT if constant >= 0 else VkMemoryLayout.TENSOR_WIDTH_PACKED
    return VkTensor(_VK[dtype], list(shape), constant, -1, storage, layout, _VK[dtype])


def _program(blob: bytes, *tensors: tuple[str, tuple[int, ...]]) -> bytes:
    """A program whose method calls one Vulkan delegate, with the first tensor as input and the second as output."""
    values, offset = [], 0
    for dtype, shape in tensors:
        where = schema.AllocationDetails(1, offset, 0)
        order, static = list(range(len(shape))), schema.TensorShapeDynamism.STATIC
        tensor = schema.Tensor(_SCALAR[dtype], 0, list(shape), order, False, 0, 0, where, static)  # noqa: FBT003 - no gradient
        values.append(schema.EValue(tensor))
        offset += -(-max(1, math.prod(shape)) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
    inline = schema.BackendDelegateDataReference(schema.DataLocation.INLINE, 0)
    call = schema.Chain([], [], [schema.Instruction(schema.DelegateCall(0, [0, 1]))], None)
    delegate = schema.BackendDelegate(VULKAN, inline, [])
    none = schema.ContainerMetadata("", "")
    plan = schema.ExecutionPlan("forward", none, values, [0], [1], [call], [], [delegate], [0, offset])
    data = [schema.BackendDelegateInlineData(blob)]
    program = schema.Program(0, [plan], [schema.Buffer(b"")], data, [], schema.SubsegmentOffsets(0, []))
    return bytes(serialize_pte_binary(PTEFile(program), extract_delegate_segments=True))
