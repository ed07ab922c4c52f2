"""Subject "litert": EMBEDDING_LOOKUP of an int4 table on LiteRT's interpreter."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from conformance.subjects.peers.peer import Array, Dialect, Peer, nibbles

_VERSION = 4  # of EMBEDDING_LOOKUP: the first with int4


class SubjectUnderTest(Peer):
    """One float32 scale a row; two's complement nibbles, the even column low."""

    dialect = Dialect("ai-edge-litert", (("float32", "float32"),), a_row=True)

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:  # noqa: ARG002 - the dialect has one of each
        """See ``Peer.lookup``; a model of one operator."""
        if not indices.size:
            return np.empty((0, values.shape[1]), np.float32)
        interpreter = Interpreter(model_content=_model(values, scales.reshape(-1), indices.size))
        interpreter.allocate_tensors()
        interpreter.set_tensor(0, indices.astype(np.int32))
        try:
            interpreter.invoke()
        except RuntimeError as error:
            if "Embedding Lookup" in str(error):
                raise IndexError(str(error)) from error
            raise
        return np.array(interpreter.get_tensor(2))


def _model(values: Array, scales: Array, count: int) -> bytes:
    """A .tflite file: indices int32 [count], the table, rows float32 [count, D]."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.EMBEDDING_LOOKUP
    code.version = _VERSION
    none, data = schema.BufferT(), schema.BufferT()
    data.data = nibbles(values).reshape(-1)
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = scales, np.zeros(scales.size, np.int64)
    quantization.quantizedDimension = 0
    graph = schema.SubGraphT()
    graph.name = b"main"
    tensors = (
        ("indices", (count,), "INT32"),
        ("table", values.shape, "INT4"),
        ("out", (count, values.shape[1]), "FLOAT32"),
    )
    graph.tensors = []
    for name, shape, kind in tensors:
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name.encode(), np.array(shape, np.int32)
        tensor.type, tensor.buffer = getattr(schema.TensorType, kind), int(name == "table")
        tensor.quantization = quantization if name == "table" else None
        graph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.opcodeIndex = operator.builtinOptionsType = 0
    operator.inputs, operator.outputs = np.array([0, 1], np.int32), np.array([2], np.int32)
    graph.operators, graph.inputs, graph.outputs = [operator], np.array([0], np.int32), np.array([2], np.int32)
    model = schema.ModelT()
    model.version, model.operatorCodes, model.buffers, model.subgraphs = 3, [code], [none, data], [graph]
    builder = flatbuffers.Builder(values.size + 1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
