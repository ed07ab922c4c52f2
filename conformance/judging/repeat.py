"""Equal questions have equal answers: answers of one process, and of several loads, compared bit for bit.

Source: docs/runtime.md, "Determinism"; pytorch/executorch issues 22327, 21938, 21939, 15344.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conformance.results.mismatch import DtypeShapeMismatch, Nondeterministic
from reference.arithmetic.bfloat16 import dtype_name

Array = np.ndarray[Any, Any]
Answer = Mapping[str, Array]
_COLUMNS, _MOST_TILES, _MOST_ANSWERS = 32, 8, 4


def differences(answers: Sequence[Answer], loads: Sequence[int]) -> Nondeterministic | DtypeShapeMismatch | None:
    """Return the first output that differs between answers, or None.

    Args:
        answers: the outputs of equal calls, by name.
        loads: of each answer the load that it came from.
    """
    first = answers[0]
    for name, array in first.items():
        others = [answer.get(name) for answer in answers]
        for other in others:
            if other is None or other.shape != array.shape or other.dtype != array.dtype:
                got = "missing" if other is None else f"{dtype_name(other)}{list(other.shape)}"
                return DtypeShapeMismatch(name, f"{dtype_name(array)}{list(array.shape)}", got, "nondeterministic")
        bits = np.stack([_bits(other) for other in others if other is not None])
        changed = (bits != bits[0]).any(0)
        if not changed.any():
            continue
        within = any(
            len(np.unique(bits[[n for n, one in enumerate(loads) if one == load]], axis=0)) > 1 for load in loads
        )
        return _described(name, bits, changed, array.shape, "in_process" if within else "across_loads")
    return None


def _bits(array: Array) -> Array:
    """An array's elements as flat unsigned numbers."""
    plain = np.ascontiguousarray(array).reshape(-1)
    return plain.view(f"u{plain.itemsize}")


def _described(name: str, bits: Array, changed: Array, shape: tuple[int, ...], reason: str) -> Nondeterministic:
    width, places = shape[-1] if shape else 1, np.flatnonzero(changed)
    index = tuple(int(i) for i in np.unravel_index(places[0], shape)) if shape else ()
    digits = 2 * bits.dtype.itemsize
    answers = tuple(f"0x{value:0{digits}X}" for value in dict.fromkeys(bits[:, places[0]].tolist()))
    tiles = dict.fromkeys((int(place) // width, int(place) % width // _COLUMNS) for place in places)
    return Nondeterministic(
        name, index, answers[:_MOST_ANSWERS], len(places), changed.size, tuple(tiles)[:_MOST_TILES], reason
    )
