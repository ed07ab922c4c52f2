"""Subject "executorch-cpu": quantized_decomposed::embedding_4bit of the wheel's CPU runtime, through a .pte."""

import functools
from typing import Any

import executorch.kernels.quantized  # noqa: F401 - registers the operator with torch and with the runtime
import numpy as np
import torch
from executorch.exir import EdgeCompileConfig, to_edge
from executorch.runtime import Runtime

from conformance.subjects.peers.peer import Array, Dialect, Peer
from reference.table.layouts import pack_flat


class SubjectUnderTest(Peer):
    """The flat layout; rows of the scales' dtype, or float32 rows of float16 scales."""

    dialect = Dialect("executorch", (("float32", "float32"), ("float16", "float32"), ("float16", "float16")))

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:  # noqa: ARG002 - follows from the shapes
        """See ``Peer.lookup``; a file whose table is an input, one for all tables of a shape."""
        if not indices.size:
            return np.empty((0, values.shape[1]), output_dtype)
        inputs = tuple(torch.from_numpy(a) for a in (pack_flat(values), scales, indices.astype(np.int64)))
        loaded = _load(values.shape, scales.shape, scales.dtype.name, indices.size, output_dtype)
        try:
            (out,) = loaded[-1].execute(inputs)
        except RuntimeError as error:
            if ((indices < 0) | (indices >= values.shape[0])).any():
                raise IndexError(str(error)) from error
            raise
        return np.array(out.numpy())


class _Lookup(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, weight: Any, scales: Any, indices: Any) -> Any:
        """Look the indices up."""
        lookup = torch.ops.quantized_decomposed.embedding_4bit.dtype
        return lookup(weight, scales, None, -8, 7, indices, dtype=self._dtype)


@functools.lru_cache(maxsize=8)
def _load(
    table: tuple[int, int], scales: tuple[int, int], dtype: str, count: int, output_dtype: str
) -> tuple[Any, ...]:
    """The file's bytes, its program and its method, of which each needs the one before."""
    rows, columns = table
    weight = torch.zeros(rows, columns // 2, dtype=torch.uint8)
    example = (weight, torch.zeros(scales, dtype=getattr(torch, dtype)), torch.zeros(count, dtype=torch.int64))
    module = _Lookup(getattr(torch, output_dtype))
    edge = to_edge(torch.export.export(module, example), compile_config=EdgeCompileConfig(_check_ir_validity=False))
    buffer = edge.to_executorch().buffer
    program = Runtime.get().load_program(buffer)
    return buffer, program, program.load_method("forward")
