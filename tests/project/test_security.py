"""What docs/security.md says: files from strangers run no code, read no file of their choice and fill no memory."""

import dataclasses
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from conformance.case.case import Case, Program
from conformance.case.catalogue import load, select
from conformance.case.toml import case_from_table, case_from_toml, case_to_table
from conformance.cli.main import main
from conformance.program.module import compiled, forward_source
from conformance.proofs import certificate, layout
from conformance.proofs.certificate import Certificate, LayoutClaim, Stages
from conformance.proofs.target import TargetFacts
from conformance.results import replay
from reference.program.spec import MOST_ELEMENTS, Dequantize, Lookup, ProgramSpec, TensorSpec, Values
from tests.support.commands import with_q4gsw

SUBJECT = """
import pathlib
pathlib.Path(__file__).with_suffix(".ran").touch()

class Evil:
    def supports(self, case): return True
    def run(self, case): raise ValueError("mine")
"""
PACK = "pack/worked-bytes/flat"


def case(case_id: str) -> Case:
    return select(load(), ids=[case_id])[0]


def write(path: Path, table: dict[str, Any], subject: str = "impl") -> Path:
    path.write_text(tomli_w.dumps({"replay": {"version": replay.FORMAT, "subject": subject}, "case": table}))
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line with which a command refuses a file."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    return printed.err


def evil(folder: Path) -> tuple[Path, Path]:
    """A subject file, and what it leaves behind when it is imported."""
    folder.mkdir(exist_ok=True)
    (folder / "evil.py").write_text(SUBJECT)
    return folder / "evil.py", folder / "evil.ran"


# Text of a case.


@pytest.mark.parametrize("field", ["input_dtype", "output_dtype"])
@pytest.mark.parametrize("route", ["export", "synthetic"])
def test_a_dtype_that_is_code_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, route: str
) -> None:
    marker = tmp_path / "ran"
    table = case_to_table(case("export/embedding-4bit" if field == "output_dtype" else "export/g4"))
    table["program"]["spec"]["route"] = route
    step = next(s for s in table["program"]["spec"]["steps"] if s["op"] in {"dequantize", "packed_lookup"})
    step[field] = f"int8 if not __import__('os').system('touch {marker}') else torch.int8"
    assert field in refused(capsys, "replay", write(tmp_path / "x.toml", table))
    assert not marker.exists()


def program(**changes: Any) -> ProgramSpec:
    tensors = tuple(
        TensorSpec(name, dtype, shape, Values("zeros"), source)
        for name, dtype, shape, source in (
            ("w", "int8", (2, 32), "buffer"),
            ("s", "float32", (2, 1), "buffer"),
            ("i", "int64", (1,), "input"),
        )
    )
    steps = replace(Dequantize("dq", "w", "s", (1, 32)), **changes), Lookup("out", "dq", "i")
    return ProgramSpec(steps, tensors, route="export")


@pytest.mark.parametrize("name", ["class", "__import__", "a__b", "_a", "a.b", "a b", "1a", "a\n", "", "é", "a" * 101])
def test_names_are_identifiers(name: str) -> None:
    spec = program()
    tensors = (replace(spec.tensors[0], name=name), *spec.tensors[1:])
    steps = (replace(spec.steps[0], weight=name), spec.steps[1])
    question = Program(replace(spec, tensors=tensors, steps=steps))
    table = case_to_table(Case("a/b", "EXPORT", "4", "x", question))
    with pytest.raises(ValueError, match="no identifier"):
        case_from_table(table)


def test_the_builder_takes_no_code_even_from_a_spec_that_nobody_checked() -> None:
    with pytest.raises(ValueError, match="torch has no dtype"):
        forward_source(program(input_dtype="int8, __import__('os')"), {})
    with pytest.raises(ValueError, match="torch has no dtype"):
        forward_source(program(output_dtype="os"), {})
    compiled(forward_source(program(), {}), "x")
    for line in (
        "return torch.os.system('id')",
        "return torch.os.abort()",
        "return torch.os.abort().view(1)",
        "return torch.weight",
        "return torch.hub.load(1)",
        "return self.w.tofile(1)",
        "return self.w.scale.os",
        "return torch.clone(self.w).apply_(self.w)",
        "return torch.ops.aten.mm.default(1)",
        "return torch.load",
        "return __import__",
        "return open(0)",
        "return self.__class__",
        "return torch._C",
        "import os",
        "return [x for x in self]",
        "return lambda: 0",
        "return b''",
        "return f'{self}'",
    ):
        with pytest.raises(ValueError, match="line 2 of the forward"):
            compiled(f"def forward(self):\n    {line}\n", "x")


