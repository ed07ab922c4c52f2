"""The program builder: the routes mean the same, and the programs are what torch itself computes."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.export.graph_signature import InputKind

from conformance.case.single_table import SingleTable, single_table
from conformance.observe.execute import run_program
from conformance.observe.match import outputs_by_step
from conformance.program.build import BuiltProgram, build
from conformance.program.module import forward_source
from conformance.program.tensors import identifiers, to_numpy, to_torch
from reference.arithmetic.bfloat16 import BFLOAT16
from reference.program.evaluate import evaluate
from reference.program.spec import ProgramSpec, QuantizedTable, Read, TensorSpec, Values

#: Parameters of conformance.case.single_table.SingleTable that between them use every source, op, dtype and step.
MIXED: dict[str, dict[str, Any]] = {
    "control": {},
    "sources": {
        "weight_source": "mutated",
        "scale_source": "computed",
        "zero_point_source": "lifted",
        "indices_source": "computed",
        "reads": ("weight", "scale", "table"),
    },
    "more-sources": {
        "weight_source": "input",
        "scale_source": "non_persistent",
        "zero_point_source": "parameter",
        "zero_point_dtype": "int64",
        "indices_source": "lifted",
    },
    "computed-weight": {"weight_source": "computed", "zero_point_source": "input", "zero_point": "one_nonzero"},
    "ops": {
        "weight_ops": ("clone", "view", "add_zero", "transpose_twice"),
        "table_ops": ("transpose_twice", "add_zero", "view", "clone"),
        "indices_shape": (2, 1, 3),
        "indices_dtype": "int32",
    },
    "half": {"dtype": "float16", "scales": Values("signed_scales", 5), "padding_idx": 3, "sparse": True},
    "bfloat": {"dtype": "bfloat16", "zero_point": "none", "scale_grad_by_freq": True, "indices_shape": ()},
    "mixed-dtypes": {"scale_dtype": "float16", "output_dtype": "bfloat16", "zero_point_dtype": "float32"},
    "several": {"lookups": 3, "group_sizes": (4, 32, 3), "embed_dim": 96, "linear": "before"},
    "shared": {"lookups": 2, "share_dequantize": True, "linear": "after", "indices_dynamic": (0,), "max_norm": 1.5},
    "consumers": {"lookups": 2, "consumers": ("mul", "positions", "norm", "linear_bias"), "hide_lookups": True},
    "consumers-half": {"consumers": ("mul", "add", "linear"), "dtype": "float16", "hide_lookups": True},
    "indices-moved": {"indices_moved": True, "linear": "after", "linear_bias": True, "linear_of_rows": True},
    "packed": {"dialect": "embedding_4bit", "zero_point": "none", "weight_ops": ("clone",), "indices_shape": (2, 2)},
    "packed-zero-point": {"dialect": "embedding_4bit", "zero_point_dtype": "float32", "output_dtype": "float16"},
}


def spec_of(route: str, **parameters: Any) -> ProgramSpec:
    return single_table(SingleTable(**{"route": route, **parameters}))


def operators(built: BuiltProgram) -> list[str]:
    return [str(n.target) for n in built.program.graph.nodes if n.op == "call_function"]


def values(built: BuiltProgram) -> list[tuple[str, str, list[int | str]]]:
    """What each node is and yields; a symbolic size is "s"."""
    return [
        (n.op, str(value.dtype), [d if isinstance(d, int) else "s" for d in value.shape])
        for n in built.program.graph.nodes
        if n.op != "output"
        for value in (n.meta["val"] if isinstance(n.meta["val"], tuple) else (n.meta["val"],))
    ]


def computed(built: BuiltProgram, inputs: tuple[Any, ...] | None = None) -> dict[str, np.ndarray[Any, Any]]:
    found = run_program(built.program, built.inputs if inputs is None else inputs)
    outputs, failed = outputs_by_step(built, built.program, found)
    assert not failed
    return outputs


def same_bits(one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("name", MIXED)
def test_synthetic_and_exported_programs_are_the_same(name: str) -> None:
    synthetic, exported = build(spec_of("synthetic", **MIXED[name])), build(spec_of("export", **MIXED[name]))
    assert operators(synthetic) == operators(exported)
    assert values(synthetic) == values(exported)
    kinds = [
        [(s.kind, s.persistent, s.target is None) for s in b.program.graph_signature.input_specs]
        for b in (synthetic, exported)
    ]
    assert kinds[0] == kinds[1]
    assert [s.kind for s in synthetic.program.graph_signature.output_specs] == [
        s.kind for s in exported.program.graph_signature.output_specs
    ]
    same_bits(computed(synthetic), computed(exported))
    assert synthetic.nodes.keys() == exported.nodes.keys()
    assert {k: len(v) for k, v in synthetic.placeholders.items()} == {
        k: len(v) for k, v in exported.placeholders.items()
    }


@pytest.mark.parametrize("name", MIXED)
def test_synthetic_programs_compute_what_the_reference_does(name: str) -> None:
    spec = spec_of("synthetic", **MIXED[name])
    outputs, expected = computed(build(spec)), evaluate(spec)
    assert expected or name == "shared"
    for step, array in ((step, expected[step]) for step in spec.outputs() if step in expected):
        assert (outputs[step].dtype, outputs[step].tobytes()) == (array.dtype, array.tobytes()), step


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"linear": "after", "dtype": "float16", "lookups": 2, "reads": ("weight", "scale", "table")},
        {"linear": "before", "unwrap": True, "group_size": 0},
        {"lookups": 2, "share_dequantize": True, "padding_idx": 4, "strict": True},
    ],
    ids=["control", "tied-float16", "unwrapped-per-axis", "shared-strict"],
)
def test_the_torchao_route_means_the_same(parameters: dict[str, Any]) -> None:
    """Through torchao's quantize_, or from the same spec by hand, the synthetic graph: one meaning, three programs."""
    spec = spec_of("torchao", **parameters)
    quantized = build(spec)
    by_hand = dataclasses.replace(spec, route="synthetic", unwrap=False, strict=False)
    same_bits(computed(quantized), computed(build(by_hand)))
    assert quantized.facts.provenance["tensor_type"] == "IntxUnpackedToInt8Tensor"
    assert quantized.facts.provenance["quantized_by"].startswith("torchao.")
    assert quantized.facts.provenance["exported_by"].startswith("torch.export.export")
    assert quantized.facts.provenance["edge_by"] == "executorch.exir.to_edge"
    assert quantized.module is not None
    eager = {n: to_numpy(t) for n, t in zip(spec.outputs(), quantized.module(*quantized.inputs), strict=True)}
    exported = computed(quantized)
    for outputs in (eager, exported):
        outputs.pop("linear", None)  # aten.linear and the mm that to_edge makes of it may sum in other orders
    same_bits(exported, eager)


