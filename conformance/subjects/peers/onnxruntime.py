"""Subject "onnxruntime": com.microsoft.GatherBlockQuantized on ONNX Runtime's CPU provider, int4 data."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from conformance.subjects.peers.peer import Array, Dialect, Peer, nibbles

_TYPES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
_TYPES |= {"int64": TensorProto.INT64}


class SubjectUnderTest(Peer):
    """Blocks are powers of two from 16 on; the output has the scales' dtype."""

    dialect = Dialect(
        "onnxruntime",
        (("float32", "float32"), ("float16", "float16")),
        groups=tuple(1 << bits for bits in range(4, 13)),
    )

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:
        """See ``Peer.lookup``; a model of one node, with the table as its initializers."""
        dtype, kind = _TYPES[output_dtype], _TYPES[indices.dtype.name]
        data = helper.make_tensor("data", TensorProto.INT4, list(values.shape), nibbles(values).tobytes(), raw=True)
        scale = helper.make_tensor("scales", dtype, list(scales.shape), scales.tobytes(), raw=True)
        axes = {"gather_axis": 0, "quantize_axis": 1, "block_size": group_size}
        names = ["data", "indices", "scales"]
        node = helper.make_node("GatherBlockQuantized", names, ["out"], domain="com.microsoft", **axes)
        inputs = [helper.make_tensor_value_info("indices", kind, None)]
        outputs = [helper.make_tensor_value_info("out", dtype, None)]
        graph = helper.make_graph([node], "lookup", inputs, outputs, [data, scale])
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        try:
            return np.asarray(session.run(None, {"indices": indices})[0])
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise IndexError(str(error)) from error
