"""Stages KERNEL and PREPACK of subject "executorch-src": a source tree's shaders on a Vulkan device.

Source: docs/contract.md sections 7.1 and 7.2.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from conformance.case.case import Dispatch, EndToEnd, Table
from conformance.case.operands import table_values
from conformance.harness.errors import EnvironmentProblem, FeatureMissing, Untestable
from conformance.harness.observation import Arrays, Observation, Refused, Unsupported
from conformance.pte.device import open_device
from conformance.pte.spirv import bindings, is_precise
from conformance.sources.tree import HOST
from conformance.subjects.executorch import fuse_patterns
from conformance.subjects.executorch_shaders import executorch_shaders, prepack_name, shader_name
from conformance.subjects.impl import drawn, facts_of, variant_of
from conformance.subjects.stages import Array, FusedTable, fused_table
from impl.errors import DeviceLacksFeature, DeviceLimitExceeded, ShaderCompileError, ShaderToolMissing
from impl.kernel import run_embedding, run_prepack
from impl.shader.compiler import Shader
from reference.table.layouts import (
    linear_weight_to_blocks,
    pack_flat,
    pack_linear_weight,
    unpack_flat,
    unpack_linear_weight,
)

#: The resources of contract 7.2: output, indices, weight, scales, sizes; and of the prepack shader.
_EMBEDDING, _PREPACK = {0, 1, 2, 3, 4}, {0, 1}
_MULTIPLE = 32


def shaders_of(folder: Path) -> dict[str, Shader]:
    """Every shader that the tree's generator makes, by name."""
    try:
        return executorch_shaders(folder)
    except ShaderToolMissing as error:
        raise EnvironmentProblem(str(error)) from error
    except (ShaderCompileError, FileNotFoundError) as error:
        raise Untestable(f"the tree's shaders cannot be made: {' '.join(str(error).split())}") from error


def run_kernel_case(question: Dispatch | EndToEnd, shaders: Mapping[str, Shader], folder: Path) -> Observation:
    """Dispatch the tree's embedding shader on its own grid; with a program, on what its matcher and packer left."""
    variant = variant_of(question)
    if reason := _no_shader(shaders, shader_name(variant), _EMBEDDING):
        return Unsupported(reason)
    table: FusedTable | Refused
    if isinstance(question, Dispatch):
        table = drawn(question, pack_linear_weight)
    else:
        table = fused_table(question, lambda program: (fuse_patterns(program), None))
    if isinstance(table, Refused):
        return table
    linear = table.packed if table.linear_weight else pack_linear_weight(unpack_flat(table.packed))
    shader = shaders[shader_name(variant)]
    try:
        if question.weight_layout == "flat":
            weight = pack_flat(unpack_linear_weight(linear))
        elif isinstance(question, Dispatch):
            weight = linear_weight_to_blocks(linear)
        else:
            if reason := _no_shader(shaders, prepack_name(question.weight_storage), _PREPACK):
                return Unsupported(reason)
            weight = _prepack(linear, question.weight_storage, shaders)
        result = run_embedding(
            open_device(),
            variant,
            weight,
            table.scales,
            table.group_size,
            table.indices,
            vocab_size=table.scales.shape[0],
            allow_out_of_range=True,
            shader=shader,
            grid="executorch",
        )
    except DeviceLimitExceeded as error:
        return Unsupported(f"{error}; the tree's host code, which would have to say so, is not run here")
    except DeviceLacksFeature as error:
        raise FeatureMissing(str(error)) from error
    facts = facts_of(table, result, question, precise=is_precise(shader.spirv))
    return Arrays({"out": result.out}, replace(facts, binding=host_line(folder)))


def host_line(folder: Path) -> str:
    """Where the tree's host code binds and dispatches the embedding shader, as file:line; "" where it is not found."""
    path = folder / HOST
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if "DispatchNode(" in line:
                return f"{HOST}:{number}"
    return ""


def run_prepack_case(table: Table, shaders: Mapping[str, Shader]) -> Observation:
    """Dispatch the tree's prepack shader on the reference's linear-weight bytes."""
    if reason := _no_shader(shaders, prepack_name(table.storage), _PREPACK):
        return Unsupported(reason)
    values = table_values(table)
    if values.shape[1] % _MULTIPLE:
        return Unsupported(f"ExecuTorch's host prepacks rows of a multiple of {_MULTIPLE} columns only")
    return Arrays({"blocks": _prepack(pack_linear_weight(values), table.storage, shaders)})


def _prepack(packed: Array, storage: str, shaders: Mapping[str, Shader]) -> Array:
    """Blocks by the tree's shader."""
    kind: Literal["buffer", "texture2d"] = "texture2d" if storage == "texture2d" else "buffer"
    result = run_prepack(open_device(), packed, kind, shader=shaders[prepack_name(storage)])
    if not result.guards_intact or result.unwritten is not None:
        where = result.damage or f"word {result.unwritten} was never written"
        raise RuntimeError(f"the prepack shader left its output: {where}")
    return result.out


def _no_shader(shaders: Mapping[str, Shader], name: str, expected: set[int]) -> str:
    """Why the shader of that name cannot be bound, or ""."""
    if name not in shaders:
        return f"the tree makes no shader {name}"
    # What the source declares: a shader that forgot to use a resource is wrong, not of another interface.
    if (bound := shaders[name].bindings or bindings(shaders[name].spirv)) != expected:
        return f"shader {name} binds resources {sorted(bound)}; contract 7.2 has {sorted(expected)}"
    return ""
