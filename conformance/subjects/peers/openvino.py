"""Subject "openvino": an i4 table decompressed (Convert, Multiply, Reshape) before Gather, on OpenVINO's CPU plugin."""

import numpy as np
import openvino
from openvino import opset13

from conformance.subjects.peers.peer import FLUSHES, Array, Dialect, Peer, nibbles

_CORE = openvino.Core()
_TYPES = {"float16": openvino.Type.f16, "float32": openvino.Type.f32}
_INDICES = {"int32": openvino.Type.i32, "int64": openvino.Type.i64}


class SubjectUnderTest(Peer):
    """Any group; the plugin's own precision, as a user gets it. Subnormals are flushed."""

    dialect = Dialect(
        "openvino", (("float32", "float32"), ("float16", "float32"), ("float16", "float16")), facts=FLUSHES
    )

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:
        """See ``Peer.lookup``; the graph that its weight compression makes."""
        (rows, columns), groups = values.shape, values.shape[1] // group_size
        table = openvino.Tensor(openvino.Type.i4, [rows, groups, group_size])
        table.data.reshape(-1).view(np.uint8)[:] = nibbles(values).reshape(-1)
        wide = opset13.convert(openvino.op.Constant(table), _TYPES[scales.dtype.name])
        scaled = opset13.multiply(wide, opset13.constant(scales.reshape(rows, groups, 1)))
        shape = opset13.constant(np.array([rows, columns], np.int64))
        weight = opset13.reshape(scaled, shape, special_zero=False)
        if scales.dtype.name != output_dtype:
            weight = opset13.convert(weight, _TYPES[output_dtype])
        where = opset13.parameter([-1], _INDICES[indices.dtype.name])
        gathered = opset13.gather(weight, where, opset13.constant(np.array(0, np.int64)))
        compiled = _CORE.compile_model(openvino.Model([gathered], [where]), "CPU")
        return np.array(compiled([indices])[0])
