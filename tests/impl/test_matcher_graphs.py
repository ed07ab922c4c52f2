"""Graphs that a pattern matcher trips over: shared, aliased, written, nested, misnamed, half fused."""

import copy
import tracemalloc

import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import TensorArgument

from impl import packer
from impl.matcher import RefusalReason, fuse_q4_embeddings
from tests.support.edge_drafts import CLONE, DEQUANTIZE, EDGE, EMBEDDING, Q4GSW, Draft
from tests.support.program_checks import bits, count, fuse, packed, same_bits, scales, split, values

INDICES = torch.tensor([3, 0, 8])
SOURCES = ("parameter", "buffer", "non_persistent", "lifted")


def table(draft: Draft, source: str = "parameter", suffix: str = "", seed: int = 0) -> tuple[torch.fx.Node, ...]:
    """Weight and scales of V = 9, D = 64, G = 32."""
    weight = draft.tensor(f"w{suffix}", values(9, 64, seed=seed), source)
    return weight, draft.tensor(f"s{suffix}", scales(9, 2, seed=seed + 1), source)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dialect", ["split", "packed"])
def test_every_kind_of_constant_goes_away_with_its_table(source: str, dialect: str) -> None:
    draft = Draft()
    values_ = values(9, 64)
    weight = draft.tensor("w", values_ if dialect == "split" else packer.pack_flat(values_), source)
    scale = draft.tensor("s", scales(9, 2), source)
    zero_point = draft.tensor("z", torch.zeros(9, 2), source)
    indices = draft.tensor("i", INDICES, "input")
    build = split if dialect == "split" else packed
    program = draft.program(build(draft, weight, scale, indices, zero_point=zero_point))
    fused, report = fuse(program)
    same_bits(program, fused, INDICES)
    assert set(fused.state_dict) == set()
    assert set(fused.constants) == {report.fused[0].packed, report.fused[0].scales}
    assert report.fused[0].table == "module.w"
    assert torch.equal(fused.constants[report.fused[0].packed], packer.pack_linear_weight(values_))


def test_both_dialects_on_one_table_share_its_packed_form() -> None:
    draft = Draft()
    weight, scale = table(draft)
    flat = draft.tensor("flat", packer.pack_flat(values(9, 64)), "parameter")
    indices = draft.tensor("i", INDICES, "input")
    program = draft.program(split(draft, weight, scale, indices), packed(draft, flat, scale, indices))
    fused, report = fuse(program)
    same_bits(program, fused, INDICES)
    assert report.fused[0].packed == report.fused[1].packed
    assert len(fused.constants) == 2


def test_several_groupings_and_lookups_of_one_table() -> None:
    draft = Draft()
    weight, scale = table(draft)
    fine = draft.tensor("s4", scales(9, 16), "buffer")
    odd = draft.tensor("s2", scales(9, 32), "buffer")
    indices, other = draft.tensor("i", INDICES, "input"), draft.tensor("j", torch.tensor([[1], [2]]), "input")
    first = split(draft, weight, scale, indices)
    again = draft.call(EMBEDDING, first.args[0], other, padding_idx=5, sparse=False)
    finer = split(draft, weight, fine, other, group=4)
    refused = split(draft, weight, odd, indices, group=2)
    program = draft.program(first, again, finer, refused)
    fused, report = fuse(program)
    same_bits(program, fused, INDICES, torch.tensor([[1], [2]]))
    assert [f.group_size for f in report.fused] == [32, 32, 4]
    assert [r.reason for r in report.refused] == [RefusalReason.GROUP_SIZE_NOT_MULTIPLE_OF_4]
    assert len({f.packed for f in report.fused}) == 1
    assert "module.w" in fused.state_dict, "the refused lookup still reads the table"
    assert set(fused.state_dict) == {"module.w", "module.s2"}


def test_other_readers_of_everything_keep_reading_it() -> None:
    draft = Draft()
    weight, scale = table(draft)
    zero_point = draft.tensor("z", torch.zeros(9, 2, dtype=torch.int8), "lifted")
    indices = draft.tensor("i", INDICES, "input")
    lookup = split(draft, weight, scale, indices, zero_point=zero_point)
    dequantize = lookup.args[0]
    readers = [draft.call(CLONE, node) for node in (weight, scale, zero_point, dequantize)]
    program = draft.program(lookup, dequantize, *readers, weight)
    fused, report = fuse(program)
    assert len(report.fused) == 1
    assert count(fused, DEQUANTIZE) == 1
    assert {*fused.state_dict, *fused.constants} > {"module.w", "module.s", "module.z"}
    same_bits(program, fused, INDICES)