def altered(value: Any, text: str) -> Iterator[Any]:
    """``value`` with another text in one place, for every place that has one."""
    if type(value) is str:
        yield text
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            for other in altered(getattr(value, field.name), text):
                yield replace(value, **{field.name: other})  # type: ignore[type-var]
    elif isinstance(value, tuple):
        for at, one in enumerate(value):
            for other in altered(one, text):
                yield (*value[:at], other, *value[at + 1 :])


def parts(one: Case) -> Iterator[tuple[str, ...]]:
    """What kinds of things are in a case."""
    kind = type(one.question).__name__
    yield (kind,)
    if one.program:
        things = (*one.program.steps, *one.program.tensors, *one.program.tables)
        yield from ((kind, one.program.route, type(thing).__name__) for thing in things)


#: Cases that between them have every kind of question, step, tensor and table.
KINDS = {part: one for one in load() for part in parts(one)}


@pytest.mark.parametrize("one", dict.fromkeys(KINDS.values()), ids=lambda c: c.id)
def test_every_text_of_a_question_is_of_its_vocabulary(one: Case) -> None:
    count = 0
    for question in altered(one.question, "x'; import os #"):
        count += 1
        with pytest.raises(ValueError, match=r"."):
            case_from_table(case_to_table(replace(one, question=question)))
    assert count > 2
    for other in altered(replace(one, detects=one.detects), "\x1b[2J"):
        with pytest.raises(ValueError, match=r"."):
            case_from_table(case_to_table(other))


# Sizes.


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("quantize/*", {"vocab_size": 1 << 31}),
        ("quantize/*", {"group_size": -1}),
        (PACK, {"vocab_size": 1 << 31}),
        (PACK, {"embed_dim": -1}),
        ("kernel/block-buffer/*", {"vocab_size": 1 << 31}),
        ("kernel/block-buffer/*", {"group_size": 0}),
        ("kernel/block-buffer/*", {"indices_shape": [1 << 20, 1 << 20]}),
        ("kernel/block-buffer/*", {"indices_shape": [1] * 1000}),
        ("kernel/block-buffer/*", {"indices_shape": [1 << 20]}),
        ("kernel/block-buffer/*", {"values": {"pattern": "uniform", "seed": 1 << 64}}),
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_allocated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, change: dict[str, Any]
) -> None:
    table = case_to_table(case(name))
    kind = next(kind for kind in ("quantize", "table", "dispatch") if kind in table)
    table[kind] |= change
    refused(capsys, "replay", write(tmp_path / "x.toml", table))


@pytest.mark.parametrize("shape", [(1 << 31, 64), (1 << 40, 0), (-1,), (1,) * 9])
def test_a_program_that_no_memory_holds_is_refused(shape: tuple[int, ...]) -> None:
    spec = program()
    for number in range(3):
        tensors = tuple(replace(t, shape=shape) if n == number else t for n, t in enumerate(spec.tensors))
        with pytest.raises(ValueError, match=r"elements; at most|sizes from 0 on"):
            case_from_table(case_to_table(Case("a/b", "EXPORT", "4", "x", Program(replace(spec, tensors=tensors)))))


