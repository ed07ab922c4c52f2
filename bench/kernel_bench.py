"""Time the embedding shader on a device: ours, ExecuTorch's, and what a copy manages.

    python -m bench.kernel_bench [--device NAME] [--quick] [--ablation] [--executorch-src PATH] [--out DIR]

Needs Python, numpy and the ``vulkan`` package; with Q4GSW_SPIRV_CACHE pointing at a directory that
``--precompile`` filled elsewhere it needs no shader compiler either. Every timed output is checked
against the reference before its time counts.

Source: docs/contract.md section 7; docs/kernel.md has the results.
"""

import argparse
import datetime as dt
import os
import platform
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.kernel_ablation import ABLATIONS, Ablation, ablated_source
from bench.kernel_report import Measurement, text_table, verdict, write_files
from bench.kernel_timing import SETS, Resident, Timing, copy_bandwidth, copy_shader, time_job
from conformance.subjects.executorch_shaders import executorch_shaders, shader_name
from impl.dispatch.grid import work_groups
from impl.dispatch.job import Job
from impl.dispatch.prepack import PREPACK_STORAGES, prepack_shader
from impl.dispatch.request import Request
from impl.errors import VulkanError
from impl.kernel import VARIANTS, Device, Grid, Variant, embedding_job, embedding_shader, variant_named
from impl.shader.compiler import GLSL, Shader, compile_shader
from reference.table.layouts import unpack_blocks, unpack_flat

#: The shapes of the goals: 1 = decode, 2,047 = a Llama prefill.
ROWS = (1, 2047, 32768, 262144)
#: What a model looks up while it decodes, and while it reads a prompt: the sizes of ``--all``.
ALL_ROWS = (1, 8, 64, 2047, 16384, 32768)
QUICK_ROWS = (1, 2047)
NAMES = (
    "block-buffer-f32out-f32scale-buffer",
    "flat-buffer-f16out-f16scale-buffer",
    "block-texture2d-f16out-f32scale-texture3d",
)
REPEATS, _CPU_REPEATS = 40, 6
ROUNDS = 3
COPY_BYTES = 1 << 30
_CPU_COPY_BYTES = 1 << 26
_ABLATED_ROWS = 32768


