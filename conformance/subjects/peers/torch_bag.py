"""Subject "torch-bag": torch's quantized::embedding_bag_4bit_rowwise_offsets, bags of one index."""

import numpy as np
import torch

from conformance.subjects.peers.peer import AFFINE, Array, Dialect, Peer, nibbles


class SubjectUnderTest(Peer):
    """One float16 scale and one float16 bias a row (bias = -8 * scale); float32 rows."""

    dialect = Dialect("torch", (("float16", "float32"),), facts=AFFINE, a_row=True, highest=65504 / 8)

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:  # noqa: ARG002 - the dialect has one of each
        """See ``Peer.lookup``."""
        ends = np.concatenate([scales, scales * np.float16(-8)], axis=1).view(np.uint8)
        table = torch.from_numpy(np.concatenate([nibbles(values, offset=8), ends], axis=1))
        where, offsets = torch.from_numpy(indices), torch.arange(indices.size, dtype=torch.from_numpy(indices).dtype)
        bag = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets
        try:
            out: Array = bag(table, where, offsets, False, 0, False, None, None, False).numpy()  # noqa: FBT003 - torch's own signature
        except RuntimeError as error:
            if ((indices < 0) | (indices >= values.shape[0])).any():
                raise IndexError(str(error)) from error
            raise
        return out
