"""Stage KERNEL of subject "impl": arrays, or a whole program's table, through the shader on a Vulkan device.

Source: docs/contract.md sections 3.4 and 7.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conformance.case import case
from conformance.case.case import Dispatch, EndToEnd, Table
from conformance.case.operands import operands
from conformance.harness.observation import Arrays, EnvironmentProblem, Refused
from conformance.pte.spirv import is_precise
from conformance.subjects.impl_types import Array, Fuse, Pack, telling
from impl import packer
from impl.errors import DeviceLacksFeature, DeviceLimitExceeded, ShaderToolMissing, VulkanUnavailable
from impl.gpu.device import list_devices
from impl.gpu.info import choose_device
from impl.kernel import Device, KernelResult, Variant, devices, embedding_shader, run_embedding, run_prepack

_open: list[Device] = []
_STORAGES: dict[str, Literal["buffer", "texture2d"]] = {"device_buffer": "buffer", "texture2d": "texture2d"}


@dataclass(frozen=True)
class Packed:
    """A table as the kernel takes it but for its layout: linear-weight bytes, scales, group size, indices."""

    bytes: Array
    scales: Array
    group_size: int
    indices: Array
    facts: dict[str, str]


def open_device() -> Device:
    """The device that $Q4GSW_DEVICE names (or the default), kept open for the next case.

    Raises:
        VulkanUnavailable: no loader, no driver or no such device.
    """
    if not _open or _open[0].broken:
        _open[:] = [Device(validate=os.environ.get("Q4GSW_VALIDATE") == "1")]
    return _open[0]


def run_kernel(
    d: Dispatch | EndToEnd,
    *,
    shader_source: Path | None = None,
    fuse: Fuse | None = None,
    pack: Pack | None = None,
    blocks: Pack | None = None,
) -> Arrays | Refused:
    """Dispatch ``d`` and report the output with what guards it.

    A question with a program goes the whole way: build, fuse, take packed table and scales out of the fused
    graph, then blocks, then the device. Any piece can be replaced: the shader, the fusion, the packing of
    values (questions without a program) and of blocks.

    Raises:
        EnvironmentProblem: no Vulkan driver, device, feature or shader compiler; names what to install or choose.
        Exception: whatever the player raises.
    """
    table = drawn(d, pack or packer.pack_linear_weight) if isinstance(d, Dispatch) else journey(d, fuse)
    if isinstance(table, Refused):
        return table
    flat = d.weight_layout == "flat"
    # Swapping the nibbles turns either byte layout into the other.
    weight = packer.flat_to_linear_weight(table.bytes) if flat else (blocks or packer.pack_blocks)(table.bytes)
    variant = variant_of(d)
    try:
        device = open_device()
        shader = embedding_shader(device.info, variant, shader_source)
        result = run_embedding(
            device,
            variant,
            weight,
            table.scales,
            table.group_size,
            table.indices,
            vocab_size=table.scales.shape[0],
            allow_out_of_range=True,
            shader=shader,
        )
    except (VulkanUnavailable, ShaderToolMissing, DeviceLacksFeature) as error:
        raise EnvironmentProblem(str(error)) from error
    except DeviceLimitExceeded as error:
        return Refused("device_limit", str(error))
    return Arrays({"out": result.out}, table.facts | facts_of(result, d, precise=is_precise(shader.spirv)))


def run_prepack_on_device(table: Table, packed: Array, shader_source: Path | None = None) -> Arrays:
    """Turn linear-weight bytes into blocks by the prepack shader, in a "device_buffer" or a "texture2d".

    Raises:
        EnvironmentProblem: no Vulkan driver, device or shader compiler.
        Exception: whatever the player raises.
    """
    try:
        device = open_device()
        result = run_prepack(device, packed, _STORAGES[table.storage], shader_source=shader_source)
    except (VulkanUnavailable, ShaderToolMissing) as error:
        raise EnvironmentProblem(str(error)) from error
    return Arrays({"blocks": result.out}, _written(result))


def variant_of(dispatch: case.Variant) -> Variant:
    """The player's variant that a dispatch asks for."""
    fields = ("output_dtype", "scale_dtype", "weight_layout", "weight_storage", "io_storage", "float_modes")
    return Variant(**{name: getattr(dispatch, name) for name in fields})


