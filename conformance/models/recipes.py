"""How people quantize models: torchao's configurations, and ExecuTorch's own embedding; and what a model means exactly.

Source: docs/contract.md section 4, 6.4.
"""

import contextlib
import copy
import io
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup

from conformance.case.model import Model
from conformance.program.tensors import torch_dtype
from conformance.program.torchao import configurations

_GROUP = 32
_INT8 = [IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))]
_INT4 = configurations("symmetric", _GROUP)
#: By recipe: what quantizes the embeddings, and what the linears.
_TORCHAO: dict[str, tuple[list[Any], list[Any]]] = {
    "float": ([], []),
    "int4": (_INT4, _INT4),
    "int4_by_row": (configurations("symmetric", 0), configurations("symmetric", 0)),
    "int4_embedding": (_INT4, []),
    "int8_and_int4_embedding": (_INT4, _INT8),
    "8da4w": (
        _INT8,
        [Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(_GROUP))],
    ),
    "8da8w": (
        _INT4,
        [Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))],
    ),
    "hqq": (configurations("hqq", _GROUP), configurations("hqq", _GROUP)),
    "qat": (configurations("qat", _GROUP), configurations("qat", _GROUP)),
}


def quantize(model: nn.Module, question: Model) -> nn.Module:
    """The model in its dtype, quantized by the question's recipe; a tied head reads the embedding's table."""
    model = copy.deepcopy(model).to(torch_dtype(question.dtype))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # notes of torchao and executorch about their own versions
        if question.recipe.startswith("et_"):
            _by_executorch(model, int(question.recipe[3:-3]))
            return model
        embeddings, linears = _TORCHAO[question.recipe]
        for kind, configs in ((nn.Embedding, embeddings), (nn.Linear, linears)):
            for config in configs:
                quantize_(model, config, lambda part, _name, kind=kind: isinstance(part, kind) and _fits(part))
    if question.shape.tied:
        model.head.weight = model.embed.weight
    return model


def _fits(part: Any) -> bool:
    """Whether its rows have whole groups: a table of biases has as many columns as there are heads."""
    return bool(part.weight.shape[-1] % _GROUP == 0)


def _by_executorch(model: nn.Module, bits: int) -> None:
    """ExecuTorch's own quantized embedding, as its Llama export has it: packed below 8 bits."""
    from executorch.examples.models.llama.source_transformation.quantize import (  # noqa: PLC0415 - one recipe's
        EmbeddingQuantHandler,
    )

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        EmbeddingQuantHandler(model, bitwidth=bits, group_size=_GROUP, packed=bits < 8).quantized_model()  # noqa: PLR2004


class _RowsOf8Bits(nn.Linear):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """A linear whose input is rounded to 256 levels a row, as torchao's asymmetric int8 does, in the input's dtype."""

    def forward(self, x: Any) -> Any:
        """[..., K] -> [..., N]."""
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
        zero = (-128 - torch.round(low / scale)).clamp(-128, 127)
        levels = (torch.round(x / scale) + zero).clamp(-128, 127)
        return functional.linear((levels - zero) * scale, self.weight, self.bias)


def exact(model: nn.Module, *, rounded: bool = True) -> nn.Module:
    """The quantized model in float64, from the numbers that its tables and weights stand for.

    ``rounded``: inputs of a linear with 8-bit inputs are quantized, as the model says.
    """
    model = copy.deepcopy(model)
    for name, part in list(model.named_modules()):
        weight: Any = getattr(part, "weight", None)
        if hasattr(part, "bitwidth"):  # ExecuTorch's own embedding
            rows = part(torch.arange(len(weight))).double()
            model.set_submodule(name, nn.Embedding.from_pretrained(rows))
        elif hasattr(weight, "dequantize") and hasattr(weight, "qdata"):
            if rounded and getattr(weight, "activation_quantization", None) is not None:
                part.__class__ = _RowsOf8Bits
            part.weight = nn.Parameter(weight.dequantize().double(), requires_grad=False)
    return model.double()


def tables(model: nn.Module) -> list[Any]:
    """The modules that look up in a table of 4 bits, in the order in which the model has them."""
    return [
        part
        for part in model.modules()
        if getattr(part, "bitwidth", 0) == 4  # noqa: PLR2004 - bits
        or (isinstance(part, nn.Embedding) and getattr(part.weight, "target_dtype", None) == torch.int4)
    ]
