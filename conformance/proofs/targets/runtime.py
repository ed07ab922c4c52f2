"""Proof target "executorch-runtime:PATH": a real runtime, asked by files of one operator.

Scales are constants of a file, so every chunk is a file of its own. What the runtime's shaders declare is not known:
nothing is assumed, and contract 3 allows what no declaration forbids.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from conformance.case import case as cases
from conformance.harness.errors import EnvironmentProblem, RuntimeFailed
from conformance.harness.observation import Declared
from conformance.judging.compare import float_modes
from conformance.proofs.target import Array, ExceedsLimit, Numerics, Result, TargetFacts
from conformance.pte.runtime import RealRuntime, open_runtime
from conformance.sources.runtime import runtime_source
from conformance.subjects.executorch_runtime import TEXTURE_LIMIT, not_chosen
from conformance.subjects.one_lookup import one_lookup
from impl.kernel import VARIANTS, Variant, variant_named
from reference.table.layouts import pack_flat, pack_linear_weight

_GROUP = 16
#: Scales of a chunk, and columns of its table; a table in blocks is in a buffer where it is too high for an image.
_MOST, _COLUMNS, _NARROW = 1 << 18, 512, 32
_EXTRA_ROWS = 32


def variants(_subject: str) -> tuple[str, ...]:
    """The variants' names: 24."""
    return tuple(variant.name for variant in VARIANTS)


def open_target(subject: str, variant: str, device: str, shader: Path | None) -> "RuntimeTarget":
    """Open the runtime; see ``conformance.proofs.target.open_target``."""
    if shader is not None or device:
        raise ValueError(f"subject {subject} has shaders and a device of its own: --shader and --device are not for it")
    source = runtime_source(subject.partition(":")[2])
    facts, numerics = derived(TargetFacts(f"executorch-runtime:{source}", variant))
    facts = replace(facts, driver=Path(source.words[-1]).name)
    return RuntimeTarget(open_runtime(source), variant_named(variant), facts, numerics)


def derived(facts: TargetFacts) -> tuple[TargetFacts, Numerics]:
    """See ``conformance.proofs.target.derived``."""
    variant = variant_named(facts.variant)
    modes = float_modes(Declared((), precise=False, io_storage=variant.io_storage))
    today = TargetFacts(facts.subject, variant.name, device=facts.device, driver=facts.driver)
    return today, Numerics(variant.scale_dtype, variant.output_dtype, modes)


class RuntimeTarget:
    """See ``conformance.proofs.target.Target``."""

    def __init__(self, runtime: RealRuntime, variant: Variant, facts: TargetFacts, numerics: Numerics) -> None:
        self.facts, self.numerics = facts, numerics
        self.seconds = {"device": 0.0, "transfer": 0.0}
        self._runtime, self._variant = runtime, variant
        high = variant.weight_layout == "block" and variant.weight_storage == "buffer"
        self._columns = _NARROW if high else _COLUMNS
        self._pack: Callable[[Array], Array] = pack_flat if variant.weight_layout == "flat" else pack_linear_weight
        self._chunk = 0

    def open_products(self, most: int, slots: int) -> int:  # noqa: ARG002 - results are new arrays, in any slot
        """A chunk is as large as ``most`` allows; the table has a row more than an image where that matters."""
        self._chunk = min(_MOST, 1 << (most.bit_length() - 1))
        return self._chunk

    def products(self, slot: int, scales: Array) -> Result:  # noqa: ARG002 - as above
        """One file, called with as many indices at a time as an image holds rows."""
        per_row = self._columns // _GROUP
        rows = max(_MOST if self._columns == _NARROW else self._chunk, _GROUP) // per_row
        padded = np.zeros((rows + _EXTRA_ROWS, per_row), self._variant.scale_dtype)
        padded.reshape(-1)[: scales.size] = scales
        codes = np.tile(np.arange(-8, 8, dtype=np.int8), per_row)
        needed = -(-scales.size // per_row)
        step = min(needed, TEXTURE_LIMIT)
        calls = [np.minimum(np.arange(at, at + step), rows - 1) for at in range(0, needed, step)]
        out = self._run(np.broadcast_to(codes, (len(padded), self._columns)), padded, _GROUP, calls)
        bits = out.reshape(-1, 16)[: scales.size]
        return Result(np.ascontiguousarray(bits).view(f"u{bits.itemsize}"))

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array) -> Result:
        """One file with one call."""
        if reason := not_chosen(
            cases.Variant(**vars(self._variant)), len(values)
        ):  # contract 7.5's way to leave a shape out, with its reason
            raise ExceedsLimit(reason)
        if self._variant.io_storage == "texture3d":
            width, height = values.shape[1] // 4, indices.shape[-1] if indices.ndim else 1
            if max(width, height) > TEXTURE_LIMIT:
                raise ExceedsLimit(f"an image of {width} x {height} texels; at most {TEXTURE_LIMIT} are sure to fit")
        return Result(self._run(values, scales, group_size, [indices]).reshape(*indices.shape, values.shape[1]))

    def _run(self, values: Array, scales: Array, group_size: int, calls: list[Array]) -> Array:
        started, variant = time.perf_counter(), self._variant
        read = (self._pack(values), scales, group_size, calls[0], variant.output_dtype)
        with _translated():
            model = one_lookup(*read, linear=variant.weight_layout != "flat", storage=variant.io_storage)
            answers = self._runtime.run(model, [[call] for call in calls])
        self.seconds["device"] += time.perf_counter() - started
        return np.concatenate([out.reshape(-1, values.shape[1]) for (out,) in answers])

    def close(self) -> None:
        """Nothing is held that the process does not keep."""


@contextmanager
def _translated() -> Iterator[None]:
    """A file that the runtime does not run ends the proof in one line."""
    try:
        yield
    except RuntimeFailed as error:
        raise EnvironmentProblem(str(error)) from error
