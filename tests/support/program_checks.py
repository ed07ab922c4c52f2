"""What every fused program must satisfy, and fingerprints that show whether a program was touched."""

import hashlib
from typing import Any

import torch
from torch.export import ExportedProgram

from impl.matcher import FusionReport, fuse_q4_embeddings
from tests.support.edge_drafts import DEQUANTIZE, EMBEDDING, EMBEDDING_4BIT, Draft


def values(rows: int, columns: int, seed: int = 0, low: int = -8, high: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, (rows, columns), generator=generator, dtype=torch.int8)


def scales(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def split(draft: Draft, weight: Any, scale: Any, indices: Any, group: int = 32, **change: Any) -> torch.fx.Node:
    """Call dequantize_affine, then embedding; ``change`` replaces dequantize arguments by name."""
    given = {"block": [1, group], "zero_point": None, "input_dtype": torch.int8, "qmin": -8, "qmax": 7, **change}
    after = (given["output_dtype"],) if "output_dtype" in given else ()
    dequantize = draft.call(
        DEQUANTIZE,
        weight,
        given["block"],
        scale,
        given["zero_point"],
        given["input_dtype"],
        given["qmin"],
        given["qmax"],
        *after,
    )
    return draft.call(EMBEDDING, dequantize, indices)


def packed(draft: Draft, weight: Any, scale: Any, indices: Any, **change: Any) -> torch.fx.Node:
    """Call quantized_decomposed.embedding_4bit.dtype; ``change`` replaces arguments by name."""
    given = {"zero_point": None, "qmin": -8, "qmax": 7, "dtype": torch.float32, **change}
    return draft.call(
        EMBEDDING_4BIT, weight, scale, given["zero_point"], given["qmin"], given["qmax"], indices, dtype=given["dtype"]
    )


def bits(value: Any) -> Any:
    """A tensor's bytes with its dtype and shape: NaN equals itself, 0.0 differs from -0.0."""
    if not isinstance(value, torch.Tensor):
        return value
    plain = value.detach().contiguous()
    content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest()


def fingerprint(program: ExportedProgram) -> Any:
    """Everything of a program that fusing must leave alone, tensors by identity, version and bits."""
    nodes = [
        (n.name, n.op, str(n.target), str(n.args), str(n.kwargs), sorted(n.meta), str(n.meta.get("val")))
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for n in module.graph.nodes
    ]
    tensors = [
        (name, id(t), t._version, bits(t))
        for store in (program.state_dict, program.constants)
        for name, t in store.items()
        if isinstance(t, torch.Tensor)
    ]
    return nodes, tensors, str(program.graph_signature), str(program.module_call_graph), sorted(vars(program))


def fuse(program: ExportedProgram, **options: Any) -> tuple[ExportedProgram, FusionReport]:
    """Fuse, and check what holds for every program: the source untouched, the result stable."""
    before = fingerprint(program)
    fused, report = fuse_q4_embeddings(program, **options)
    assert fingerprint(program) == before
    again, second = fuse_q4_embeddings(fused, **options)
    assert second.fused == ()
    assert str(again.graph) == str(fused.graph)
    assert str(again.graph_signature) == str(fused.graph_signature)
    assert {k: bits(v) for k, v in again.constants.items()} == {k: bits(v) for k, v in fused.constants.items()}
    return fused, report


def same_bits(one: ExportedProgram, other: ExportedProgram, *inputs: torch.Tensor) -> None:
    """Both programs, executed eagerly, give the same bytes, dtypes and shapes."""
    with torch.no_grad():
        left, right = (torch.utils._pytree.tree_leaves(p.module()(*inputs)) for p in (one, other))
    assert [bits(v) for v in left] == [bits(v) for v in right]


def count(program: ExportedProgram, target: Any) -> int:
    return sum(node.target == target for node in program.graph.nodes)
