"""Contract 5.6 on generated programs: an already fused one, a deep copy, several methods of one program."""

import copy
import warnings
from typing import Any

import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge

from conformance.observe.snapshot import differences, program_snapshot, source_snapshot
from conformance.program.build import build
from impl.matcher import fuse_q4_embeddings
from reference.program.fusibility import violations
from reference.program.spec import ProgramSpec
from tests.cases.test_generate import SPECS
from tests.support.program_checks import bits

FUSIBLE = [s for s in SPECS[:400] if not all(violations(s).values())][:40]
REFUSED = [s for s in SPECS[:400] if all(violations(s).values())][:15]


@pytest.mark.parametrize("specs", [FUSIBLE, REFUSED], ids=["fusible", "refused"])
def test_fusing_again_and_fusing_a_copy(specs: list[ProgramSpec]) -> None:
    for spec in specs:
        built = build(spec)
        before = source_snapshot(built)
        twin = copy.deepcopy(built.program)
        once, report = fuse_q4_embeddings(built.program)
        of_copy, same_report = fuse_q4_embeddings(twin)
        assert differences(program_snapshot(once), program_snapshot(of_copy)) == ()
        assert same_report == report
        again, second = fuse_q4_embeddings(once)
        assert differences(program_snapshot(once), program_snapshot(again)) == ()
        assert not second.fused
        assert [r.reason for r in second.refused] == [r.reason for r in report.refused]
        copied_again, _ = fuse_q4_embeddings(copy.deepcopy(once))
        assert differences(program_snapshot(once), program_snapshot(copied_again)) == ()
        assert differences(before, source_snapshot(built)) == ()


def test_the_comparison_can_fail() -> None:
    built = build(FUSIBLE[0])
    fused, _ = fuse_q4_embeddings(built.program)
    assert differences(program_snapshot(built.program), program_snapshot(fused))
    edited = copy.deepcopy(fused)
    next(iter(edited.constants.values())).zero_()
    assert differences(program_snapshot(fused), program_snapshot(edited))


class Lookup(torch.nn.Module):
    """A lookup into a table that another method may share."""

    def __init__(self, weight: torch.Tensor, zero_point: int, group: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        scales = torch.arange(1, 1 + 9 * 64 // group).reshape(9, -1) / 8
        self.register_buffer("scale", scales.to(dtype))
        self.register_buffer("zero_point", torch.full(scales.shape, zero_point, dtype=torch.int8))
        self.group, self.dtype = group, dtype

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Dequantize and gather."""
        bounds = (torch.int8, -8, 7)
        table = torch.ops.torchao.dequantize_affine(
            self.weight, [1, self.group], self.scale, self.zero_point, *bounds, output_dtype=self.dtype
        )
        return torch.nn.functional.embedding(indices, table)


def test_each_method_of_a_program_is_fused_for_itself() -> None:
    weight = (torch.arange(9 * 64) * 7 % 16 - 8).to(torch.int8).reshape(9, 64)
    models = {
        "forward": Lookup(weight, 0, 32, torch.float32),
        "prefill": Lookup(weight, 0, 8, torch.float16),
        "shifted": Lookup(weight, 1, 32, torch.float32),
    }
    indices = torch.tensor([[8, 0], [3, 8]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        programs = {name: torch.export.export(model, (indices,)) for name, model in models.items()}
        manager = to_edge(programs, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    edge = {name: manager.exported_program(name) for name in models}
    before = {name: program_snapshot(program, identity=True) for name, program in edge.items()}
    results: dict[str, Any] = {name: fuse_q4_embeddings(program) for name, program in edge.items()}
    for name, (program, report) in results.items():
        assert (len(report.fused), len(report.refused)) == ((0, 1) if name == "shifted" else (1, 0))
        got, wanted = program.module()(indices), models[name](indices)
        assert got.dtype == wanted.dtype
        assert bits(got) == bits(wanted)
        assert differences(before[name], program_snapshot(edge[name], identity=True)) == ()
    packed = [results[name][1].fused[0].packed for name in ("forward", "prefill")]
    assert packed[0] == packed[1], "one table, one name: the file stores it once"
    assert bits(results["forward"][0].constants[packed[0]]) == bits(results["prefill"][0].constants[packed[1]])
