"""Subject "ggml": GET_ROWS of a Q4_0 table on ggml's CPU backend, through ggml-python."""

import ctypes
from typing import Any

import ggml
import numpy as np

from conformance.subjects.peers.peer import Array, Dialect, Peer
from reference.table.q4_0 import pack_q4_0

_OVERHEAD = 1 << 20


class SubjectUnderTest(Peer):
    """Blocks of 32 with a float16 scale; float32 rows."""

    dialect = Dialect(
        "ggml-python",
        (("float16", "float32"),),
        groups=(32,),
        multiple=32,
        outside="ggml asserts that an index is in the table, which ends the process",
        group=32,
    )

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:  # noqa: ARG002 - the dialect has one of each
        """See ``Peer.lookup``; a graph of one node."""
        (rows, columns), blocks = values.shape, pack_q4_0(values, scales)
        size = blocks.nbytes + indices.size * (4 + 4 * columns) + _OVERHEAD
        context = ggml.ggml_init(ggml.ggml_init_params(mem_size=size, mem_buffer=None))
        try:
            table = ggml.ggml_new_tensor_2d(context, ggml.GGML_TYPE_Q4_0, columns, rows)
            where = ggml.ggml_new_tensor_1d(context, ggml.GGML_TYPE_I32, indices.size)
            rows_of = ggml.ggml_get_rows(context, table, where)
            graph = ggml.ggml_new_graph(context)
            ggml.ggml_build_forward_expand(graph, rows_of)
            _copy(ggml.ggml_get_data(table), blocks)
            _copy(ggml.ggml_get_data(where), indices.astype(np.int32))
            if indices.size and ggml.ggml_graph_compute_with_ctx(context, graph, 1) != 0:
                raise RuntimeError("ggml_graph_compute failed")
            out = np.empty((indices.size, columns), np.float32)
            ctypes.memmove(out.ctypes.data, ggml.ggml_get_data(rows_of), out.nbytes)
            return out
        finally:
            ggml.ggml_free(context)


def _copy(target: Any, data: Array) -> None:
    ctypes.memmove(target, data.ctypes.data, data.nbytes)
