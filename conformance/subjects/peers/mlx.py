"""Subject "mlx": the gathered rows of an affine 4-bit table through MLX's dequantize, on its CPU device."""

import mlx.core as mx
import numpy as np

from conformance.subjects.peers.peer import AFFINE, Array, Dialect, Peer

_PER_WORD = 8


class SubjectUnderTest(Peer):
    """code * scale + bias with bias = -8 * scale; rows and scales of one dtype."""

    dialect = Dialect(
        "mlx",
        (("float32", "float32"), ("float16", "float16")),
        facts=AFFINE,
        groups=(32, 64, 128),
        multiple=32,
        outside="an index outside the table is undefined by MLX's documentation",
        group=32,
    )

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:  # noqa: ARG002 - that of the scales
        """See ``Peer.lookup``; as mlx.nn.QuantizedEmbedding does it."""
        codes = (values + np.int8(8)).astype(np.uint32).reshape(values.shape[0], -1, _PER_WORD)
        words = (codes << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=2, dtype=np.uint32)
        with np.errstate(all="ignore"):
            biases = scales * scales.dtype.type(-8)
        where = mx.array(indices)
        table = (mx.array(array)[where] for array in (words, scales, biases))
        return np.array(mx.dequantize(*table, group_size=group_size, bits=4, stream=mx.cpu))