def test_tied_weights_share_placeholders_unless_unwrapped() -> None:
    tied = build(spec_of("torchao", linear="after"))
    unwrapped = build(spec_of("torchao", linear="after", unwrap=True))
    assert len(tied.placeholders["emb.qdata"]) == 1
    assert len(unwrapped.placeholders["emb.qdata"]) == 2


@pytest.mark.parametrize("route", ["synthetic", "export"])
def test_a_dynamic_program_runs_at_other_sizes_too(route: str) -> None:
    built = build(spec_of(route, indices_dynamic=(0,), indices_shape=(1,)))
    (node,) = (n for n in built.program.graph.nodes if n.name == built.nodes["lookup0"])
    assert not isinstance(node.meta["val"].shape[0], int)
    assert built.inputs[0].shape == (1,)
    for size in (0, 1, 7):
        outputs = computed(built, (torch.arange(size) % 9,))
        assert outputs["lookup0"].shape == (size, 64)


@pytest.mark.parametrize("route", ["synthetic", "export"])
def test_sources_are_what_the_signature_says(route: str) -> None:
    built = build(spec_of(route, weight_source="mutated", scale_source="lifted", zero_point_source="non_persistent"))
    kinds = {s.arg.name: (s.kind, s.persistent) for s in built.program.graph_signature.input_specs}
    (weight,), (scale,), (zero_point,) = (built.placeholders[n] for n in ("weight", "scale_g32", "zero_point_g32"))
    assert kinds[weight] == (InputKind.BUFFER, True)
    assert kinds[scale] == (InputKind.CONSTANT_TENSOR, None)
    assert kinds[zero_point] == (InputKind.BUFFER, False)
    assert built.program.graph_signature.buffers_to_mutate == {"aten_neg_default": "weight"}


