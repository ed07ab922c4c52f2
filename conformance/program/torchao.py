"""Route "torchao": each table is an nn.Embedding that torchao's own quantize_ has quantized.

Source: docs/contract.md section 4.
"""

import warnings
from typing import Any

import torch
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_primitives import MappingType

from conformance.case.case import Quantization
from conformance.program.module import module_calls
from conformance.program.tensors import to_torch, torch_dtype
from reference.program.spec import Lookup, ProgramSpec, QuantizedTable
from reference.program.values import float_table, values_array


def quantized_embeddings(spec: ProgramSpec) -> dict[str, Any]:
    """Return an nn.Embedding for each table, quantized by torchao's weight-only int4 configuration."""
    if not spec.tables:
        raise ValueError("route 'torchao' needs a quantized table ([[program.tables]]); the spec has none")
    tables = {t.name: t for t in spec.tables}
    first: dict[str, Lookup] = {}
    for lookup in module_calls(spec, tables):
        first.setdefault(spec.dequantize(lookup.table).weight.rpartition(".")[0], lookup)
    return {table.name: quantize_table(table, first.get(table.name)) for table in spec.tables}


def quantize_table(table: QuantizedTable, lookup: Lookup | None = None) -> Any:
    """Return the table's nn.Embedding after quantize_; ``lookup`` gives its padding_idx and gradient options."""
    embedding = torch.nn.Embedding(
        table.vocab_size,
        table.embed_dim,
        padding_idx=lookup.padding_idx if lookup is not None and lookup.padding_idx >= 0 else None,
        scale_grad_by_freq=lookup.scale_grad_by_freq if lookup is not None else False,
        sparse=lookup.sparse if lookup is not None else False,
        dtype=torch_dtype(table.dtype),
        _weight=to_torch(float_table(table)),
    )
    embedding.weight.requires_grad_(requires_grad=False)
    try:
        _quantize(embedding, configurations("symmetric", table.group_size))
    except Exception as error:  # torchao raises whatever its reshapes and asserts do
        raise ValueError(
            f"table {table.name!r}: torchao cannot quantize it ({type(error).__name__}: {error})"
        ) from error
    return embedding


def quantize_embedding(question: Quantization) -> Any:
    """Return the weight of an nn.Embedding with the float table of a QUANTIZE case, quantized by the case's method."""
    shape = (question.vocab_size, question.embed_dim)
    table = to_torch(values_array(question.values, question.dtype, shape))
    module = torch.nn.Sequential(torch.nn.Embedding(*shape, dtype=torch_dtype(question.dtype), _weight=table))
    _quantize(module, configurations(question.method, question.group_size))
    return module[0].weight


def _quantize(module: Any, configurations: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's notes about its own versions are not ours to judge
        for configuration in configurations:
            quantize_(module, configuration, lambda part, _name: isinstance(part, torch.nn.Embedding))


def configurations(method: str, group_size: int) -> list[Any]:
    """Torchao's int4 configurations of a method of ``conformance.case.case.METHODS``, to apply one after the other."""
    options: dict[str, Any] = {"granularity": PerGroup(group_size) if group_size else PerAxis(0)}
    if method == "no_clipping":
        options["mapping_type"] = MappingType.SYMMETRIC_NO_CLIPPING_ERR
    elif method == "hqq":
        options["intx_choose_qparams_algorithm"] = "hqq_scale_only"
    weight_only = IntxWeightOnlyConfig(weight_dtype=torch.int4, **options)
    if method != "qat":
        return [weight_only]
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig  # noqa: PLC0415 - takes seconds to load

    group = {"group_size": group_size} if group_size else {"granularity": "per_channel"}
    fake = IntxFakeQuantizeConfig(torch.int4, is_symmetric=True, **group)
    return [QATConfig(weight_config=fake, step="prepare"), QATConfig(step="convert"), weight_only]


def unwrap_all(module: Any) -> None:
    """Apply torchao's unwrap_tensor_subclass: the parts of every quantized weight become plain parameters."""
    from torchao.utils import unwrap_tensor_subclass  # noqa: PLC0415 - only where a spec asks for it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes of torchao's helper
        unwrap_tensor_subclass(module)


def provenance_of(embeddings: dict[str, Any]) -> dict[str, str]:
    """What the quantized weights are, read off the objects themselves."""
    weights = [e.weight for e in embeddings.values()]
    return {
        "tensor_type": ",".join(sorted({type(w).__name__ for w in weights})),
        "tensor_module": ",".join(sorted({type(w).__module__ for w in weights})),
        "quantized_by": f"{quantize_.__module__}.{quantize_.__name__}",
    }
