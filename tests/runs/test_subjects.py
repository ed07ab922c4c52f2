"""The built-in subjects: each stage's answer passes or fails the judge for the right reason."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from conformance.case.case import Case, Dispatch, EndToEnd, Program, Table
from conformance.case.single_table import SingleTable, single_table
from conformance.harness.errors import EnvironmentProblem
from conformance.harness.observation import Arrays, Graph, Observation, Raised, Refused
from conformance.harness.subject import load
from conformance.judging.judge import judge
from conformance.observe.snapshot import differences, graph_text, source_snapshot
from conformance.program.build import build
from conformance.pte import device
from conformance.pte.device import device_lines, open_device
from conformance.pte.spirv import is_precise
from conformance.subjects import executorch, impl
from conformance.subjects.stages import LoweringRefused, observe_lowering
from impl.errors import VulkanUnavailable
from impl.kernel import embedding_shader
from reference.program.spec import Values

CODES = Values("uniform", 5, -8, 7)


def match(**parameters: Any) -> Case:
    program = single_table(SingleTable(**{"route": "synthetic", **parameters}))
    return Case("test/match", "MATCH", "5", "a test", Program(program))


def pack(layout: str, vocab_size: int = 9, embed_dim: int = 32) -> Case:
    table = Table(vocab_size, embed_dim, CODES, layout)
    return Case("test/pack", "PREPACK" if layout == "blocks" else "PACK", "1", "a test", table)


def kernel(**fields: Any) -> Case:
    return Case("test/kernel", "KERNEL", "7", "a test", Dispatch(**fields))


def end_to_end(case: Case) -> Case:
    return dataclasses.replace(kernel(), question=EndToEnd(spec=case.program))


def verdict(case: Case, observation: Observation) -> str:
    found = judge(case, observation, "test")
    return found.signature or found.outcome


def answer(name: str, case: Case) -> str:
    subject = load(name)
    assert subject.supports(case) is None
    return verdict(case, subject.run(case))


@pytest.mark.parametrize("layout", ["flat", "linear_weight", "blocks"])
def test_impl_packs(layout: str) -> None:
    assert answer("impl", pack(layout)) == "PASS"


def test_a_planted_packing_is_used_and_found() -> None:
    case = pack("linear_weight")

    def swapped(values: Any) -> Any:
        bytes_ = np.asarray(values[:, 1::2] + 8).astype(np.uint8)
        return bytes_ | (np.asarray(values[:, ::2] + 8).astype(np.uint8) << 4)

    assert verdict(case, impl.run_pack(case.question, swapped)) == "PACK/layout/nibble_order"
    blocks = pack("blocks")
    assert verdict(blocks, impl.run_pack(blocks.question, prepare=swapped)).startswith("PREPACK/layout/")


def test_impl_matches_and_a_planted_fusion_is_used_and_found() -> None:
    case = match(dtype="float16", reads=("weight",))
    assert answer("impl", case) == "PASS"
    refused = match(zero_point="ones")
    assert answer("impl", refused) == "PASS"

    class Nothing:
        fused = refused = ()

    assert (
        verdict(case, impl.run_match(case.program, lambda program: (program, Nothing)))
        == "MATCH/decision/missed_fusion:no_reason"
    )


@pytest.mark.parametrize("layout", ["flat", "block"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_impl_runs_arrays_and_whole_programs(layout: str, dtype: str) -> None:
    case = kernel(weight_layout=layout, output_dtype=dtype, scale_dtype=dtype)
    assert answer("impl", case) == "PASS"
    variant = EndToEnd(weight_layout=layout, output_dtype=dtype, scale_dtype=dtype, spec=match(dtype=dtype).program)
    assert answer("impl", dataclasses.replace(case, question=variant)) == "PASS"


def test_impl_reports_what_the_judge_needs() -> None:
    case = end_to_end(match(route="torchao", linear="after"))
    observation = impl.run_kernel(case.question)
    assert isinstance(observation, Arrays)
    facts = observation.facts
    assert facts.provenance["tensor_type"] == "IntxUnpackedToInt8Tensor"
    assert facts.provenance["route"] == "torchao"
    assert (facts.damage, facts.unwritten, facts.io_storage, facts.precise) == ("", None, "buffer", True)
    assert len(facts.spirv_sha256) == 64
    assert facts.device
    assert facts.driver
    modes = open_device().info.float_modes
    assert facts.execution_modes == tuple(sorted(modes))
    bare = impl.run_kernel(Dispatch(float_modes="none"))
    assert isinstance(bare, Arrays)
    assert bare.facts.execution_modes == ()


def test_indices_outside_the_table_reach_the_shader() -> None:
    case = kernel(indices_shape=(3,), index_values=Values("ramp", low=15, high=17))
    assert answer("impl", case) == "PASS"
    reason = load("executorch").supports(case)
    assert reason is not None
    assert "outside the table" in reason


def test_a_program_that_is_refused_is_no_dispatch() -> None:
    case = end_to_end(match(zero_point="ones"))
    observation = impl.run_kernel(case.question)
    assert isinstance(observation, Refused)
    assert observation.reason == "zero_point_nonzero"
    assert judge(case, observation, "impl").outcome == "FAIL"


def test_a_machine_without_vulkan_is_not_the_player_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise VulkanUnavailable("no driver: apt-get install mesa-vulkan-drivers")

    monkeypatch.setattr(device, "_open", [])
    monkeypatch.setattr(device, "Device", nothing)
    with pytest.raises(EnvironmentProblem, match="mesa-vulkan-drivers"):
        impl.run_kernel(Dispatch())


def test_a_broken_device_is_opened_anew() -> None:
    first = open_device()
    assert open_device() is first
    first.broken = True
    assert open_device() is not first


def test_devices_are_listed() -> None:
    lines = device_lines()
    assert lines
    assert all("shader variants" in line for line in lines)


def test_precision_is_read_off_the_module() -> None:
    shader = embedding_shader(open_device().info, impl.variant_of(Dispatch()))
    words = np.frombuffer(shader.spirv, "<u4").copy()
    assert is_precise(words.tobytes())
    at = 5
    while at < len(words):
        if words[at] & 0xFFFF == 71 and words[at + 2] == 42:  # OpDecorate NoContraction
            words[at + 2] = 0  # RelaxedPrecision
        at += int(words[at]) >> 16
    assert not is_precise(words.tobytes())


@pytest.mark.parametrize(
    ("parameters", "signature"),
    [
        ({}, "PASS"),
        ({"group_size": 2}, "MATCH/decision/undue_fusion:group_size_not_multiple_of_4"),
        ({"dtype": "float16"}, "MATCH/dtype_shape/dtype"),
        ({"reads": ("weight",)}, "MATCH/dtype_shape/dtype"),
        ({"weight_source": "mutated"}, "MATCH/decision/undue_fusion:weight_written"),
    ],
    ids=str,
)
def test_the_wheel_s_pass_is_judged(parameters: dict[str, Any], signature: str) -> None:
    """Measured on executorch 1.5.1; a wheel that repairs one of these changes this table."""
    assert answer("executorch", match(**parameters)) == signature


def test_what_the_wheel_s_pass_raises_comes_out_as_itself() -> None:
    with pytest.raises(AssertionError, match=r"requires symmetric quantization.*quantized_embedding\.py:\d+"):
        executorch.run_match(match(zero_point="ones").program)


def test_the_wheel_packs_and_computes() -> None:
    assert answer("executorch", pack("linear_weight", embed_dim=6)) == "PASS"
    assert "flat" in str(load("executorch").supports(pack("flat")))
    assert "no Vulkan runtime" in str(load("executorch").supports(pack("blocks")))
    assert answer("executorch", kernel(scales=Values("special_scales", 3))) == "PASS"
    assert answer("executorch", kernel(weight_layout="flat", scale_dtype="float16")) == "PASS"
    assert "float32" in str(load("executorch").supports(kernel(output_dtype="float16")))
    assert "textures" in str(load("executorch").supports(kernel(io_storage="texture3d")))
    assert answer("executorch", end_to_end(match())) == "PASS"


def test_handing_a_program_to_the_wheel_does_not_touch_it() -> None:
    built = build(match(lookups=2).program)  # type: ignore[arg-type]
    before = source_snapshot(built)
    given = executorch.shallow_copy(built.program)
    assert given.state_dict["weight"] is built.program.state_dict["weight"]
    executorch.fuse_patterns(built.program)
    assert differences(before, source_snapshot(built)) == ()


def test_remembered_pattern_graphs_change_nothing() -> None:
    """The wheel exports its pattern graphs on every call; ours keeps them. Same results either way."""
    from executorch.backends.vulkan.patterns.pattern_registry import fusable_patterns

    case = match(lookups=2, group_size=16)
    assert case.program is not None
    executorch.remember_pattern_graphs()
    remembered = executorch.fuse_patterns(build(case.program).program)
    kept = {name: entry.get_graphs_fn for name, entry in fusable_patterns.items()}
    try:
        for entry in fusable_patterns.values():
            entry.get_graphs_fn = getattr(entry.get_graphs_fn, "__wrapped__", entry.get_graphs_fn)
        fresh = executorch.fuse_patterns(build(case.program).program)
    finally:
        for name, function in kept.items():
            fusable_patterns[name].get_graphs_fn = function
    assert graph_text(remembered.graph) == graph_text(fresh.graph)
    for name, tensor in fresh.state_dict.items():
        assert torch.equal(remembered.state_dict[name], tensor)


def test_stages_that_a_subject_lacks_are_unsupported_with_a_reason() -> None:
    case = dataclasses.replace(match(), stage="PREPACK")
    assert "no Vulkan runtime to run stage PREPACK" in str(load("executorch").supports(case))
    assert load("impl").supports(case) is None
    assert isinstance(Raised("x", "y"), Observation)
    assert isinstance(impl.run_match(match().program), Graph)


def test_a_lowering_meets_torch_as_it_is() -> None:
    """The suite replaces functions of torch for its own exports only."""
    from torch._export.utils import _collect_all_valid_cia_ops
    from torch._ops import OperatorBase
    from torch.export import decomp_utils

    registering, inside = OperatorBase.py_impl, []

    def lower(program: Any, options: Any) -> bytes:
        inside.extend([OperatorBase.py_impl, decomp_utils._collect_all_valid_cia_ops])
        raise LoweringRefused("any", "reason")

    case = Case("test/lower", "LOWER", "6", "a test", Program(single_table(SingleTable(route="export"))))
    assert observe_lowering(case, lower) == Refused("any", "reason")
    assert inside == [registering, _collect_all_valid_cia_ops]
