"""Runs ``et_vk.embedding_q4gsw`` of a delegate on a Vulkan device, from the bytes that the file holds.

What the runtime chooses (block storage of the prepacked table) is chosen as it does; what the graph sets
(storage and layout of indices and output, dtypes) is honoured or is a ``DeviceWouldFail``.

Source: docs/contract.md 6.1, 7.1, 7.2.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from executorch.backends.vulkan.serialization.vulkan_graph_schema import VkGraph, VkStorageType, VkTensor

from conformance.harness.errors import CannotRun, DeviceWouldFail, EnvironmentProblem, FeatureMissing, UnservedGroupSize
from conformance.harness.observation import Facts
from conformance.pte.device import open_device
from conformance.pte.file import DTYPES
from conformance.pte.spirv import is_precise
from impl.errors import DeviceLacksFeature, ShaderToolMissing
from impl.kernel import Variant, embedding_shader, run_embedding, run_prepack

Array = np.ndarray[Any, Any]
LOOKUP = "et_vk.embedding_q4gsw.default"
_WIDTH_PACKED = ("TENSOR_WIDTH_PACKED", "DEFAULT_LAYOUT")


@dataclass(frozen=True)
class LookupCall:
    """One lookup of a graph: value ids, group size, and whether its table has the linear-weight layout."""

    weight: int
    scales: int
    group_size: int
    indices: int
    linear: bool
    out: int


def lookup_call(graph: VkGraph, args: list[int]) -> LookupCall:
    """The operator's arguments by name."""
    if len(args) != 6:  # noqa: PLR2004 - five arguments and the output
        raise DeviceWouldFail(f"{LOOKUP}: {len(args)} values where the runtime takes 6")
    weight, scales, group, indices, linear, out = args
    kinds = [type(graph.values[a].value).__name__ for a in args]
    if kinds != ["VkTensor", "VkTensor", "Int", "VkTensor", "Bool", "VkTensor"]:
        raise DeviceWouldFail(f"{LOOKUP}: its values are {', '.join(kinds)}")
    group_size, is_linear = graph.values[group].value.int_val, graph.values[linear].value.bool_val
    return LookupCall(weight, scales, group_size, indices, is_linear, out)


def storage_of(graph: VkGraph, tensor: VkTensor) -> str:
    """A tensor's storage as the runtime resolves it: its own, the graph's override, or texture3d."""
    for storage in (tensor.storage_type, graph.storage_type_override):
        if storage != VkStorageType.DEFAULT_STORAGE:
            return str(storage.name).lower().replace("_", "")
    return "texture3d"