def test_max_norm_leaves_the_other_readers_of_a_table_alone() -> None:
    built = build(spec_of("export", max_norm=0.5, reads=("table",)))
    plain = build(spec_of("export", reads=("table",)))
    assert any("embedding_renorm" in name for name in operators(built))
    one, other = computed(built), computed(plain)
    assert one["read_table"].tobytes() == other["read_table"].tobytes()
    assert one["lookup0"].tobytes() != other["lookup0"].tobytes()


def test_torchao_needs_a_table_and_says_what_it_refuses() -> None:
    zeros = Values("zeros")
    spec = ProgramSpec((Read("out", "x"),), (TensorSpec("x", "float32", (2,), zeros),), route="torchao")
    with pytest.raises(ValueError, match="needs a quantized table"):
        build(spec)
    table = QuantizedTable("emb", 4, 32, 8, Values("weights", 1), "int8")
    with pytest.raises(ValueError, match=r"table 'emb': .*int8"):
        build(ProgramSpec((Read("out", "emb.scale"),), (), (table,), "torchao"))


def test_a_linear_of_rank_3_is_for_export_only() -> None:
    spec = spec_of("synthetic", linear="after")
    tensors = tuple(dataclasses.replace(t, shape=(2, 2, 64)) if t.name == "x" else t for t in spec.tensors)
    with pytest.raises(ValueError, match=r"step 'linear'.*route 'export' only"):
        build(dataclasses.replace(spec, tensors=tensors))
    assert computed(build(dataclasses.replace(spec, tensors=tensors, route="export")))["linear"].shape == (2, 2, 9)


def test_identifiers_never_collide() -> None:
    zeros = Values("zeros")
    names = ("a.b", "a_b", "class", "forward", "1st", "training")
    spec = ProgramSpec(
        tuple(Read(f"r{i}", n) for i, n in enumerate(names)), tuple(TensorSpec(n, "int8", (1,), zeros) for n in names)
    )
    given = identifiers(spec)
    assert len(set(given.values())) == len(given)
    assert all(n.isidentifier() for n in given.values())
    assert build(dataclasses.replace(spec, route="export")).outputs == {f"r{i}": i for i in range(len(names))}


def test_the_generated_forward_reads_like_a_person_s() -> None:
    spec = spec_of("torchao", linear="after", padding_idx=2)
    source = forward_source(spec, {t.name: t for t in spec.tables})
    assert source == (
        "def forward(self, indices0, x):\n"
        "    lookup0 = self.emb(indices0)\n"
        "    linear = self.linear(x)\n"
        "    return (lookup0, linear, )\n"
    )


def test_bits_survive_the_way_to_torch_and_back() -> None:
    halves = np.array([0x7FC1, 0x8000, 0x0001, 0xFF80], "<u2").view(BFLOAT16)
    assert to_torch(halves).dtype == torch.bfloat16
    assert to_numpy(to_torch(halves)).tobytes() == halves.tobytes()
    scalar = np.array(0x3F80, "<u2").view(BFLOAT16)
    assert float(to_torch(scalar)) == 1.0
    assert to_numpy(to_torch(scalar)).shape == ()
    snan = np.array([0x7F800001], "<u4").view("<f4")
    assert to_numpy(to_torch(snan)).tobytes() == snan.tobytes()
