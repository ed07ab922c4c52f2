"""Proof target "impl": a variant of the embedding shader (ours, or one given by path) on a Vulkan device.

Needs neither torch nor executorch.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from conformance.harness.errors import EnvironmentProblem, FeatureMissing
from conformance.harness.observation import Declared
from conformance.judging.compare import float_modes
from conformance.proofs.target import Array, ExceedsLimit, Numerics, Result, TargetFacts
from conformance.proofs.targets.stream import GROUP, PER_ROW, SMALLEST, Stream, table
from conformance.pte.device import new_device
from conformance.pte.spirv import is_precise
from impl.dispatch.variants import check_features
from impl.errors import DeviceLacksFeature, DeviceLimitExceeded, ShaderCompileError, ShaderToolMissing
from impl.kernel import VARIANTS, Device, KernelResult, Variant, embedding_shader, run_embedding, variant_named
from impl.shader import compiler
from reference.table.layouts import pack_blocks, pack_flat

ROOT = Path(__file__).resolve().parents[3]
_OURS = compiler.GLSL / "embedding_q4gsw.comp"
#: What keeps three slots of float32 results under 1 GiB, whatever a device can bind.
_MOST = 1 << 22
#: Chunks of variants with textures: they go through the checked path, which runs everything twice.
_MOST_TEXTURED = 1 << 18
_PLANE_ROWS = 1024


def variants(_subject: str) -> tuple[str, ...]:
    """The variants' names: 24, each also with nothing declared."""
    return tuple(v.name for v in (*VARIANTS, *(replace(v, float_modes="none") for v in VARIANTS)))


def open_target(_subject: str, variant: str, device: str, shader: Path | None) -> "DeviceTarget":
    """Open the device and compile the shader; see ``conformance.proofs.target.open_target``."""
    chosen = variant_named(variant)
    if shader is not None and not shader.is_file():
        raise ValueError(f"no shader file {shader}")
    opened = new_device(device)
    try:
        return DeviceTarget(opened, chosen, shader or _OURS)
    except BaseException:
        opened.close()
        raise


def derived(facts: TargetFacts) -> tuple[TargetFacts, Numerics]:
    """What the facts' shader is and compiles to here, with the float modes that the facts declare."""
    source, variant = ROOT / facts.shader, variant_named(facts.variant)
    if not source.is_file():
        raise ValueError(f"no shader file {facts.shader}")
    with _translated():
        shader = compiler.compile_shader(source, variant.defines, tuple(filter(None, facts.execution_modes.split(","))))
    today, numerics = _described(variant, source, shader)
    return replace(today, device=facts.device, driver=facts.driver), numerics


def _described(variant: Variant, source: Path, shader: compiler.Shader) -> tuple[TargetFacts, Numerics]:
    """The facts, but for the device's, and what the shader's own bytes declare (contract 3.4)."""
    resolved, modes = source.resolve(), ",".join(shader.float_modes)
    path = str(resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else resolved)
    glsl = hashlib.sha256(source.read_bytes()).hexdigest()
    declared = float_modes(Declared(tuple(shader.float_modes), is_precise(shader.spirv), variant.io_storage))
    facts = TargetFacts("impl", variant.name, modes, path, glsl, shader.sha256)
    return facts, Numerics(variant.scale_dtype, variant.output_dtype, declared)


@contextmanager
def _translated() -> Iterator[None]:
    """The kernel's errors as those of a target."""
    try:
        yield
    except DeviceLacksFeature as error:
        raise FeatureMissing(str(error)) from error
    except ShaderToolMissing as error:
        raise EnvironmentProblem(str(error)) from error
    except ShaderCompileError as error:
        raise ValueError(str(error)) from error
    except DeviceLimitExceeded as error:
        raise ExceedsLimit(str(error)) from error


class DeviceTarget:
    """See ``conformance.proofs.target.Target``."""

    def __init__(self, device: Device, variant: Variant, source: Path) -> None:
        self._device, self._variant = device, variant
        with _translated():
            check_features(device.info, variant)
            self._shader = embedding_shader(device.info, variant, source)
        facts, self.numerics = _described(variant, source, self._shader)
        self.facts = replace(facts, device=device.info.name, driver=device.info.driver)
        self.seconds = {"device": 0.0, "transfer": 0.0}
        self._stream: Stream | None = None
        self._table: tuple[Array, Array] | None = None

    def open_products(self, most: int, slots: int) -> int:
        """Halve the chunk until the device holds it."""
        chunk = max(SMALLEST, 1 << (min(most, _MOST).bit_length() - 1))
        if self._variant.io_storage == "texture3d":
            chunk = min(chunk, _MOST_TEXTURED)
            packed, indices = table(self._variant, chunk)
            self._table = packed, indices.reshape(-1, min(_PLANE_ROWS, indices.size))
            return chunk
        while self._stream is None:
            try:
                self._stream = Stream(self._device, self._variant, self._shader, chunk, slots, self.seconds)
            except DeviceLimitExceeded:
                if chunk == SMALLEST:
                    raise
                chunk //= 2
        return chunk

    def products(self, slot: int, scales: Array) -> Result:
        """Streamed where output and indices are buffers, else through the checked path."""
        if self._stream is not None:
            return self._stream.products(slot, scales)
        assert self._table is not None  # noqa: S101 - open_products comes first
        packed, indices = self._table
        padded = np.zeros((indices.size, PER_ROW), self._variant.scale_dtype)
        padded.reshape(-1)[: scales.size] = scales
        result = self._run(packed, padded, GROUP, indices)
        bits = result.out.reshape(-1, 16)[: scales.size]
        return Result(np.ascontiguousarray(bits).view(f"u{bits.itemsize}"), _damage(result))

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array) -> Result:
        """Pack with the reference's layouts and run checked: poison, guard bands, two runs."""
        packed = (pack_flat if self._variant.weight_layout == "flat" else pack_blocks)(values)
        result = self._run(packed, scales, group_size, indices)
        return Result(result.out, _damage(result))

    def _run(self, packed: Array, scales: Array, group_size: int, indices: Array) -> KernelResult:
        started, table = time.perf_counter(), (packed, scales, group_size, indices)
        with _translated():
            result = run_embedding(self._device, self._variant, *table, vocab_size=scales.shape[0], shader=self._shader)
        self.seconds["device"] += time.perf_counter() - started
        return result

    def close(self) -> None:
        """Free everything and close the device."""
        if self._stream is not None:
            self._stream.close()
        self._device.close()


def _damage(result: KernelResult) -> str:
    if result.damage:
        return result.damage
    for what, at in (("never written", result.unwritten), ("not the same in two runs", result.unstable)):
        if at is not None:
            place = tuple(int(i) for i in np.unravel_index(at, result.out.shape))
            return f"element {list(place)} is {what}"
    return ""
