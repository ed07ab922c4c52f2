"""Stages QUANTIZE and EXPORT for any subject: what torchao, torch.export and to_edge make of a case.

Source: docs/contract.md section 4.
"""

import warnings
from typing import Any

from conformance.case.case import Quantization
from conformance.harness.observation import Arrays, Graph
from reference.program.spec import ProgramSpec


def run_quantize(given: Quantization) -> Arrays:
    """Quantize the float table by torchao and report the tensor's three parts.

    Raises:
        Exception: whatever torchao raises.
    """
    import torch  # noqa: PLC0415 - takes seconds to load
    from torchao.quantization import quantize_  # noqa: PLC0415 - the same

    from conformance.program.tensors import to_numpy, to_torch, torch_dtype  # noqa: PLC0415 - the same
    from reference.program.values import values_array  # noqa: PLC0415 - with them

    table = to_torch(values_array(given.values, given.dtype, (given.vocab_size, given.embed_dim)))
    module = torch.nn.Sequential(
        torch.nn.Embedding(given.vocab_size, given.embed_dim, dtype=torch_dtype(given.dtype), _weight=table)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's notes about its own versions are not ours to judge
        for config in _configs(given):
            quantize_(module, config, lambda module, _name: isinstance(module, torch.nn.Embedding))
    weight = module[0].weight
    parts = {name: to_numpy(getattr(weight, name)) for name in ("qdata", "scale", "zero_point")}
    return Arrays(parts, {"tensor_type": type(weight).__name__, "quantized_by": "torchao.quantization.quantize_"})


def run_export(spec: ProgramSpec) -> Graph:
    """Take the program to the edge dialect and report how it is spelled and what it computes.

    Raises:
        Exception: whatever torchao, torch.export or to_edge raises.
    """
    from conformance.observe.export import run_export as observe  # noqa: PLC0415 - torch takes seconds to load

    return observe(spec)


def _configs(given: Quantization) -> list[Any]:
    """The configurations to apply, one after the other."""
    import torch  # noqa: PLC0415 - takes seconds to load
    from torchao.quantization import IntxWeightOnlyConfig  # noqa: PLC0415 - the same
    from torchao.quantization.granularity import PerAxis, PerGroup  # noqa: PLC0415 - the same
    from torchao.quantization.quant_primitives import MappingType  # noqa: PLC0415 - the same

    granularity = PerGroup(given.group_size) if given.group_size else PerAxis(0)
    options: dict[str, Any] = {"weight_dtype": torch.int4, "granularity": granularity}
    if given.method == "no_clipping":
        options["mapping_type"] = MappingType.SYMMETRIC_NO_CLIPPING_ERR
    elif given.method == "hqq":
        options["intx_choose_qparams_algorithm"] = "hqq_scale_only"
    config = IntxWeightOnlyConfig(**options)
    if given.method != "qat":
        return [config]
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig  # noqa: PLC0415 - takes seconds to load

    group = {"group_size": given.group_size} if given.group_size else {"granularity": "per_channel"}
    fake = IntxFakeQuantizeConfig(torch.int4, is_symmetric=True, **group)
    return [QATConfig(weight_config=fake, step="prepare"), QATConfig(step="convert"), config]
