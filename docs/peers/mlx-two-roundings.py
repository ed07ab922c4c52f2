"""MLX 0.32.4: a 4-bit table with bias = -8 * scale is not (code - 8) * scale rounded once."""

import mlx.core as mx
import numpy as np

codes = np.arange(32, dtype=np.uint32) % 16
words = (codes.reshape(1, 4, 8) << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=2, dtype=np.uint32)
scale = np.float32([[0.1]])
got = np.array(mx.dequantize(mx.array(words), mx.array(scale), mx.array(scale * -8), group_size=32, bits=4))
right = (codes - np.float32(8)) * scale
print(f"{(got != right).sum()} of 32 columns differ; code 13: {got[0, 13]!r} where 5 * scale is {right[0, 13]!r}")
try:
    mx.eval(mx.dequantize(mx.array(words)[:0], mx.array(scale)[:0], mx.array(scale)[:0], group_size=32, bits=4))
except ValueError as error:
    print(f"no rows: {error}")
