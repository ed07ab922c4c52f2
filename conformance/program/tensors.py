"""What every builder route shares: numpy <-> torch, and the Python names of a spec's tensors and steps.

bfloat16 crosses as bits: torch has the type, numpy has ``reference.arithmetic.bfloat16.BFLOAT16``.
"""

import keyword
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reference.arithmetic.bfloat16 import BFLOAT16
from reference.program.spec import ProgramSpec, TensorSpec, table_parts

Array = npt.NDArray[Any]


def torch_dtype(name: str) -> Any:
    """Return torch's dtype of that name."""
    return getattr(torch, name)


def dtype_name(dtype: Any) -> str:
    """Return a torch dtype's name as specs spell it: the inverse of ``torch_dtype``."""
    return str(dtype).removeprefix("torch.")


def to_torch(array: Array) -> Any:
    """Return a new tensor of the array's bits; BFLOAT16 becomes torch.bfloat16."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array["bits"].astype("<i2")).view(torch.bfloat16)
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
    return tuple(t for t in spec.tensors if t.source in {"input", "computed"})


def identifiers(spec: ProgramSpec) -> dict[str, str]:
    """A Python name for every tensor, table and step, by its name in the spec; all different.

    >>> from reference.program.spec import ProgramSpec, Read, TensorSpec, Values
    >>> identifiers(ProgramSpec((Read("out", "a.b"),), (TensorSpec("a.b", "int8", (1,), Values("zeros")),)))
    {'a.b': 'a_b', 'out': 'out'}
    """
    taken = set(dir(torch.nn.Module())) | set(keyword.kwlist) | {"self", "torch"}
    names: dict[str, str] = {}
    for name in [*(t.name for t in all_tensors(spec)), *(t.name for t in spec.tables), *(s.name for s in spec.steps)]:
        wanted = re.sub(r"\W", "_", name)
        wanted = wanted if wanted[:1].isalpha() else f"t{wanted}"
        while wanted in taken:
            wanted += "_"
        taken.add(wanted)
        names[name] = wanted
    return names
