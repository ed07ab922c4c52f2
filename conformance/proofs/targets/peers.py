"""Proof targets of other projects' implementations: the subject's own lookup, on tables of every code."""

import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from conformance.harness import subject as subjects
from conformance.judging.compare import float_modes
from conformance.proofs.target import Array, Numerics, Result, TargetFacts
from conformance.subjects.peers.peer import Peer
from reference.arithmetic.accept import HOST

_COLUMNS = 512
_MOST = 1 << 18
_DTYPES = {"f16": "float16", "f32": "float32"}
_SHORT = {name: short for short, name in _DTYPES.items()}


def variants(subject: str) -> tuple[str, ...]:
    """OUTout-SCALEscale, as the dialect has them."""
    return tuple(f"{_SHORT[output]}out-{_SHORT[scale]}scale" for scale, output in _load(subject).dialect.dtypes)


def open_target(subject: str, variant: str, device: str, shader: Path | None) -> "PeerTarget":
    """Load the subject; see ``conformance.proofs.target.open_target``."""
    if shader is not None:
        raise ValueError(f"subject {subject} takes no shader")
    if device and not device.startswith("CPU "):  # which a certificate says of a peer without one
        os.environ["Q4GSW_DEVICE"] = device  # where a subject with a device of its own finds it
    facts, numerics = derived(TargetFacts(subjects.resolved(subject), variant, device=f"CPU {platform.machine()}"))
    peer = _load(subject)
    own = peer.facts()
    return PeerTarget(peer, replace(facts, device=own.device, driver=own.driver), numerics)


def derived(facts: TargetFacts) -> tuple[TargetFacts, Numerics]:
    """See ``conformance.proofs.target.derived``."""
    peer = _load(facts.subject)
    known = variants(facts.subject)
    if facts.variant not in known:
        raise ValueError(f"unknown variant {facts.variant!r} of {facts.subject}: known are {', '.join(known)}")
    output, scale = (_DTYPES[word[:3]] for word in facts.variant.split("-"))
    declared = peer.dialect.facts
    modes = HOST if declared.arithmetic == "host" else float_modes(declared)
    today = TargetFacts(
        facts.subject, facts.variant, ",".join(declared.execution_modes or ()), device=facts.device, driver=facts.driver
    )
    return today, Numerics(scale, output, modes)


def _load(subject: str) -> Peer:
    return cast("Peer", subjects.load(subject))


class PeerTarget:
    """See ``conformance.proofs.target.Target``."""

    def __init__(self, peer: Peer, facts: TargetFacts, numerics: Numerics) -> None:
        self.facts, self.numerics = facts, numerics
        self.seconds = {"device": 0.0, "transfer": 0.0}
        self._peer, self._dialect = peer, peer.dialect
        self._per_row = 1 if self._dialect.a_row else _COLUMNS // self._dialect.group
        self._table = np.empty((0, 0), np.int8)

    def open_products(self, most: int, slots: int) -> int:  # noqa: ARG002 - results are new arrays, in any slot
        """One table for all chunks; its rows hold every code for each scale."""
        chunk = min(_MOST, max(self._per_row, 1 << (most.bit_length() - 1)))
        columns = self._per_row * self._dialect.group
        codes = np.tile(np.arange(-8, 8, dtype=np.int8), columns // 16)
        self._table = np.ascontiguousarray(np.broadcast_to(codes, (chunk // self._per_row, columns)))
        return chunk

    def products(self, slot: int, scales: Array) -> Result:  # noqa: ARG002 - as above
        """One lookup of every row."""
        padded = np.zeros((self._table.shape[0], self._per_row), scales.dtype)
        padded.reshape(-1)[: scales.size] = scales
        rows = self._lookup(self._table, padded, self._dialect.group, np.arange(self._table.shape[0]))
        every = rows.reshape(padded.size, self._dialect.group)[: scales.size, :16]
        return Result(np.ascontiguousarray(every).view(f"u{rows.itemsize}"))

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array) -> Result:
        """One lookup."""
        out = self._lookup(values, scales, group_size, indices.reshape(-1))
        return Result(out.reshape(*indices.shape, values.shape[1]))

    def _lookup(self, values: Array, scales: Array, group_size: int, indices: Array) -> Array:
        started = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):
            out = self._peer.lookup(values, scales, group_size, indices, self.numerics.output_dtype)
        self.seconds["device"] += time.perf_counter() - started
        return np.ascontiguousarray(out)

    def close(self) -> None:
        """Nothing is held."""
