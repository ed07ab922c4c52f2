"""Judging every code times many scales at once: the fast path behind the proofs over whole domains.

Almost every result equals the host's, which hardware multiplication gives at once; only the others
are put to their accept sets.

>>> scales = np.float32([0.5, 0.1])
>>> got = host_outer(scales, "float32")
>>> got[15, 1] ^= 1  # 7 * 0.1, one unit in the last place off
>>> judged = judge_outer(scales, "float32", HOST, got)
>>> judged.refused.tolist(), judged.not_strict.tolist()
([[15, 1]], [[15, 1]])

Source: docs/contract.md section 3.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reference.arithmetic.accept import CODES, HOST, FloatModes, accept_products

Array = npt.NDArray[Any]

COLUMNS = 1 << 14  # scales at a time: 16 rows of them stay in cache
SIGN16 = np.uint16(0x8000)


@dataclass(frozen=True)
class OuterJudgement:
    """Positions as int64 [m, 2]: (code, scale), ascending.

    ``refused``: outside the accept set. ``not_strict``: not what a host computes (a superset). ``lawless``: how many
    elements contract 3.5 holds nobody to.
    """

    refused: Array
    not_strict: Array
    lawless: int


def judge_outer(scales: Array, output_dtype: str, modes: FloatModes, got: Array) -> OuterJudgement:
    """Judge the results of every code (value code - 8) times each scale.

    Args:
        scales: float16 or float32 [n], any bit patterns.
        output_dtype: "float32" or "float16".
        modes: what the subject keeps to.
        got: bit patterns, uint32 or uint16 [16, n].

    Returns:
        The positions of what is wrong.

    Raises:
        ValueError: ``got`` has another shape or type.
    """
    unsigned = np.dtype(np.uint16 if output_dtype == "float16" else np.uint32)
    if got.shape != (CODES.size, scales.size) or got.dtype != unsigned:
        raise ValueError(f"got: {got.dtype} {got.shape} is not {unsigned} {(CODES.size, scales.size)}")
    truncates = modes.rtz16 or modes.rtz32  # then the host's result may be outside the set
    refused, not_strict = [np.empty((0, 2), np.int64)], [np.empty((0, 2), np.int64)]
    for start in range(0, scales.size, COLUMNS):
        part = slice(start, start + COLUMNS)
        differs = host_outer(scales[part], output_dtype) != got[:, part]
        if not truncates and not differs.any():
            continue
        codes, columns = np.nonzero(np.ones_like(differs) if truncates else differs)
        places = np.stack([codes, columns + start], axis=1)
        pairs = CODES[codes], scales[part][columns]
        bits = got[:, part][codes, columns]
        not_strict.append(places[~accept_products(*pairs, output_dtype, HOST).contains(bits)])
        refused.append(places[~accept_products(*pairs, output_dtype, modes).contains(bits)])
    special = accept_products(CODES[-1:], np.array([np.inf], scales.dtype), output_dtype, modes).anything[0]
    lawless = CODES.size * int(np.count_nonzero(~np.isfinite(scales))) if special else 0
    return OuterJudgement(_ascending(refused), _ascending(not_strict), lawless)


def host_outer(scales: Array, output_dtype: str) -> Array:
    """What a host computes for every code times each scale [n]: bit patterns [16, n], any NaN for a NaN.

    >>> [f"{bits:04X}" for bits in host_outer(np.float32([1 / 3]), "float16")[:, 0]][9:12]
    ['3555', '3955', '3C00']
    """
    with np.errstate(over="ignore", invalid="ignore"):
        products = CODES.astype(np.float32)[:, None] * scales.astype(np.float32)[None, :]
        if output_dtype == "float32":
            return np.asarray(products.view(np.uint32))
        results = np.empty(products.shape, np.uint16)
        results[8:] = _nearest_float16(products[8:])
        results[0] = _nearest_float16(products[0])
        results[1:8] = results[15:8:-1] ^ SIGN16  # -7..-1 mirror 7..1
    return results


def _ascending(places: list[Array]) -> Array:
    """Join the blocks' positions in row-major order."""
    joined = np.concatenate(places)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]


def _nearest_float16(values: Array) -> Array:
    """float32 to float16 bits, nearest even; several times as fast as numpy's cast where results overflow."""
    bits = values.view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    tie_to_even = np.uint32(0x0FFF) + ((size >> np.uint32(13)) & np.uint32(1))
    normal = np.minimum(((size + tie_to_even) >> np.uint32(13)) - np.uint32(112 << 10), np.uint32(0x7C00))
    # One half has its unit in the last place at 2**-24, the smallest float16: adding it rounds there.
    subnormal = (np.abs(values) + np.float32(0.5)).view(np.uint32) - np.float32(0.5).view(np.uint32)
    result = np.where(size < np.uint32(0x38800000), subnormal, normal)
    result[size > np.uint32(0x7F800000)] = 0x7E00
    return np.asarray(result | ((bits >> np.uint32(16)) & np.uint32(0x8000)), np.uint16)
