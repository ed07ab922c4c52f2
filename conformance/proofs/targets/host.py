"""Proof targets on the host: "executorch" (the wheel's eager operator) and "reference" (our own numpy operator)."""

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conformance.harness.errors import EnvironmentProblem
from conformance.proofs.target import Array, Numerics, Result, TargetFacts
from reference.arithmetic.accept import HOST
from reference.q4_embedding_ref import embedding_q4gsw
from reference.table.layouts import pack_flat, pack_linear_weight

#: weight bytes, scales, group size, indices, is_linear_weight -> output
Operator = Callable[[Array, Array, int, Array, bool], Array]
_COLUMNS, _GROUP = 512, 16
_PER_ROW = _COLUMNS // _GROUP
_MOST = 1 << 18
_LAYOUTS = {"flat": pack_flat, "linear": pack_linear_weight}
_DTYPES = {"f16": "float16", "f32": "float32"}


def variants(subject: str) -> tuple[str, ...]:
    """LAYOUT-OUTout-SCALEscale: the wheel's operator returns float32 only."""
    outputs = ("f32",) if subject == "executorch" else ("f32", "f16")
    return tuple(f"{lay}-{out}out-{scale}scale" for lay in _LAYOUTS for out in outputs for scale in ("f32", "f16"))


def open_target(subject: str, variant: str, _device: str, shader: Path | None) -> "HostTarget":
    """Load the operator; see ``conformance.proofs.target.open_target``."""
    if shader is not None:
        raise ValueError(f"subject {subject} runs on the host and takes no shader")
    facts, numerics = derived(TargetFacts(subject, variant))
    if subject == "executorch":
        operator, driver = _wheel()
    else:
        operator, driver = partial(embedding_q4gsw, output_dtype=numerics.output_dtype), f"numpy {np.__version__}"
    return HostTarget(operator, replace(facts, device=f"CPU {platform.machine()}", driver=driver), numerics)


def derived(facts: TargetFacts) -> tuple[TargetFacts, Numerics]:
    """See ``conformance.proofs.target.derived``."""
    known = variants(facts.subject)
    if facts.variant not in known:
        raise ValueError(f"unknown variant {facts.variant!r} of {facts.subject}: known are {', '.join(known)}")
    _layout, output, scale = facts.variant.split("-")
    numerics = Numerics(_DTYPES[scale[:3]], _DTYPES[output[:3]], HOST)
    return TargetFacts(facts.subject, facts.variant, device=facts.device, driver=facts.driver), numerics


class HostTarget:
    """See ``conformance.proofs.target.Target``."""

    def __init__(self, operator: Operator, facts: TargetFacts, numerics: Numerics) -> None:
        self.facts, self.numerics = facts, numerics
        self.seconds = {"device": 0.0, "transfer": 0.0}
        self._operator = operator
        self._linear = facts.variant.startswith("linear")
        self._pack = _LAYOUTS["linear" if self._linear else "flat"]
        self._packed, self._indices = np.empty((0, 0), np.uint8), np.empty(0, np.int64)

    def open_products(self, most: int, slots: int) -> int:  # noqa: ARG002 - results are new arrays, in any slot
        """Chunks small enough for the temporaries of an eager operator."""
        chunk = min(_MOST, max(_PER_ROW, 1 << (most.bit_length() - 1)))
        self._indices = np.arange(chunk // _PER_ROW)
        codes = np.tile(np.arange(-8, 8, dtype=np.int8), _PER_ROW)
        self._packed = self._pack(np.broadcast_to(codes, (self._indices.size, _COLUMNS)))
        return chunk

    def products(self, slot: int, scales: Array) -> Result:  # noqa: ARG002 - as above
        """One eager call."""
        padded = np.zeros((self._indices.size, _PER_ROW), scales.dtype)
        padded.reshape(-1)[: scales.size] = scales
        bits = self._call(self._packed, padded, _GROUP, self._indices).reshape(-1, 16)[: scales.size]
        return Result(np.ascontiguousarray(bits).view(f"u{bits.itemsize}"))

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array) -> Result:
        """One eager call."""
        return Result(self._call(self._pack(values), scales, group_size, indices))

    def _call(self, packed: Array, scales: Array, group_size: int, indices: Array) -> Array:
        started = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):
            result = self._operator(packed, scales, group_size, indices, self._linear)
        self.seconds["device"] += time.perf_counter() - started
        return result

    def close(self) -> None:
        """Nothing is held."""


def _wheel() -> tuple[Operator, str]:
    try:
        import torch  # noqa: PLC0415 - takes seconds to load
        from executorch.backends.vulkan import custom_ops_lib  # noqa: F401, PLC0415 - registers the operator
    except ImportError as error:
        raise EnvironmentProblem(f"subject executorch needs torch and executorch: {error}") from error

    def operator(*arguments: Any) -> Array:
        tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
        result: Array = torch.ops.et_vk.embedding_q4gsw(*tensors).numpy()
        return result

    return operator, f"torch {torch.__version__}"