def test_identities_are_looked_through_and_left_out() -> None:
    draft = Draft()
    weight, scale = table(draft)
    indices = draft.tensor("i", INDICES, "input")
    cloned = draft.call(CLONE, draft.call(EDGE.aten.view_copy.default, weight, [9, 64]))
    copied = draft.call(EDGE.dim_order_ops._to_dim_order_copy.default, scale, dtype=torch.float32, dim_order=[0, 1])
    program = draft.program(split(draft, draft.call(EDGE.aten.alias_copy.default, cloned), copied, indices))
    fused, report = fuse(program)
    assert len(report.fused) == 1
    assert [n.op for n in fused.graph.nodes] == ["placeholder"] * 3 + ["call_function", "output"]
    same_bits(program, fused, INDICES)


@pytest.mark.parametrize("op", ["reshape", "cast"])
def test_a_copy_that_changes_something_is_no_identity(op: str) -> None:
    draft = Draft()
    flat = draft.tensor("w", values(9, 64).reshape(18, 32), "parameter")
    scale = draft.tensor("s", scales(9, 2, dtype=torch.float16), "parameter")
    indices = draft.tensor("i", INDICES, "input")
    if op == "reshape":
        weight = draft.call(EDGE.aten.view_copy.default, flat, [9, 64])
    else:
        weight = draft.tensor("w2", values(9, 64), "parameter")
        scale = draft.call(EDGE.dim_order_ops._to_dim_order_copy.default, scale, dtype=torch.float32, dim_order=[0, 1])
    program = draft.program(split(draft, weight, scale, indices), valid=False)
    (refusal,) = fuse(program)[1].refused
    assert refusal.reason.value == ("weight_not_constant" if op == "reshape" else "scale_not_constant")


def test_copies_of_a_placeholder_that_share_one_tensor() -> None:
    """A partitioner makes NAME_copy_0 placeholders with the original's name in the state dict."""
    draft = Draft()
    data, scale_data = values(9, 64), scales(9, 2)
    one = draft.tensor("w", data, "parameter", "module.w")
    two = draft.tensor("w_copy_0", data, "parameter", "module.w")
    scale = draft.tensor("s", scale_data, "parameter")
    odd = draft.tensor("odd", scales(9, 32), "parameter")
    indices = draft.tensor("i", INDICES, "input")
    program = draft.program(split(draft, one, scale, indices), split(draft, two, odd, indices, group=2))
    fused, report = fuse(program)
    assert (len(report.fused), len(report.refused)) == (1, 1)
    same_bits(program, fused, INDICES)
    assert "module.w" in fused.state_dict
    assert "w" not in {spec.arg.name for spec in fused.graph_signature.input_specs}
    both = draft_of_copies(data, scale_data)
    fused, report = fuse(both)
    assert len(report.fused) == 2
    assert set(fused.state_dict) == set()
    same_bits(both, fused, INDICES)


def draft_of_copies(data: torch.Tensor, scale_data: torch.Tensor):  # noqa: ANN201 - a test's helper
    draft = Draft()
    one = draft.tensor("w", data, "parameter", "module.w")
    two = draft.tensor("w_copy_0", data, "parameter", "module.w")
    scale = draft.tensor("s", scale_data, "parameter")
    indices = draft.tensor("i", INDICES, "input")
    return draft.program(split(draft, one, scale, indices), split(draft, two, scale, indices))


def test_a_write_through_another_name_counts() -> None:
    """A copy of the placeholder, and a second buffer over the same memory."""
    for target, data in (("module.w", "same"), ("module.alias", "view")):
        draft = Draft()
        weight = draft.tensor("w", values(9, 64), "buffer", "module.w")
        other = draft.tensor(
            "other", draft.state["module.w"] if data == "same" else draft.state["module.w"].view(-1), "buffer", target
        )
        scale, indices = draft.tensor("s", scales(9, 2), "buffer"), draft.tensor("i", INDICES, "input")
        lookup = split(draft, weight, scale, indices)
        draft.writes_back(draft.call(CLONE, other), target)
        (refusal,) = fuse(draft.program(lookup))[1].refused
        assert refusal.reason == RefusalReason.WEIGHT_WRITTEN


