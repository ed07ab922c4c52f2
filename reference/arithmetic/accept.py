"""Accept sets: every result that the arithmetic allows for one value times one scale, and no other.

The exact product (float64 holds it) is rounded to float32, and from there to float16 where the output is; what a
shader's execution modes leave open at each step adds candidates. There is no tolerance.

>>> product = np.int8([7]), np.float32([0.1])  # 0.70000001043... lies between two float32
>>> [f"{bits:08X}" for bits in accept_products(*product, "float32", HOST).allowed(0)]
['3F333333']
>>> [f"{bits:08X}" for bits in accept_products(*product, "float32", NOTHING_DECLARED).allowed(0)]
['3F333333', '3F333334']

Source: docs/contract.md section 3.
"""

from dataclasses import dataclass

import numpy as np

from reference import Array
from reference.arithmetic.rounding import (
    FLOAT16,
    FLOAT32,
    FORMATS,
    Format,
    bits_of,
    is_nan,
    is_subnormal,
    is_zero,
    narrow,
)

CODES = np.arange(-8, 8, dtype=np.int8)  # value q of every code, in code order
BLOCK = 1 << 15  # elements at a time: the temporaries stay in cache


@dataclass(frozen=True)
class FloatModes:
    """What the SPIR-V entry point declares, and two facts about the shader (contract 3.3, 3.4).

    ``precise``: the product is decorated so that it may not be rounded once, straight to float16. ``image_output16``:
    a float16 output is stored to a 16-bit float image, which rounds to either neighbour and, being a store, does not
    flush (no effect on float32 output).
    DenormFlushToZero narrows nothing: the contract lets a subnormal become zero wherever it need not be preserved.
    """

    rte16: bool = False
    rte32: bool = False
    rtz16: bool = False
    rtz32: bool = False
    denorm_preserve16: bool = False
    denorm_preserve32: bool = False
    denorm_flush16: bool = False
    denorm_flush32: bool = False
    signed_zero_inf_nan_preserve16: bool = False
    signed_zero_inf_nan_preserve32: bool = False
    precise: bool = False
    image_output16: bool = False

    def __post_init__(self) -> None:
        """SPIR-V forbids two rounding modes, or both denormal modes, for one width."""
        for width in (16, 32):
            for one, other in (("rte", "rtz"), ("denorm_preserve", "denorm_flush")):
                if {f"{one}{width}", f"{other}{width}"} <= self.names:
                    raise ValueError(f"modes: two contradictory modes are declared for {width} bit")

    @property
    def names(self) -> frozenset[str]:
        """The names of the fields that are true."""
        return frozenset(name for name, on in vars(self).items() if on)

    def preserves_denormals(self, form: Format) -> bool:
        """A subnormal of this format may not become zero in arithmetic or conversion."""
        return self.denorm_preserve16 if form is FLOAT16 else self.denorm_preserve32

    def preserves_specials(self, form: Format) -> bool:
        """Signed zeros, infinities and NaNs of this format must be respected."""
        return self.signed_zero_inf_nan_preserve16 if form is FLOAT16 else self.signed_zero_inf_nan_preserve32


#: IEEE 754 as a host computes: nearest even, nothing flushed, everything preserved. Also the strict set.
HOST = FloatModes(
    rte16=True,
    rte32=True,
    denorm_preserve16=True,
    denorm_preserve32=True,
    signed_zero_inf_nan_preserve16=True,
    signed_zero_inf_nan_preserve32=True,
    precise=True,
)
NOTHING_DECLARED = FloatModes()


@dataclass(frozen=True)
class AcceptSet:
    """Allowed results for an array of elements.

    ``candidates``: unsigned bit patterns [K, ...], padded by repeating. ``any_nan`` bool [...]: the result is NaN, and
    any NaN pattern matches. ``unconstrained`` bool [...]: contract 3.5 holds nobody to this element; report it.
    """

    candidates: Array
    any_nan: Array
    unconstrained: Array
    form: Format

    def contains(self, got: Array) -> Array:
        """Where ``got`` [...] (floats of the output dtype, or their bit patterns) is allowed: bool [...].

        Raises:
            ValueError: ``got`` is not of the output's width.
        """
        bits = bits_of(got)
        if bits.dtype != self.form.unsigned:
            raise ValueError(f"got: {got.dtype} does not hold {self.form.name}")
        allowed = self.unconstrained | (self.any_nan & is_nan(bits, self.form))
        for candidate in self.candidates:
            allowed |= candidate == bits
        return np.asarray(allowed)

    def allowed(self, index: int | tuple[int, ...]) -> tuple[int, ...]:
        """The distinct bit patterns allowed at one element, ascending; NaN is shown as the quiet NaN."""
        return tuple(sorted({int(candidate[index]) for candidate in self.candidates}))


