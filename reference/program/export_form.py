"""How each quantized step of a ProgramSpec is spelled once torch.export and to_edge are done with it.

>>> from reference.program.spec import Dequantize, Lookup, ProgramSpec, TensorSpec, Values
>>> table = TensorSpec("q", "int8", (8, 32), Values("uniform", low=-8, high=7))
>>> scale = TensorSpec("s", "float16", (8, 2), Values("scales"))
>>> indices = TensorSpec("i", "int64", (3,), Values("uniform", low=0, high=7), source="input")
>>> steps = (Dequantize("dq", "q", "s", (1, 16), output_dtype="float16"), Lookup("out", "dq", "i", padding_idx=2))
>>> for name, form in export_forms(ProgramSpec(steps, (table, scale, indices), route="export")).items():
...     print(name, form)
dq torchao.dequantize_affine block_size=[1, 16] input_dtype=int8 quant_min=-8 quant_max=7 output_dtype=float16
out aten.embedding padding_idx=2 scale_grad_by_freq=False sparse=False

Source: docs/contract.md section 4.
"""

import numpy as np
import numpy.typing as npt

from reference.program.spec import IDENTITY_OPS, PASSED, Dequantize, Lookup, PackedLookup, ProgramSpec
from reference.program.values import tensor_values

#: Operands of each step that are tensors, by the field of the spec; an absent zero point is left out.
OPERANDS = {
    "Dequantize": ("weight", "scale", "zero_point"),
    "Lookup": ("indices",),
    "PackedLookup": ("weight", "scale", "zero_point", "indices"),
}


def export_forms(spec: ProgramSpec) -> dict[str, str]:
    """Return the operator of each Dequantize that something reads, of each Lookup and each PackedLookup.

    Returns:
        By step name: the operator and its arguments that are no tensors, defaults filled in.
    """
    forms = {}
    for step in spec.steps:
        match step:
            case Dequantize() if _is_read(spec, step.name):
                forms[step.name] = (
                    f"torchao.dequantize_affine block_size={list(step.block_size)} input_dtype={step.input_dtype} "
                    f"quant_min={step.qmin} quant_max={step.qmax} output_dtype={step.output_dtype}"
                )
            case Lookup():
                forms[step.name] = (
                    f"aten.embedding padding_idx={step.padding_idx} "
                    f"scale_grad_by_freq={step.scale_grad_by_freq} sparse={step.sparse}"
                )
            case PackedLookup():
                forms[step.name] = (
                    f"quantized_decomposed.embedding_4bit weight_quant_min={step.qmin} "
                    f"weight_quant_max={step.qmax} dtype={step.output_dtype}"
                )
            case _:
                pass
    return forms


def export_tables(spec: ProgramSpec) -> dict[str, str]:
    """Return the form of the dequantize step that each Lookup reads, through identities at most, by its name."""
    forms = export_forms(spec)
    lookups = (s for s in spec.steps if isinstance(s, Lookup) and set(s.table_ops) <= set(IDENTITY_OPS))
    return {lookup.name: forms[lookup.table] for lookup in lookups}


def export_dynamic(spec: ProgramSpec) -> dict[str, tuple[int, ...]]:
    """Return the dimensions that stay symbolic, by the name of each tensor that the caller passes."""
    return {t.name: tuple(sorted(t.dynamic)) for t in spec.tensors if t.source in PASSED}


def export_operands(spec: ProgramSpec) -> dict[str, npt.NDArray[np.generic]]:
    """Return what the steps of ``export_forms`` read, by "STEP.operand", with the spec's own values."""
    tensors, read = tensor_values(spec), {}
    steps = {s.name: s for s in spec.steps}
    for name in export_forms(spec):
        step = steps[name]
        for operand in OPERANDS[type(step).__name__]:
            if tensor := getattr(step, operand):
                read[f"{name}.{operand}"] = tensors[tensor]
    return read


def _is_read(spec: ProgramSpec, name: str) -> bool:
    return any(name in {getattr(s, "table", None), getattr(s, "of", None)} for s in spec.steps)