def test_a_write_inside_the_graph_counts() -> None:
    draft = Draft()
    weight, scale = table(draft, "buffer")
    indices = draft.tensor("i", INDICES, "input")
    lookup = split(draft, weight, scale, indices)
    fresh = draft.call(EDGE.aten.neg.default, weight)
    written = draft.call(EDGE.aten.copy_.default, draft.call(EDGE.aten.alias_copy.default, weight), fresh)
    (refusal,) = fuse(draft.program(lookup, written, valid=False))[1].refused
    assert refusal.reason == RefusalReason.WEIGHT_WRITTEN
    assert "aten.copy_" in refusal.detail


def test_a_buffer_that_is_written_stays_even_when_a_fused_lookup_was_its_only_reader() -> None:
    draft = Draft()
    weight, scale = table(draft)
    counter = draft.tensor("counter", torch.zeros(3, dtype=torch.int64), "buffer")
    lookup = split(draft, weight, scale, counter)
    draft.writes_back(draft.call(EDGE.aten.add.Tensor, counter, counter), "module.counter")
    fused, report = fuse(draft.program(lookup))
    assert len(report.fused) == 1
    assert set(fused.state_dict) == {"module.counter"}


def test_one_node_in_several_roles() -> None:
    draft = Draft()
    both = draft.tensor("both", torch.zeros(9, 64, dtype=torch.int8), "parameter")
    zeros = draft.tensor("zeros", torch.zeros(2, dtype=torch.int64), "lifted")
    scale = draft.tensor("s", scales(9, 1), "parameter")
    indices = draft.tensor("i", INDICES, "input")
    # The zero point is the table itself (its values are what counts), or the indices.
    self_zero = split(draft, both, scale, indices, block=[1, 64])
    self_zero.args[0].update_arg(3, both)
    index_zero = split(draft, both, scale, zeros, block=[1, 64])
    index_zero.args[0].update_arg(3, zeros)
    scale_is_weight = split(draft, both, scale, indices, block=[1, 64])
    scale_is_weight.args[0].update_arg(2, both)
    fused, report = fuse(draft.program(self_zero, index_zero, scale_is_weight, valid=False))
    assert len(report.fused) == 2
    assert [r.reason for r in report.refused] == [RefusalReason.SCALE_DTYPE]
    assert "zeros" in {n.name for n in fused.graph.nodes}, "the indices stay although a zero point went"


def test_lookups_that_are_none_of_ours() -> None:
    draft = Draft()
    floats = draft.tensor("f", torch.randn(9, 64), "parameter")
    given = draft.tensor("g", torch.randn(9, 64), "input")
    byte = draft.tensor("b", values(9, 64), "parameter")
    scale = draft.tensor("s", scales(9, 2), "parameter")
    indices = draft.tensor("i", INDICES, "input")
    outputs = [draft.call(EMBEDDING, floats, indices), draft.call(EMBEDDING, given, indices)]
    outputs.append(
        draft.call(
            EDGE.quantized_decomposed.embedding_byte.dtype, byte, scale, None, -128, 127, indices, dtype=torch.float32
        )
    )
    program = draft.program(*outputs)
    fused, report = fuse(program)
    assert (report.fused, report.refused) == ((), ())
    assert str(fused.graph) == str(program.graph)


def test_constants_without_values() -> None:
    mode = FakeTensorMode()
    for name, reason in (("w", "weight_not_constant"), ("s", "scale_not_constant"), ("z", "zero_point_not_constant")):
        draft = Draft()
        weight, scale = table(draft)
        zero_point = draft.tensor("z", torch.zeros(9, 2), "buffer")
        program = draft.program(split(draft, weight, scale, draft.tensor("i", INDICES, "input"), zero_point=zero_point))
        original = program.state_dict[f"module.{name}"]
        hollow = mode.from_tensor(original.data)
        program.state_dict[f"module.{name}"] = (
            torch.nn.Parameter(hollow, requires_grad=False) if name != "z" else hollow
        )
        (refusal,) = fuse_q4_embeddings(program)[1].refused
        assert refusal.reason == RefusalReason(reason)
        assert "values cannot be read" in refusal.detail


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 1e-42, -3.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_scale_value_fuses(special: float, dtype: torch.dtype) -> None:
    draft = Draft()
    given = scales(9, 2, dtype=dtype)
    given[3, 1] = special
    weight, scale = draft.tensor("w", values(9, 64), "parameter"), draft.tensor("s", given, "parameter")
    indices = draft.tensor("i", INDICES, "input")
    outputs = [split(draft, weight, scale, indices, output_dtype=d) for d in (torch.float32, torch.float16)]
    program = draft.program(*outputs)
    fused, report = fuse(program)
    assert [f.output_dtype for f in report.fused] == ["float32", "float16"]
    same_bits(program, fused, INDICES)