def test_neither_steps_nor_chains_nor_their_number_fill_memory() -> None:
    spec = program()
    long = replace(spec.steps[0], weight_ops=("clone",) * (MOST_ELEMENTS // 64))
    many = tuple(Lookup(f"out{n}", "dq", "i") for n in range(1000))
    for steps in ((long, spec.steps[1]), (spec.steps[0], *many)):
        with pytest.raises(ValueError, match="at most"):
            case_from_table(case_to_table(Case("a/b", "EXPORT", "4", "x", Program(replace(spec, steps=steps)))))


# Subjects.


@pytest.mark.parametrize("words", [("replay",), ("bisect", "stage"), ("bisect", "sizes", "--axis", "embed_dim")])
def test_a_replay_file_runs_no_subject_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    path, marker = evil(tmp_path)
    for subject in (f"{path}:Evil", f"executorch-src:{tmp_path}"):
        file = write(tmp_path / "x.toml", case_to_table(case(PACK)), subject)
        assert "runs only if --subject names it" in refused(capsys, *words, file)
    assert not marker.exists()


def test_the_command_line_may_name_a_subject(tmp_path: Path) -> None:
    path, marker = evil(tmp_path)
    file = write(tmp_path / "x.toml", case_to_table(case(PACK)), f"{path}:Evil")
    assert main(["replay", str(file), "--subject", f"{path}:Evil"]) == 1
    assert marker.exists()


def test_the_command_that_a_run_prints_names_the_subject_and_can_be_pasted(tmp_path: Path) -> None:
    path, _ = evil(tmp_path / "it's a folder")
    words = ["run", "--subject", f"{path}:Evil", "--case", PACK, "--report", str(tmp_path / "r"), "--workers", "0"]
    env = with_q4gsw(tmp_path) | {"CI": "true"}  # where pytest would print each failure a second time
    run = subprocess.run(["q4gsw", *words], env=env, capture_output=True, text=True, check=False)
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("  replay:"))
    command = line.removeprefix("  replay:").strip()
    assert shlex.split(command)[-2:] == ["--subject", f"{path}:Evil"]
    again = subprocess.run(["bash", "-c", command], cwd="/", env=env, capture_output=True, text=True, check=False)
    assert (again.returncode, "(the same failure)" in again.stdout) == (1, True), again.stderr


# Certificates.


def sealed(folder: Path, facts: TargetFacts) -> Path:
    claim = LayoutClaim(dict.fromkeys(layout.case_names(), "proven"))
    timing = certificate.timing(0.0, 1.0, 1.0, vars(Stages()))
    versions = certificate.versions(facts.subject)
    certificate.write(folder / "x.json", Certificate(claim, facts, (), versions, timing))
    return folder / "x.json"


def test_a_certificate_runs_no_subject_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, marker = evil(tmp_path)
    file = sealed(tmp_path, TargetFacts(f"{path}:Evil"))
    for words in ((), ("--no-rerun",), ("--subject", "impl"), ("--subject", f"{path}:Other")):
        assert main(["prove", "check", str(file), *words]) == 2
        assert "runs only if --subject names it" in capsys.readouterr().out
        assert not marker.exists()
    assert main(["prove", "check", str(file), "--subject", f"{path}:Evil"]) == 1
    assert marker.exists(), "the command line may name it"


@pytest.mark.parametrize("shader", ["{}/secret", "../../../../etc/passwd", "vulkan/glsl/../../README.md"])
def test_a_certificate_reads_no_shader_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shader: str
) -> None:
    os.mkfifo(tmp_path / "secret")  # whoever opens it hangs
    committed = next(iter(sorted((Path(__file__).parents[2] / "docs/certificates").rglob("arithmetic-*.json"))))
    stored = certificate.read(committed)
    certificate.write(
        tmp_path / "x.json", replace(stored, target=replace(stored.target, shader=shader.format(tmp_path)))
    )
    monkeypatch.setattr("conformance.proofs.target.derived", lambda _: pytest.fail("its shader was read"))
    assert main(["prove", "check", str(tmp_path / "x.json")]) == 2
    assert "is read only if --shader names it" in capsys.readouterr().out


def test_what_a_certificate_says_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sealed(tmp_path, TargetFacts("reference"))
    stored = certificate.read(file)
    certificate.write(file, replace(stored, mismatches=("x\nother.json: holds; \x1b[2J",)))
    assert main(["prove", "check", str(file), "--no-rerun"]) == 1
    printed = capsys.readouterr()
    assert (printed.out.count("\n"), printed.err) == (1, "")  # nothing is drawn, and nothing is said of it
    assert "\x1b" not in printed.out


# Every reader.


@pytest.mark.parametrize("text", ["[" * 100_000, "a = " + "[" * 100_000, '{"a":' * 100_000, "\0", "a = 1" + "0" * 5000])
def test_deep_and_odd_texts_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for name in ("x.toml", "x.json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "r").mkdir()
    (tmp_path / "r/verdicts.jsonl").write_text(f"{text}\n{text}\n")
    (tmp_path / "k").mkdir()
    (tmp_path / "k/case.json").write_text(text)
    x = tmp_path / "x.toml"
    refused(capsys, "replay", x)
    refused(capsys, "bisect", "stage", x)
    refused(capsys, "run", "--case", PACK, "--expectations", x, "--report", tmp_path / "new")
    refused(capsys, "report", tmp_path / "r")
    refused(capsys, "diff", tmp_path / "r", tmp_path / "r")
    refused(capsys, "kit", "judge", tmp_path / "k", tmp_path)
    for profile in ("x.toml", "x.json"):
        words = ("kit", "judge", tmp_path / "k", tmp_path, "--device-profile", tmp_path / profile)
        refused(capsys, *words)
    assert main(["prove", "check", str(tmp_path / "x.json")]) == 1
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(ValueError, match=r"^case\.toml: not TOML"):
        case_from_toml(text, "case.toml")


def test_a_replay_file_is_a_regular_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "x.toml")
    assert "no regular file" in refused(capsys, "replay", tmp_path / "x.toml")
    assert "no regular file" in refused(capsys, "replay", "/dev/zero")