def check_servable(graph: VkGraph, call: LookupCall) -> None:
    """Check what the runtime's kernel asserts of a lookup, and which shader variants there are."""
    weight, scales, indices, out = (graph.values[v].value for v in (call.weight, call.scales, call.indices, call.out))
    for name, tensor in (("weight", weight), ("weight_scales", scales)):
        if tensor.constant_id < 0 or len(tensor.dims) != 2:  # noqa: PLR2004 - rows and columns
            raise DeviceWouldFail(f"{LOOKUP}: {name} must be a constant of rank 2, is {tensor.dims}")
    rows, embed_dim = weight.dims[0], 2 * weight.dims[1]
    if weight.datatype.name != "UINT8" or embed_dim % 32 or not embed_dim:
        raise DeviceWouldFail(
            f"{LOOKUP}: weight is {weight.datatype.name}{weight.dims}; the kernel takes UINT8 with 32 | embed_dim"
        )
    group = call.group_size
    if group < 1 or group % 4 or embed_dim % group:
        raise UnservedGroupSize(
            f"{LOOKUP}: group_size {group} of embed_dim {embed_dim}; one scale is read per 4 columns"
        )
    if scales.dims != [rows, embed_dim // group]:
        raise DeviceWouldFail(f"{LOOKUP}: weight_scales is {scales.dims}, must be {[rows, embed_dim // group]}")
    for name, tensor, kinds in (
        ("weight_scales", scales, ("FLOAT16", "FLOAT32")),
        ("out", out, ("FLOAT16", "FLOAT32")),
        ("indices", indices, ("INT32",)),
    ):
        if tensor.datatype.name not in kinds:
            raise DeviceWouldFail(
                f"{LOOKUP}: {name} is {tensor.datatype.name}; there are {' and '.join(kinds)} shaders"
            )
    _check_storage(graph, indices, out)


def _check_storage(graph: VkGraph, indices: VkTensor, out: VkTensor) -> None:
    storages = storage_of(graph, out), storage_of(graph, indices)
    if storages[0] not in {"buffer", "texture3d"} or storages[0] != storages[1]:
        raise DeviceWouldFail(
            f"{LOOKUP}: out is in a {storages[0]}, indices in a {storages[1]}; the shaders have both in a buffer "
            "or both in a texture3d"
        )
    for name, tensor in (("out", out), ("indices", indices)):
        if tensor.memory_layout.name not in _WIDTH_PACKED:
            raise DeviceWouldFail(f"{LOOKUP}: {name} is {tensor.memory_layout.name}; the kernel is width-packed")


def constant_array(tensor: VkTensor, constants: tuple[bytes, ...]) -> Array:
    """A constant's bytes as an array of the graph's dtype and shape."""
    return np.frombuffer(constants[tensor.constant_id], DTYPES[tensor.datatype.name]).reshape(tensor.dims)


def run_lookup(graph: VkGraph, args: list[int], constants: tuple[bytes, ...], indices: Array) -> tuple[Array, Facts]:
    """Run one lookup; returns its output, and what the shader declared and how it was bound.

    Raises:
        DeviceWouldFail: the kernel does not serve what the graph sets.
        CannotRun: an index is outside the table, or the device wrote where it must not.
        EnvironmentProblem: the device or the shader compiler is at fault.
    """
    call = lookup_call(graph, args)
    check_servable(graph, call)
    device = open_device()
    weight_spec, scales_spec, out_spec = (graph.values[v].value for v in (call.weight, call.scales, call.out))
    weight, scales = constant_array(weight_spec, constants), constant_array(scales_spec, constants)
    rows = weight.shape[0]
    weight_storage: Literal["buffer", "texture2d"] = "buffer"
    io_storage: Any = storage_of(graph, out_spec)
    try:
        if call.linear:
            limit = device.info.limits["maxImageDimension2D"]
            fits = weight.shape[1] // 2 <= limit and -(-rows // 8) <= limit
            weight_storage = "texture2d" if fits else "buffer"
            weight = run_prepack(device, weight, weight_storage).out
        output_dtype: Any = DTYPES[out_spec.datatype.name]
        scale_dtype: Any = DTYPES[scales_spec.datatype.name]
        variant = Variant(output_dtype, scale_dtype, "block" if call.linear else "flat", weight_storage, io_storage)
        shader = embedding_shader(device.info, variant)
        result = run_embedding(
            device, variant, weight, scales, call.group_size, indices, vocab_size=rows, shader=shader
        )
    except DeviceLacksFeature as error:
        raise FeatureMissing(str(error)) from error
    except ShaderToolMissing as error:
        raise EnvironmentProblem(str(error)) from error
    except (IndexError, ValueError) as error:
        raise CannotRun(f"{LOOKUP}: {error}") from error
    for problem in (result.damage, _at("never written", result.unwritten), _at("unstable", result.unstable)):
        if problem:
            raise CannotRun(f"{LOOKUP} ({variant.name}): {problem}")
    precise = is_precise(shader.spirv)
    facts = Facts(tuple(result.float_modes), precise, io_storage, device=result.device, driver=result.driver)
    return result.out, facts


def _at(what: str, position: int | None) -> str:
    return "" if position is None else f"output element {position} is {what}"