@pytest.mark.parametrize(
    "zeros", [torch.zeros(9, 2, dtype=d) for d in (torch.int8, torch.int32, torch.float16, torch.bool)]
)
def test_any_zero_zero_point_fuses(zeros: torch.Tensor) -> None:
    draft = Draft()
    weight, scale = table(draft)
    zero_point = draft.tensor("z", zeros if zeros.dtype != torch.float16 else -zeros, "non_persistent")
    program = draft.program(split(draft, weight, scale, draft.tensor("i", INDICES, "input"), zero_point=zero_point))
    fused, report = fuse(program)
    assert len(report.fused) == 1
    same_bits(program, fused, INDICES)


def test_nan_zero_point_is_not_zero() -> None:
    draft = Draft()
    weight, scale = table(draft)
    zero_point = draft.tensor("z", torch.full((9, 2), float("nan")), "buffer")
    program = draft.program(split(draft, weight, scale, draft.tensor("i", INDICES, "input"), zero_point=zero_point))
    (refusal,) = fuse(program)[1].refused
    assert refusal.reason == RefusalReason.ZERO_POINT_NONZERO
    assert "is nan at [0, 0]" in refusal.detail


def test_a_name_that_is_taken_is_not_reused() -> None:
    """The hash's own name already belongs to something else, and equal content is recognised under it."""
    draft = Draft()
    weight, scale = table(draft)
    indices = draft.tensor("i", INDICES, "input")
    name = fuse_q4_embeddings(draft.program(split(draft, weight, scale, indices)))[1].fused[0].packed
    for content in ("other", "same"):
        draft = Draft()
        data = packer.pack_linear_weight(values(9, 64))
        squatter = draft.tensor(name, data if content == "same" else data + 1, "lifted", name)
        weight, scale = table(draft)
        lookup = split(draft, weight, scale, draft.tensor("i", INDICES, "input"))
        program = draft.program(lookup, draft.call(CLONE, squatter))
        fused, report = fuse(program)
        same_bits(program, fused, INDICES)
        assert (report.fused[0].packed == name) == (content == "same")


def test_python_names_and_zero_padded_names_stay() -> None:
    """A copy of a graph by fx renames "input" and friends; the signature goes by name."""
    draft = Draft()
    weight = draft.tensor("max", values(9, 64), "parameter")
    scale = draft.tensor("w_01", scales(9, 2), "parameter")
    keep = draft.tensor("id", torch.ones(1), "parameter")
    indices = draft.tensor("input", INDICES, "input")
    program = draft.program(split(draft, weight, scale, indices), draft.call(CLONE, keep))
    fused, report = fuse(program)
    assert len(report.fused) == 1
    assert {"id", "input"} <= {n.name for n in fused.graph.nodes}
    same_bits(program, fused, INDICES)


def test_a_plain_number_may_be_the_first_input() -> None:
    """New constants go in front of everything, and take their fake mode from a tensor, wherever it is."""
    draft = Draft()
    draft.number("n", 3)
    weight, scale = table(draft)
    indices = draft.tensor("i", INDICES, "input")
    program = draft.program(split(draft, weight, scale, indices))
    fused, report = fuse(program)
    assert len(report.fused) == 1
    assert [n.name for n in fused.graph.nodes][2:4] == ["n", "i"]


def test_a_call_graph_that_names_inner_nodes() -> None:
    draft = Draft()
    weight, scale = table(draft)
    lookup = split(draft, weight, scale, draft.tensor("i", INDICES, "input"), output_dtype=torch.float16)
    program = draft.program(lookup)
    signature = program.module_call_graph[0].signature
    signature.inputs[:] = [TensorArgument("i")]
    signature.outputs[:] = [TensorArgument(lookup.name), TensorArgument(lookup.args[0].name)]
    fused, report = fuse(program)
    assert len(report.fused) == 1
    assert count(fused, DEQUANTIZE) == 1
    same_bits(program, fused, INDICES)