def random_table(variant: Variant, vocab_size: int, embed_dim: int, group_size: int) -> Request:
    """A lookup of row 0 in a table of random codes, with random scales in [1, 2) that no rounding makes equal."""
    rng = np.random.default_rng(7)
    flat = variant.weight_layout == "flat"
    shape = (vocab_size, embed_dim // 2) if flat else (-(-vocab_size // 8), embed_dim // 4, 16)
    weight = rng.integers(0, 256, shape, dtype=np.uint8)
    scales = (1 + rng.random((vocab_size, embed_dim // group_size), dtype=np.float32)).astype(variant.scale_dtype)
    indices = np.zeros(1, np.int32)
    return Request(
        variant, weight if flat else weight.view(np.int32), scales, indices, group_size, vocab_size, embed_dim
    )


def expected(request: Request, indices: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """What the reference says of those rows, nearest even; random scales keep away from subnormals."""
    if request.variant.weight_layout == "flat":
        values = unpack_flat(request.weight[indices])
    else:
        rows = unpack_blocks(request.weight[indices >> 3], 8 * indices.size)
        values = rows[8 * np.arange(indices.size) + (indices & 7)]
    scales = np.repeat(request.scales[indices].astype(np.float64), request.group_size, axis=1)
    return (values * scales).astype(np.float32).astype(request.out_dtype)


def _right(request: Request, indices: npt.NDArray[np.int32], output: npt.NDArray[Any]) -> bool:
    """Whether those rows are the reference's; an image of 16-bit floats stores either neighbour (contract 3.4)."""
    exact = expected(request, indices)
    if request.variant.io_storage == "buffer" or request.variant.output_dtype == "float32":
        return np.array_equal(output, exact)
    steps = np.abs(output.view(np.uint16).astype(np.int32) - exact.view(np.uint16).astype(np.int32))
    return bool((steps <= 1).all())


def useful_bytes(request: Request) -> int:
    """Output, packed codes, scales and indices of the lookup."""
    scales = request.scales.itemsize * (request.embed_dim // request.group_size)
    return request.indices.size * (request.row_bytes + request.embed_dim // 2 + scales + 4)


def moved_bytes(request: Request) -> int:
    """What the memory has to move for it: in the block layout, eight rows lie in every 16 bytes that are read."""
    others = 0 if request.variant.weight_layout == "flat" else 7 * request.embed_dim // 2
    return useful_bytes(request) + request.indices.size * others


@dataclass(frozen=True)
class Contender:
    """A shader to time and how to dispatch it: ExecuTorch's, ours, or ours with a change."""

    who: str
    shader: Shader
    change: Ablation
    theirs: bool = False


def contenders(device: Device, variant: Variant, theirs: dict[str, Shader], *, ablation: bool) -> list[Contender]:
    """Everyone who runs at one size, ExecuTorch's first."""
    ours = embedding_shader(device.info, variant)
    at_run_time = Ablation("", constants=False)
    field = [Contender("ExecuTorch", theirs[shader_name(variant)], at_run_time, theirs=True)] if theirs else []
    field += [Contender("ours", ours, Ablation("")), Contender("ours, sizes at run time", ours, at_run_time)]
    if ablation:
        shapes = variant.io_storage == "buffer"
        changes = [c for c in ABLATIONS if shapes or not (c.rows or c.local)]
        field += [Contender(c.name, ablated_shader(device, variant, c), c) for c in changes]
    return field


def contender_job(device: Device, request: Request, one: Contender) -> Job:
    """The dispatch of a contender, with its change of shape made."""
    grid: Grid = "executorch" if one.theirs else "impl"
    job = embedding_job(device.info, request, one.shader, specialize=one.change.constants, grid=grid)
    if one.change.rows or one.change.local:
        local = one.change.local or job.constants[0]
        each = one.change.rows or job.constants.get(5, 1)
        columns = 8 if request.variant.output_dtype == "float16" else 4
        invocations = (request.embed_dim // columns, -(-request.indices.size // each), 1)
        shape = {**job.constants, 0: local, 1: 1, 2: 1, 5: each}
        job = replace(job, constants=shape, groups=work_groups(device.info, invocations, (local, 1, 1)))
    return job


def measure(device: Device, table: Request, resident: Resident, rows: int, field: list[Contender]) -> list[Measurement]:
    """Time every contender in several rounds, one after the other, and keep each one's least disturbed round.

    Raises:
        VulkanError: an output is wrong (a shader that leaves work out is not checked).
    """
    rng = np.random.default_rng(rows)
    sets = [rng.integers(0, table.vocab_size, rows, dtype=np.int32) for _ in range(SETS)]
    request = replace(table, indices=sets[0])
    repeats = _CPU_REPEATS if device.info.kind == "cpu" else REPEATS
    timings: dict[str, list[Timing]] = {one.who: [] for one in field}
    for _ in range(ROUNDS):
        for one in field:
            job = contender_job(device, request, one)
            where = [contender_job(device, replace(table, indices=one_set), one).operands[0] for one_set in sets]
            timing = time_job(device, job, request, resident, where, repeats if rows > 1 else 5 * repeats)
            if not one.change.edits and not _right(table, sets[0][timing.rows], timing.output):
                raise VulkanError(
                    f"{one.who}, {table.variant.name}, {rows} rows: the output is wrong, so its time means nothing"
                )
            timings[one.who].append(timing)
    best = {who: min(rounds, key=lambda t: t.median_ns) for who, rounds in timings.items()}
    base = best["ExecuTorch"].median_ns if "ExecuTorch" in best else None
    return [
        Measurement(
            variant=table.variant.name,
            who=who,
            rows=rows,
            median_us=timing.median_ns / 1e3,
            fastest_us=min(timing.samples_ns) / 1e3,
            useful_bytes=useful_bytes(request),
            moved_bytes=moved_bytes(request),
            ratio=base / timing.median_ns if base else None,
        )
        for who, timing in best.items()
    ]


def bench_variant(
    device: Device,
    table: Request,
    rows_list: tuple[int, ...],
    theirs: dict[str, Shader],
    copy_gbs: float,
    *,
    ablation: bool,
) -> list[Measurement]:
    """Every size with every contender for one variant; ablations at the largest size up to _ABLATED_ROWS.

    Textures are timed in one plane: ExecuTorch's shader reads other indices in the next (docs/upstream-defects.md).
    """
    measurements: list[Measurement] = []
    textured = table.variant.io_storage == "texture3d"
    name, row = ("maxImageDimension3D", 1) if textured else ("maxStorageBufferRange", table.row_bytes)
    limit = device.info.limits[name]
    fitting = [rows for rows in rows_list if rows * row <= limit]
    if left_out := sorted({*rows_list} - {*fitting}):
        print(f"{table.variant.name}, {left_out} rows: beyond {name} = {limit}, left out", flush=True)
    ablated_at = max([rows for rows in fitting if rows <= _ABLATED_ROWS], default=0)
    for rows in fitting:
        field = contenders(device, table.variant, theirs, ablation=ablation and rows == ablated_at)
        shaped = replace(table, indices=np.zeros(rows, np.int32))
        with closing(Resident(device, contender_job(device, shaped, field[0]).operands[1:])) as resident:
            measured = measure(device, table, resident, rows, field)
        measurements += [replace(m, share_of_copy=m.gigabytes_per_second / copy_gbs) for m in measured]
    return measurements


def ablated_shader(device: Device, variant: Variant, change: Ablation) -> Shader:
    """Our shader with a part taken out."""
    with tempfile.TemporaryDirectory(prefix="q4gsw-") as scratch:
        return embedding_shader(device.info, variant, ablated_source(change, Path(scratch)))


def precompile(directory: Path, checkout: Path | None) -> None:
    """Fill ``directory`` with every plain module this program and the kernel host may ask for."""
    os.environ["Q4GSW_SPIRV_CACHE"] = str(directory)
    with tempfile.TemporaryDirectory(prefix="q4gsw-") as scratch:
        for variant in VARIANTS:
            compile_shader(GLSL / "embedding_q4gsw.comp", variant.defines)
        for change in ABLATIONS:
            source = ablated_source(change, Path(scratch))
            for name in NAMES:
                compile_shader(source, variant_named(name).defines)
    for storage in PREPACK_STORAGES:
        prepack_shader(storage)
    copy_shader()
    if checkout is not None:
        for shader in executorch_shaders(checkout).values():
            (directory / "executorch").mkdir(parents=True, exist_ok=True)
            (directory / "executorch" / f"{shader.name}.spv").write_bytes(shader.spirv)


def main(arguments: list[str] | None = None) -> int:
    """Run the bench with those command-line arguments (None: the process's own); returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="part of the device's name, or its index")
    parser.add_argument("--vocab-size", type=int, default=128256)
    parser.add_argument("--embed-dim", type=int, default=2048)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--rows", type=int, nargs="+", help=f"sizes to time (default {ROWS})")
    parser.add_argument("--variants", nargs="+", default=NAMES, help="variant names")
    parser.add_argument("--all", action="store_true", help=f"all {len(VARIANTS)} variants, at {ALL_ROWS} rows")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK_ROWS} rows")
    parser.add_argument("--ablation", action="store_true", help="also take parts out and change shapes, at one size")
    parser.add_argument(
        "--executorch-src", type=Path, help="a checkout of ExecuTorch, or a directory of its .spv files"
    )
    parser.add_argument("--precompile", type=Path, metavar="DIR", help="only compile everything into DIR")
    parser.add_argument("--out", type=Path, default=Path("reports/bench"), help="where kernel.csv, .json and .svg go")
    options = parser.parse_args(arguments)
    if options.precompile:
        precompile(options.precompile, options.executorch_src)
        return 0
    theirs = executorch_shaders(options.executorch_src) if options.executorch_src else {}
    rows_list = tuple(options.rows or (ALL_ROWS if options.all else QUICK_ROWS if options.quick else ROWS))
    names = [variant.name for variant in VARIANTS] if options.all else options.variants
    measurements: list[Measurement] = []
    with Device(options.device) as device:
        size = _CPU_COPY_BYTES if device.info.kind == "cpu" else COPY_BYTES
        copy_gbs = copy_bandwidth(device, size)
        header: dict[str, object] = {
            "device": device.info.name,
            "driver": device.info.driver,
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "host": platform.machine(),
            "copy_gigabytes_per_second": copy_gbs,
            "vocab_size": options.vocab_size,
            "embed_dim": options.embed_dim,
            "group_size": options.group_size,
        }
        print(" ".join(f"{key}={value}" for key, value in header.items()), flush=True)
        for name in names:
            table = random_table(variant_named(name), options.vocab_size, options.embed_dim, options.group_size)
            measurements += bench_variant(device, table, rows_list, theirs, copy_gbs, ablation=options.ablation)
    print(text_table(measurements))
    write_files(options.out, header, measurements, copy_gbs)
    print("\n".join(verdict(measurements)))
    print(f"wrote {options.out}/kernel.csv, kernel.json, kernel.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
