"""What an Apply step computes where numbers alone fix it: a product with a number, a sum.

>>> apply_exactly(Apply("y", "x", "mul", 8.0), np.float16([0.1, -3.0]), None).tolist()
[0.7998046875, -24.0]
>>> apply_exactly(Apply("y", "i", "add", other="o"), np.int64([1, 2]), np.int64([10])).tolist()
[11, 12]

Source: docs/contract.md 5.7: one operation of the host, in the operand's type, rounded to nearest even.
"""

import numpy as np

from reference import Array
from reference.arithmetic.bfloat16 import FLOAT_DTYPES, cast_float, dtype_name, to_float
from reference.program.spec import Apply

#: Functions whose result depends on the order of its sums.
INEXACT = ("norm", "linear")


def apply_exactly(step: Apply, of: Array, other: Array | None) -> Array:
    """The step's value: of the dtype and shape of ``of``.

    Args:
        step: of a function that is not INEXACT.
        of: any shape; a float dtype or a whole number's.
        other: of an "add": the same dtype, a shape that broadcasts to that of ``of``.

    Raises:
        ValueError: the shapes do not fit, or a whole number is multiplied.
    """
    dtype = dtype_name(of)
    if dtype not in FLOAT_DTYPES:
        if step.function != "add" or other is None:
            raise ValueError(f"step {step.name!r}: {step.function} of {dtype}; whole numbers are only added")
        return np.asarray(of + other)
    operand = cast_float(np.array([step.number]), dtype) if other is None else other
    one, two = to_float(of), to_float(operand)
    if dtype == "float16":  # float32 holds products of two halves, and enough bits of sums for one rounding
        one, two = one.astype(np.float32), two.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return cast_float(one * two if step.function == "mul" else one + two, dtype)