def test_lookups_inside_a_branch_are_left_alone_and_named() -> None:
    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", values(9, 64))
            self.register_buffer("s", scales(9, 2))

        def look(self, indices: torch.Tensor) -> torch.Tensor:
            table_ = torch.ops.torchao.dequantize_affine.default(self.w, [1, 32], self.s, None, torch.int8, -8, 7)
            return torch.ops.aten.embedding.default(table_, indices)

        def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            chosen = torch.cond(indices.sum() > 3, self.look, lambda i: self.look(i) * 2.0, (indices,))
            return chosen, self.look(indices)

    program = to_edge(torch.export.export(Branching(), (INDICES,))).exported_program()
    fused, report = fuse(program)
    assert len(report.fused) == 1
    assert [r.reason for r in report.refused] == [RefusalReason.WEIGHT_NOT_CONSTANT] * 2
    assert all("/" in r.node and "branch" in r.detail for r in report.refused)
    same_bits(program, fused, INDICES)
    # The copy owns its branches: what a later pass does to them does not reach the source.
    ours = {id(m) for m in fused.graph_module.modules()}
    assert not ours & {id(m) for m in program.graph_module.modules()}


def test_equal_tables_of_a_deep_copy_and_of_another_method_get_equal_names() -> None:
    draft = Draft()
    weight, scale = table(draft)
    program = draft.program(split(draft, weight, scale, draft.tensor("i", INDICES, "input")))
    one, other = fuse(program)[0], fuse(copy.deepcopy(program))[0]
    assert {k: bits(v) for k, v in one.constants.items()} == {k: bits(v) for k, v in other.constants.items()}


def test_wrong_kind_of_program() -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    exported = torch.export.export(Plain(), (torch.ones(2),))
    with pytest.raises(ValueError, match=r"is in the TRAINING dialect.*call executorch.exir.to_edge"):
        fuse_q4_embeddings(exported)
    with pytest.raises(TypeError, match=r"EdgeProgramManager.*pass its exported_program\(\)"):
        fuse_q4_embeddings(to_edge(exported))


def test_a_program_that_its_verifier_rejects() -> None:
    draft = Draft()
    weight, scale = table(draft)
    program = draft.program(split(draft, weight, scale, draft.tensor("i", INDICES, "input")))
    next(n for n in program.graph.nodes if n.target == DEQUANTIZE).meta.clear()
    with pytest.raises(ValueError, match=r"not valid for its own verifier, nothing was rewritten: .*missing val"):
        fuse_q4_embeddings(program)


def test_without_dim_order_the_cast_is_spelled_so_that_the_verifier_takes_it() -> None:
    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", values(9, 64))
            self.register_buffer("s", scales(9, 2, dtype=torch.float16))

        def forward(self, indices: torch.Tensor) -> torch.Tensor:
            table_ = torch.ops.torchao.dequantize_affine.default(
                self.w, [1, 32], self.s, None, torch.int8, -8, 7, torch.float16
            )
            return torch.nn.functional.embedding(indices, table_)

    for skip, cast in ((True, EDGE.aten._to_copy.default), (False, EDGE.dim_order_ops._to_dim_order_copy.default)):
        config = EdgeCompileConfig(_skip_dim_order=skip)
        program = to_edge(torch.export.export(Half(), (INDICES,)), compile_config=config).exported_program()
        fused, _ = fuse(program)
        assert count(fused, cast) == 1
        assert next(n for n in fused.graph.nodes if n.target == Q4GSW).meta["val"].dtype == torch.float32
        same_bits(program, fused, INDICES)


def test_packing_holds_the_table_its_packed_form_and_little_more() -> None:
    draft = Draft()
    weight = draft.tensor("w", torch.zeros(16384, 2048, dtype=torch.int8), "parameter")  # 32 MiB
    scale = draft.tensor("s", torch.ones(16384, 64), "parameter")
    program = draft.program(split(draft, weight, scale, draft.tensor("i", INDICES, "input")))
    tracemalloc.start()  # sees numpy's memory, which is where the packed table is
    fused, report = fuse_q4_embeddings(program)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(report.fused) == 1
    assert peak - fused.constants[report.fused[0].packed].nbytes < 16 << 20
