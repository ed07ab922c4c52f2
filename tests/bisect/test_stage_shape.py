"""Bisection over stages and over sizes: the culprit is named, or the reason why there is none."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from conformance.bisect.sizes import legal, program_sizes, resized, size_of
from conformance.bisect.stages import culprit, siblings
from conformance.case.case import Case, Dispatch, EndToEnd, Program, Table, check
from conformance.case.operands import operands, table_values
from conformance.case.single_table import SingleTable, single_table
from conformance.cli import main
from conformance.results import replay
from conformance.results.verdict import Verdict
from reference.program.evaluate import evaluate
from reference.program.fusibility import violations
from reference.program.spec import Values

SIZED = Path(__file__).parents[1] / "fakes/right_up_to_a_size.py"
MINIATURE = Path(__file__).parents[1] / "data/executorch"
PACK = Case("test/pack", "PACK", "1", "a test", Table(40, 64, Values("uniform", 5, -8, 7)))


def program(**parameters: Any) -> Case:
    return Case("test/match", "MATCH", "5", "a test", Program(single_table(SingleTable(**parameters))))


def test_a_packer_s_bug_is_the_packer_s_although_the_matcher_calls_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path / "cache"))
    tree = tmp_path / "tree"
    shutil.copytree(MINIATURE, tree, ignore=shutil.ignore_patterns("__pycache__"))
    packer = tree / "backends/vulkan/patterns/weight_packing_utils.py"
    packer.write_text(packer.read_text().replace("values + 8", "values + 7"))
    path = replay.write(
        tmp_path, program(route="synthetic"), Verdict("test/match", "MATCH", "x", "FAIL", "MATCH/array/values"), {}
    )
    assert main.main(["bisect", "stage", str(path), "--subject", f"executorch-src:{tree}"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"MATCH +FAIL", said)
    assert "first bad: PACK (PACK/layout/" in said
    again = re.search(r"bad by hand: +q4gsw (replay \S+ --subject \S+)", said)
    assert again
    assert main.main(again[1].split()) == 1
    assert "PACK" in capsys.readouterr().out


def test_an_export_s_bug_is_named_before_what_it_breaks_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    planted = Path(__file__).parents[1] / "planted/sections.py"
    words = ["bisect", "stage", "match/torchao/float16", "--subject", f"{planted}:ExportsFloat32"]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    for stage in ("QUANTIZE", "MATCH", "PACK", "LOWER", "PREPACK", "KERNEL", "RUN"):
        assert re.search(rf"^  {stage} +PASS$", said, re.MULTILINE), stage
    assert "first bad: EXPORT (EXPORT/decision/form)" in said
    assert "expected torchao.dequantize_affine block_size=[1, 32]" in said
    assert "output_dtype=float16, got torchao.dequantize_affine" in said
    assert "before:    QUANTIZE PASS" in said


def test_every_stage_of_a_program_is_derived_from_it() -> None:
    case = program(route="torchao", dtype="float16")
    found = {c.stage: check(c) for c in siblings(case)}
    assert list(found) == ["QUANTIZE", "EXPORT", "MATCH", "PACK", "LOWER", "PREPACK", "KERNEL", "RUN"]
    assert found["MATCH"] is case
    kernel = found["KERNEL"]
    assert isinstance(kernel.question, EndToEnd)
    assert (kernel.question.scale_dtype, kernel.question.output_dtype) == ("float16", "float16")
    table = found["PACK"].question
    assert isinstance(table, Table)
    assert (table_values(table) == operands(kernel.question).values).all()
    assert [c.stage for c in siblings(PACK)] == ["PACK", "PREPACK"]
    bare = Case("test/kernel", "KERNEL", "7", "a test", Dispatch(weight_layout="flat"))
    assert [c.stage for c in siblings(bare)] == ["PACK", "PREPACK", "KERNEL"]
    odd = program(route="synthetic", dtype="bfloat16")
    assert not {"EXPORT", "KERNEL"} & {c.stage for c in siblings(odd)}


def test_a_replay_file_s_subject_and_signature_are_the_ones_sought(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(signature: str) -> tuple[int, str]:
        subject = f"{SIZED}:RightBelow24Rows"
        recorded = Verdict("test/pack", "PACK", subject, "FAIL", signature)
        code = main.main(["bisect", "stage", str(replay.write(tmp_path, PACK, recorded, {})), "--subject", subject])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = stage("PACK/layout/nibble_order")
    assert code == 0
    assert "first bad: PACK (PACK/layout/nibble_order)" in said
    code, said = stage("PACK/layout/offset")
    assert code == 1
    assert "does not fail as recorded: FAIL PACK/layout/nibble_order; sought is PACK/layout/offset" in said


@pytest.mark.parametrize("words", [("stage",), ("sizes", "--axis", "vocab_size")])
def test_a_broken_harness_is_nobody_s_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    path = replay.write(tmp_path, PACK, Verdict("test/pack", "PACK", "x", "FAIL"), {})
    asked = ["bisect", words[0], str(path), *words[1:], "--subject", f"{SIZED}:LacksADriver"]
    assert main.main(asked) == 1
    said = capsys.readouterr()
    assert "PACK/raised/EnvironmentProblem" in said.err
    assert "apt-get install some-driver: this is not the subject's" in said.err
    assert "first bad" not in said.out


@pytest.mark.parametrize("words", [("stage",), ("sizes", "--axis", "vocab_size")])
def test_a_flaky_subject_stops_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    path = replay.write(tmp_path, PACK, Verdict("test/pack", "PACK", "x", "FAIL"), {})
    asked = ["bisect", words[0], str(path), *words[1:], "--subject", f"{SIZED}:WrongEveryThirdTime"]
    assert main.main([*asked, "--repeat", "3"]) == 1
    said = capsys.readouterr().err
    assert "is flaky: 3 runs do not agree: PASS, PASS, FAIL PACK/layout/nibble_order" in said
    assert said.count("\n") == 1
    assert main.main([*asked, "--repeat", "0"]) == 2


def test_the_first_stage_that_is_wrong_is_the_culprit() -> None:
    def verdict(stage: str, signature: str) -> Verdict:
        return Verdict("x/y", stage, "s", "FAIL" if signature else "PASS", signature)

    decided = [verdict("MATCH", "MATCH/decision/missed_fusion:no_reason"), verdict("PACK", "PACK/layout/x")]
    assert culprit(decided) == decided[0]
    bits = [
        verdict("MATCH", "MATCH/array/values"),
        verdict("PACK", "PACK/layout/x"),
        verdict("RUN", "RUN/array/values"),
    ]
    assert culprit(bits) == bits[1]
    assert culprit([bits[0], verdict("PACK", ""), bits[2]]) == bits[0]
    assert culprit([verdict("MATCH", "")]) is None


def shape(tmp_path: Path, name: str, *words: str) -> int:
    path = replay.write(tmp_path, PACK, Verdict("test/pack", "PACK", "x", "FAIL"), {})
    return main.main(["bisect", "sizes", str(path), "--subject", f"{SIZED}:{name}", *words])


def test_the_boundary_of_an_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shape(tmp_path, "RightBelow24Rows", "--axis", "vocab_size") == 0
    said = capsys.readouterr().out
    assert "first bad: vocab_size 24 (PACK/layout/nibble_order); 23 is right" in said
    assert len(re.findall(r"^  vocab_size", said, re.MULTILINE)) <= 2 + 6 + 6
    for which, code in (("good", 0), ("bad", 1)):
        by_hand = re.search(rf"{which} by hand: +q4gsw (\S+ \S+ \S+ \S+)", said)
        assert by_hand
        assert main.main(by_hand[1].split()) == code
    capsys.readouterr()
    assert shape(tmp_path, "RightAbove192Columns", "--axis", "embed_dim", "--good", "512") == 0
    assert "first bad: embed_dim 192 (PACK/layout/nibble_order); 224 is right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words", "code", "said"),
    [
        ("WrongWhereOdd", ("--good", "2", "--bad", "39"), 1, "vocab_size is not monotone: right at ["),
        ("RightBelow24Rows", ("--bad", "23"), 1, "23 (the bad end) is right"),
        ("RightBelow24Rows", ("--good", "30"), 1, "30 (the good end) is wrong"),
        ("AnotherFailureInBetween", (), 1, "RuntimeError: no memory; sought is PACK/layout/nibble_order"),
        (
            "RightBelow24Rows",
            ("--axis", "embed_dim", "--good", "33"),
            2,
            "no legal embed_dim of test/pack; near it are 32",
        ),
        ("RightBelow24Rows", ("--axis", "group_size"), 2, "has no axis group_size"),
    ],
)
def test_what_is_no_boundary_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: tuple[str, ...], code: int, said: str
) -> None:
    assert shape(tmp_path, name, "--axis", "vocab_size", *words) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("route", ["synthetic", "torchao"])
@pytest.mark.parametrize(("axis", "size"), [("vocab_size", 3), ("embed_dim", 192), ("group_size", 16), ("indices", 11)])
def test_a_resized_program_is_whole(route: str, axis: str, size: int) -> None:
    case = program(route=route, linear="after")
    other = resized(case, axis, size)
    assert size_of(other, axis) == size
    assert other.program is not None
    assert all(not reasons for reasons in violations(other.program).values())
    lookup = other.program.lookups()[0]
    sizes = program_sizes(other.program)
    got = evaluate(other.program)[lookup.name]
    assert got.shape[-1] == sizes["embed_dim"]
    assert got[..., 0].size == sizes["indices"]


def test_legal_sizes_are_those_of_the_contract() -> None:
    case = program(route="synthetic", group_size=32)
    assert legal(case, "embed_dim", 130) == [32, 64, 96, 128]
    assert legal(case, "group_size", 64) == [4, 8, 16, 32, 64]
    kernel = Case("test/kernel", "KERNEL", "7", "a test", Dispatch(group_size=48, embed_dim=96))
    assert legal(kernel, "embed_dim", 200) == [96, 192]
    assert size_of(resized(kernel, "indices", 9), "indices") == 9
