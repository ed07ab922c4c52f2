"""Verdicts on outputs that were made elsewhere, from a kit and a directory of raw files. Needs numpy only.

Source: docs/kits.md; docs/contract.md section 3.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.judging import compare
from conformance.kits.kit import Array, Kit, Output, read_tensor
from conformance.results.mismatch import ArrayMismatch, DtypeShapeMismatch, Mismatch, as_data, signature
from conformance.results.verdict import FAIL, PASS, Verdict
from reference.arithmetic.accept import HOST, FloatModes, accept_products
from reference.arithmetic.dot_bound import within_bound

_PROFILE = ("execution_modes", "precise", "io_storage", "device", "driver")
_MODES = ("RoundingModeRTE", "RoundingModeRTZ", "DenormPreserve", "DenormFlushToZero", "SignedZeroInfNanPreserve")


def read_profile(path: Path) -> dict[str, str]:
    """Return a device profile, TOML or JSON, as the facts that ``compare.float_modes`` reads.

    Raises:
        ValueError: not such a file; names the field and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: not a device profile ({error})") from error
    if not isinstance(data, dict) or (unknown := sorted(set(data) - set(_PROFILE))):
        named = unknown[0] if isinstance(data, dict) else "no table"
        raise ValueError(f"{path}: unknown field {named!r}; a profile has {', '.join(_PROFILE)}")
    modes = data.get("execution_modes", [])
    if not isinstance(modes, list) or not all(isinstance(m, str) for m in modes):
        raise ValueError(f'{path}: execution_modes must be a list such as ["RoundingModeRTE 32"]')
    for mode in modes:
        name, _, width = mode.partition(" ")
        if name not in _MODES or width not in {"16", "32"}:
            raise ValueError(f"{path}: execution mode {mode!r} is not one of {', '.join(_MODES)}, each with 16 or 32")
    if data.get("io_storage", "buffer") not in {"buffer", "texture3d"}:
        raise ValueError(f"{path}: io_storage {data['io_storage']!r} is not buffer or texture3d")
    if not isinstance(data.get("precise", False), bool):
        raise ValueError(f"{path}: precise {data['precise']!r} is not true or false")
    facts = {name: str(data[name]) for name in ("device", "driver", "io_storage") if name in data}
    facts |= {"execution_modes": ",".join(modes), "precise": "1" if data.get("precise") else "0"}
    try:
        compare.float_modes(facts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return facts


def judge_kit(kit: Kit, outputs: Path, subject: str, facts: Mapping[str, str] | None = None) -> Verdict:
    """Return the verdict on the files in ``outputs``; without ``facts`` only the strict host set is right.

    Raises:
        ValueError: the kit itself is malformed; names the file and what is wrong with it.
    """
    modes = HOST if facts is None else compare.float_modes(facts)
    mismatch: Mismatch | None = None
    strict, digest = True, hashlib.sha256()
    for output in kit.outputs:
        given = _parts(kit, output)
        try:
            got = read_tensor(outputs, output.tensor)
        except ValueError as error:
            kind = "missing" if "no such file" in str(error) else "size"
            want = f"{output.tensor.dtype}{list(output.tensor.shape)}, {output.tensor.size} bytes"
            mismatch = mismatch or DtypeShapeMismatch(output.name, want, str(error), kind)
            continue
        digest.update(got.tobytes())
        mismatch = mismatch or _wrong(output, given, got, modes)
        strict = strict and _wrong(output, given, got, HOST) is None
    found = signature("RUN", mismatch) if mismatch else ""
    data, reason = (as_data(mismatch), mismatch.line()) if mismatch else (None, "")
    outcome = FAIL if mismatch else PASS
    strictly = strict and mismatch is None
    named = dict(facts or {"arithmetic": "host"})
    return Verdict(kit.case, "RUN", subject, outcome, found, reason, data, strictly, digest.hexdigest(), 0.0, "", named)


def _parts(kit: Kit, output: Output) -> dict[str, Array]:
    """What is right, read and checked: a product is its values times its scales, a bound bounds."""
    given = {name: read_tensor(kit.folder, tensor) for name, tensor in output.parts.items()}
    if output.judged_by == "product":
        exact = given["values"] * _per_column(given).astype(np.float64)
        if not np.array_equal(exact, given["product"], equal_nan=True):
            raise ValueError(f"{kit.folder / output.parts['product'].file}: is not values times scales")
    if output.judged_by == "dot":
        _check_bounds(kit, output, given)
    return given


def _check_bounds(kit: Kit, output: Output, given: Mapping[str, Array]) -> None:
    """Refuse what would accept everything, such as an infinite bound, or nothing, such as NaN.

    Raises:
        ValueError: names the file, the field, the element and what is allowed.
    """
    exact, bound, wider = given["exact"], given["bound"], given["bound_any"]
    for part, right, allowed in (
        ("exact", np.isfinite(exact), "is finite"),
        ("bound", np.isfinite(bound) & (bound >= 0), "is finite and at least 0"),
        ("bound_any", np.isfinite(wider) & (wider >= 0), "is finite and at least 0"),
        ("bound_any", wider >= bound, "is at least bound, which holds where rounding is to nearest"),
    ):
        if not right.all():
            index = tuple(int(i) for i in np.unravel_index(int(np.argmin(right)), right.shape))
            where = f"{kit.folder / output.parts[part].file}: {output.name}'s {part}{list(index)}"
            raise ValueError(f"{where} is {given[part][index]}; it {allowed}")


def _per_column(given: Mapping[str, Array]) -> Array:
    return np.repeat(given["scales"], given["values"].shape[-1] // given["scales"].shape[-1], axis=-1)


def _wrong(output: Output, given: Mapping[str, Array], got: Array, modes: FloatModes) -> Mismatch | None:
    if output.judged_by == "product":
        with np.errstate(invalid="ignore"):
            allowed = accept_products(given["values"], _per_column(given), output.tensor.dtype, modes)
        return compare.accepted(output.name, got, allowed)
    if output.judged_by == "bits":
        return compare.same_bits(output.name, got, given["expected"])
    if output.judged_by == "dot":
        return _outside(output.name, got, given["exact"], given["bound" if modes.rte32 else "bound_any"])
    return None


def _outside(name: str, got: Array, exact: Array, bound: Array) -> ArrayMismatch | None:
    right = within_bound(got, exact, bound)
    if bool(right.all()):
        return None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmin(right)), right.shape))
    allowed: tuple[Any, ...] = (f"{exact[index]!r} within {bound[index]!r}",)
    return ArrayMismatch(name, index, repr(got[index]), allowed, int((~right).sum()), right.size, "dot_product")
