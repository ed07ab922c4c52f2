"""What programs share: numpy <-> torch, the Python names of a spec's tensors and steps, operators that compute nothing.

bfloat16 crosses as bits: torch has the type, numpy has ``reference.arithmetic.bfloat16.BFLOAT16``.
"""

import keyword
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reference.arithmetic.bfloat16 import BFLOAT16
from reference.program.spec import PASSED, ProgramSpec, TensorSpec, table_parts

Array = npt.NDArray[Any]
#: Operators that hand their first operand on, its values kept or converted; of a graph or of a file, without overload.
PASSING = {
    "aten.clone",
    "aten._to_copy",
    "aten.to",
    "aten.alias_copy",
    "aten.detach_copy",
    "aten.lift_fresh_copy",
    "aten.view_copy",
    "aten.view",
    "aten._unsafe_view",
    "aten.reshape",
    "aten.squeeze_copy",
    "aten.unsqueeze_copy",
    "aten.expand_copy",
    "dim_order_ops._clone_dim_order",
    "dim_order_ops._to_dim_order_copy",
}


def torch_dtype(name: str) -> Any:
    """Return torch's dtype of that name; ValueError where it has none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r}")
    return dtype


def dtype_name(dtype: Any) -> str:
    """Return a torch dtype's name as specs spell it: the inverse of ``torch_dtype``."""
    return str(dtype).removeprefix("torch.")


def to_torch(array: Array) -> Any:
    """Return a new tensor of the array's bits; BFLOAT16 becomes torch.bfloat16."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array["bits"].astype("<i2")).view(torch.bfloat16)
    if not array.size:  # from_numpy gives such a tensor strides at which ExecuTorch's runtime aborts
        return torch.empty(array.shape, dtype=torch_dtype(array.dtype.name))
    return torch.from_numpy(np.array(array, order="C", copy=True))


def to_numpy(tensor: Any) -> Array:
    """Return a new array of the tensor's bits; torch.bfloat16 becomes BFLOAT16."""
    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:
        return np.asarray(plain.view(torch.int16).numpy().astype("<u2").view(BFLOAT16))
    return np.array(plain.numpy(), copy=True)


def all_tensors(spec: ProgramSpec) -> tuple[TensorSpec, ...]:
    """The spec's tensors, then the three parts of each quantized table."""
    return spec.tensors + tuple(part for table in spec.tables for part in table_parts(table))


def user_inputs(spec: ProgramSpec) -> tuple[TensorSpec, ...]:
    """The tensors that the caller passes, in order; a computed one is computed from what is passed."""
    return tuple(t for t in spec.tensors if t.source in PASSED)


def identifiers(spec: ProgramSpec) -> dict[str, str]:
    """A Python name for every tensor, table and step, by its name in the spec; all different.

    >>> from reference.program.spec import ProgramSpec, Read, TensorSpec, Values
    >>> identifiers(ProgramSpec((Read("out", "a.b"),), (TensorSpec("a.b", "int8", (1,), Values("zeros")),)))
    {'a.b': 'a_b', 'out': 'out'}
    """
    taken = set(dir(torch.nn.Module())) | set(keyword.kwlist) | {"self", "torch"}
    names: dict[str, str] = {}
    for name in [*(t.name for t in all_tensors(spec)), *(t.name for t in spec.tables), *(s.name for s in spec.steps)]:
        identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
        identifier = identifier if identifier[:1].isalpha() else f"t{identifier}"
        while identifier in taken:
            identifier += "_"
        taken.add(identifier)
        names[name] = identifier
    return names