def accept_products(values: Array, scales: Array, output_dtype: str, modes: FloatModes) -> AcceptSet:
    """What ``values * scales`` may be on a subject that keeps to ``modes``.

    Args:
        values: int8 [...], in [-8, 7].
        scales: float16 or float32, of a shape that broadcasts with values.
        output_dtype: "float32" or "float16".
        modes: HOST, or what the shader declares.

    Returns:
        The accept set of the broadcast shape (rank 1 where both are scalars).

    Raises:
        ValueError: scales or output_dtype of another type.
    """
    if output_dtype not in {"float16", "float32"} or scales.dtype not in (np.float16, np.float32):
        raise ValueError(f"scales {scales.dtype} and output_dtype {output_dtype!r} are not both float16 or float32")
    values, scales = np.broadcast_arrays(np.atleast_1d(values), np.atleast_1d(scales))
    output_form = FORMATS[output_dtype]
    flat_values, flat_scales = values.reshape(-1), scales.reshape(-1)
    starts = range(0, max(1, values.size), BLOCK)
    blocks = [
        _accept_block(flat_values[start : start + BLOCK], flat_scales[start : start + BLOCK], output_form, modes)
        for start in starts
    ]
    most = max(len(candidates) for candidates, _ in blocks)
    padded = [[block[min(row, len(block) - 1)] for row in range(most)] for block, _ in blocks]
    candidates = np.concatenate([np.stack(rows) for rows in padded], axis=1)
    touched = {FORMATS[scales.dtype.name], FLOAT32, output_form}
    unconstrained = not all(modes.preserves_specials(form) for form in touched)
    return AcceptSet(
        candidates=candidates.reshape(most, *values.shape),
        any_nan=np.concatenate([nan for _, nan in blocks]).reshape(values.shape),
        unconstrained=np.asarray(~np.isfinite(scales) & unconstrained),
        form=output_form,
    )


def _accept_block(values: Array, scales: Array, output_form: Format, modes: FloatModes) -> tuple[list[Array], Array]:
    """Candidates, each [n], and where the product is NaN, for values and scales [n]."""
    scale_form = FORMATS[scales.dtype.name]
    with np.errstate(invalid="ignore"):  # infinity times zero is NaN
        product = values.astype(np.float64) * scales.astype(np.float64)

    either_zero = _may_be_zero(bits_of(np.ascontiguousarray(scales)), scale_form, modes)
    steps = _round(product, FLOAT32, _rule(modes, FLOAT32))
    for bits in steps:
        either_zero |= _may_be_zero(bits, FLOAT32, modes)
    if output_form is FLOAT16:
        steps = _to_float16(product, steps, modes)
        for bits in steps:
            either_zero |= _may_be_zero(bits, FLOAT16, modes, flush=not modes.image_output16)
    return _with_zeros(steps, either_zero, output_form), np.isnan(product)


def _may_be_zero(bits: Array, form: Format, modes: FloatModes, *, flush: bool = True) -> Array:
    """Where an operand or a result may read as a zero of either sign: a subnormal, or a zero whose sign is not kept.

    Whatever follows, a product with a finite value or a conversion, then yields zero too. ``flush`` is off for what
    an image store makes: stores never flush (contract 3.4).
    """
    loose = np.zeros(bits.shape, bool)
    if flush and not modes.preserves_denormals(form):
        loose |= is_subnormal(bits, form)
    if not modes.preserves_specials(form):
        loose |= is_zero(bits, form)
    return loose


def _rule(modes: FloatModes, form: Format) -> str:
    """How a result of this format rounds: nearest, zero or either."""
    nearest, zero = (modes.rte16, modes.rtz16) if form is FLOAT16 else (modes.rte32, modes.rtz32)
    return "nearest" if nearest else "zero" if zero else "either"


def _round(values: Array, form: Format, rule: str) -> list[Array]:
    """The bit patterns that rounding may give."""
    down, up, nearest = narrow(values, form)
    return {"nearest": [nearest], "zero": [down], "either": [down, up]}[rule]


def _to_float16(product: Array, steps: list[Array], modes: FloatModes) -> list[Array]:
    """From float32 candidates to float16: two of them at most, the lesser and the greater in magnitude.

    float32 neighbours lie between the float16 neighbours of the product, or on them, so no third can arise.
    """
    rule = "either" if modes.image_output16 else _rule(modes, FLOAT16)
    candidates = [bits for step in steps for bits in _round(step.view(np.float32), FLOAT16, rule)]
    if not modes.precise:
        candidates += _round(product, FLOAT16, rule)
    if len(candidates) == 1:
        return candidates
    # All have the product's sign, so the patterns order like magnitudes; a NaN is the same in all.
    return [np.minimum.reduce(candidates), np.maximum.reduce(candidates)]


def _with_zeros(steps: list[Array], either_zero: Array, form: Format) -> list[Array]:
    """The rounded results; where a zero of either sign is allowed too, both zeros."""
    if not either_zero.any():
        return steps
    plus, minus = form.unsigned.type(0), form.unsigned.type(form.sign)
    return [*steps, np.where(either_zero, plus, steps[0]), np.where(either_zero, minus, steps[0])]