def check_device(wanted: str) -> None:
    """Check that ``wanted``, an index or part of a name, is a Vulkan device of this machine.

    Raises:
        ValueError: it is not; names the devices there are.
        EnvironmentProblem: no Vulkan loader or driver; names the package to install.
    """
    try:
        there = list_devices()
    except VulkanUnavailable as error:
        raise EnvironmentProblem(str(error)) from error
    try:
        choose_device(there, wanted)
    except VulkanUnavailable as error:
        raise ValueError(str(error)) from error


def device_lines() -> list[str]:
    """One line for each Vulkan device, for a listing.

    Raises:
        EnvironmentProblem: no Vulkan loader, driver or device; names the package to install.
    """
    try:
        rows = devices()
    except VulkanUnavailable as error:
        raise EnvironmentProblem(str(error)) from error
    return [
        f"{row['index']}: {row['name']} ({row['kind']}), {row['driver']}; {len(row['variants'])} shader variants; "
        f"float modes {', '.join(row['float_modes']) or 'none'}"
        for row in rows
    ]


def drawn(question: Dispatch, pack: Pack) -> Packed:
    """The question's own arrays, packed with ``pack``."""
    given = operands(question)
    return Packed(pack(given.values), given.scales, given.group_size, given.indices, {})


def journey(question: EndToEnd, fuse: Fuse | None) -> Packed | Refused:
    """Build, fuse, and read the first lookup's operands off the fused graph."""
    from conformance.observe.execute import fused_arguments  # noqa: PLC0415 - the same
    from conformance.observe.match import fused_node  # noqa: PLC0415 - the same
    from conformance.program.build import build  # noqa: PLC0415 - torch takes seconds to load
    from conformance.program.tensors import to_numpy  # noqa: PLC0415 - the same
    from impl.matcher import fuse_q4_embeddings  # noqa: PLC0415 - the same

    built = build(question.spec)
    program, told = telling(fuse or fuse_q4_embeddings)(built.program)
    lookup = question.spec.lookups()[0]
    node = fused_node(program, built.outputs[lookup.name])
    if node is None:
        _, reason, detail = told.get(built.nodes[lookup.name], (False, "not_fused", "no reason given"))
        return Refused(reason, detail)
    given = fused_arguments(node)
    constants = {**program.constants, **program.state_dict}
    targets = {s.arg.name: s.target for s in program.graph_signature.input_specs}
    packed, scales = (to_numpy(constants[targets[given[name].name]]) for name in ("weight", "weight_scales"))
    if not given["is_linear_weight"]:
        packed = packer.flat_to_linear_weight(packed)
    return Packed(packed, scales, given["group_size"], operands(question).indices, dict(built.facts))


def facts_of(result: KernelResult, dispatch: case.Variant, *, precise: bool) -> dict[str, str]:
    """What the judge has to know of a dispatch: declared modes, fences, and on what it ran."""
    return {
        "execution_modes": ",".join(result.float_modes),
        "precise": "1" if precise else "0",
        "io_storage": dispatch.io_storage,
        "spirv_sha256": result.spirv_sha256,
        **_written(result),
    }


def _written(result: KernelResult) -> dict[str, str]:
    """What the fences and the poison around and in the output say, and where it ran."""
    facts = {
        "device": result.device,
        "driver": result.driver,
        "guards": "intact" if result.guards_intact else result.damage,
        "unwritten": "" if result.unwritten is None else str(result.unwritten),
    }
    # An element whose two runs differ was not reliably written either; the fact tells them apart.
    if result.unstable is not None:
        facts |= {"unstable": str(result.unstable), "unwritten": facts["unwritten"] or str(result.unstable)}
    return facts
