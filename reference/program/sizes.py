"""A program with symbolic sizes at other sizes than the traced one.

>>> from reference.program.spec import Read, TensorSpec, Values
>>> indices = TensorSpec("i", "int64", (5, 2), Values("zeros"), "input", dynamic=(0,), bound=16)
>>> spec = ProgramSpec((Read("out", "i"),), (indices,))
>>> {size: other.tensors[0].shape for size, other in other_sizes(spec).items()}
{'0': (0, 2), '1': (1, 2), '3': (3, 2), '16': (16, 2)}

Source: docs/contract.md 5.3, 6.3.
"""

import dataclasses

from reference.program.spec import ProgramSpec, TensorSpec

#: Sizes to ask beside the bound: none, one, and another one than the traced.
_SIZES = (0, 1, 3)


def other_sizes(spec: ProgramSpec, *, lowered: bool = False) -> dict[str, ProgramSpec]:
    """Return the program at sizes 0, 1, 3 and its bound, by size; none where it has no symbolic sizes.

    Args:
        spec: a well-formed program.
        lowered: a file of ExecuTorch is asked, which serves up to the bound, or up to the traced size without one;
            where the graph is, a size without a bound is doubled too.
    """
    dynamic = [t for t in spec.tensors if t.dynamic]
    if not dynamic or any(t.shape[:1] == (0,) for t in spec.tensors if not t.dynamic):
        return {}  # a table without rows takes no index: there is one size only
    traced = max(t.shape[d] for t in dynamic for d in t.dynamic)
    if lowered:
        bound = min(t.bound or min(t.shape[d] for d in t.dynamic) for t in dynamic)
    else:
        bound = min((t.bound for t in dynamic if t.bound), default=2 * traced + 1)
    sizes = dict.fromkeys((*(size for size in _SIZES if size <= bound), bound))
    return {str(size): at_size(spec, size) for size in sizes if at_size(spec, size) != spec}


def at_size(spec: ProgramSpec, size: int) -> ProgramSpec:
    """Return the program with its first symbolic dimensions at ``size``, and the others one less where they can be."""
    return dataclasses.replace(spec, tensors=tuple(_resized(tensor, size) for tensor in spec.tensors))


def _resized(tensor: TensorSpec, size: int) -> TensorSpec:
    first, others = min(tensor.dynamic, default=-1), max(size - 1, min(size, 1))
    sizes = ((size if d == first else others) if d in tensor.dynamic else n for d, n in enumerate(tensor.shape))
    return dataclasses.replace(tensor, shape=tuple(sizes))
