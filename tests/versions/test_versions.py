"""A subject beside released versions: made of small wheels, offline, each in an environment of its own."""

import re
import subprocess
import zipfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from conformance.cli import main
from conformance.cli import versions as cli_versions
from conformance.results.expectations import Expectations, KnownFailure
from conformance.results.verdict import Stream, Verdict, Writer, read
from conformance.runs import run as runner
from conformance.sources import releases
from conformance.sources.releases import Unsatisfiable, environment
from conformance.versions import judge
from conformance.versions.judge import RunBroke, chosen, gate, judge_version
from conformance.versions.matrix import Judged, changes, tables

PACKS = f"{Path(__file__).parents[1] / 'fakes/by_release.py'}:Packs"
PINNED = "1.5.1"
KNOWN = KnownFailure("one-row", ("PACK/layout/x",), ("pack/*/v1",), "a mistake", "https://example.org/1")
EXPECTED = Expectations({"pack/flat/v1": (KNOWN, "PACK/layout/x")})


def wheel(folder: Path, package: str, version: str, files: dict[str, str], *needs: str) -> None:
    """Write a wheel of pure Python."""
    folder.mkdir(exist_ok=True)
    info = f"{package}-{version}.dist-info"
    required = "".join(f"Requires-Dist: {need}\n" for need in needs)
    whole = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{required}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*whole, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as archive:
        for name, text in {**whole, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)


def release(folder: Path, version: str, flip: int = 0, exir: str = "", needs: str = "torchao==99.0") -> None:
    """Write a wheel of an executorch that imports fast, and of the torchao it needs."""
    files = {"executorch/__init__.py": "", "executorch/exir/__init__.py": exir}
    wheel(folder, "executorch", version, {**files, "executorch/packer.py": f"FLIP = {flip}\n"}, needs)
    wheel(folder, "torchao", "99.0", {"torchao/__init__.py": ""})


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where reports without a name go
    return tmp_path / "wheels"


def asked(wheels: Path, *words: str) -> int:
    selection = ("--subject", PACKS, "--stages", "PACK", "--level", "smoke")
    return main.main(["versions", "--wheels", str(wheels), *selection, *words])


def test_versions_side_by_side(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be had or imported is listed; a version before the pinned one is wrong, and not gated."""
    release(wheels, "1.3.0")
    release(wheels, "1.4.0")
    release(wheels, "1.5.0", flip=1)
    release(wheels, "9.0.0", exir="import no_such_module\n")
    release(wheels, "9.1.0", needs="numpy>=99")
    report = tmp_path / "r"
    assert asked(wheels, "--since", "1.4", "--report", str(report)) == 0
    said = capsys.readouterr().out
    assert re.search(r"^\| outcome +\| 1\.4\.0 \| 1\.5\.0 \|$", said, re.MULTILINE)
    assert re.search(r"^\| FAIL +\| +0 \| +[1-9]\d* \|$", said, re.MULTILINE)
    assert re.search(r"^1\.4\.0 -> 1\.5\.0: new failures:[1-9]", said, re.MULTILINE)
    assert "not judged: executorch 9.0.0: does not import beside this environment: ModuleNotFoundError" in said
    assert "not judged: executorch 9.1.0: executorch 9.1.0 needs numpy>=99, and numpy 2" in said
    assert "gate: no version from 1.5.1 on was judged; versions before 1.5.1 are shown, not gated" in said
    names = {"executorch-1.4.0", "executorch-1.5.0", "matrix.md"}
    assert {p.name for p in report.iterdir()} == names
    assert {p.name for p in (report / "executorch-1.5.0").iterdir()} > {"summary.md", "report.html", "verdicts.jsonl"}
    versions_there = read(report / "executorch-1.5.0" / "verdicts.jsonl").header["versions"]
    assert (versions_there["executorch"], versions_there["torchao"]) == ("1.5.0", "99.0")
    assert "| FAIL " in (report / "matrix.md").read_text()
    assert "new failure: pack/" in (report / "matrix.md").read_text()

    monkeypatch.setattr(runner, "versions", lambda: {"executorch": "1.5.0"})  # the same, were 1.5.0 the pinned one
    assert asked(wheels, "--versions", "1.5.0") == 1
    assert re.search(r"gate: executorch 1\.5\.0: [1-9]\d* unexpected\n  FAIL pack/", capsys.readouterr().out)


def test_one_case_beside_every_release(wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What changed, between which two releases, and the commands that show it, from any directory."""
    for version, flip in (("1.3.0", 0), ("1.4.0", 0), ("1.5.0", 1)):
        release(wheels, version, flip)
    cases = ("--case", "pack/flat/v1", "--case", "pack/linear_weight/every-pair")
    assert asked(wheels, *cases, "--report", str(tmp_path / "r")) == 0
    said = capsys.readouterr().out
    assert re.search(r"^\| outcome +\| 1\.3\.0 \| 1\.4\.0 \| 1\.5\.0 \|$", said, re.MULTILINE)
    assert "1.3.0 -> 1.4.0: new failures:0 fixed:0" in said
    assert "new failure: pack/flat/v1: PASS -> FAIL (PACK/" in said
    assert len(read(tmp_path / "r/executorch-1.5.0/verdicts.jsonl").verdicts) == 2
    by_hand = dict(re.findall(r"^([0-9.]+) by hand: (.+)$", said, re.MULTILINE))
    ran = {version: subprocess.run(["bash", "-c", line], cwd="/", check=False) for version, line in by_hand.items()}
    assert {version: done.returncode for version, done in ran.items()} == {"1.4.0": 0, "1.5.0": 1}


def test_an_environment_is_whole_and_of_this_wheel(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release(wheels, "1.4.0", flip=3, needs="numpy")
    install = releases._install

    def killed(target: Path, wanted: str, given: Path | None) -> None:
        install(target, wanted, given)
        (target / "executorch/packer.py").unlink()
        raise KeyboardInterrupt

    def packer() -> str:
        python = environment("executorch", "1.4.0", wheels)
        return (python.parent.parent / "lib/python3.11/site-packages/executorch/packer.py").read_text()

    monkeypatch.setattr(releases, "_install", killed)
    with pytest.raises(KeyboardInterrupt):
        packer()
    monkeypatch.setattr(releases, "_install", install)
    assert packer() == "FLIP = 3\n"
    monkeypatch.setattr(releases, "_install", killed)
    assert packer() == "FLIP = 3\n"  # it is there: nothing is installed
    monkeypatch.setattr(releases, "_install", install)
    release(wheels, "1.4.0", flip=44, needs="numpy")
    assert packer() == "FLIP = 44\n"
    with pytest.raises(Unsatisfiable, match=r"pip cannot install executorch==1\.5\.0"):
        environment("executorch", "1.5.0", wheels)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--versions", "1.4.0,1.7"], "executorch has no version '1.7'; there are 1.4.0, 1.10.0"),
        (["--versions", "new"], "Invalid version: 'new'"),
        (["--since", "2"], "executorch has no version from 2 on; there are 1.4.0, 1.10.0"),
        (["--since", "1.4.0", "--versions", "1.4.0"], "not allowed with argument"),
        (["--package", "torch"], "invalid choice: 'torch'"),
        (["--wheels", "{folder}/empty"], "no version of executorch in {folder}/empty; give --wheels DIR"),
        (["--stages", "PACKS"], "unknown stage 'PACKS'; did you mean PACK"),
        (["--subject", "executor"], "unknown subject 'executor'; did you mean executorch"),
        (["--expectations", "{folder}/none.toml"], "none.toml"),
        (["--report", "{folder}"], "is there already; give --report an empty directory"),
        (["--report", "{folder}/wheels/torchao-99.0-py3-none-any.whl"], "it is a file; name a directory"),
    ],
)
def test_bad_usage_is_one_line(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    release(wheels, "1.10.0")
    release(wheels, "1.4.0")
    assert asked(wheels, *(w.format(folder=tmp_path) for w in words)) == 2
    said = capsys.readouterr()
    assert message.format(folder=tmp_path) in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not (tmp_path / "cache").exists()


def test_which_versions(wheels: Path) -> None:
    for version in ("1.10.0", "1.4.0", "1.9.1"):
        release(wheels, version)
    assert chosen("executorch", wheels) == ["1.4.0", "1.9.1", "1.10.0"]
    assert chosen("executorch", wheels, since="1.9") == ["1.9.1", "1.10.0"]
    assert chosen("executorch", wheels, versions="1.10, 1.4.0,1.4") == ["1.4.0", "1.10.0"]


@pytest.mark.parametrize(
    ("code", "verdicts", "said"),
    [
        (2, None, "the run ended with exit code 2: no space"),
        (-9, 1, "the run ended with exit code -9"),
        (1, None, "the run left no verdicts: no space"),
        (0, 1, "the run stopped after 1 verdicts"),
    ],
)
def test_a_run_that_broke_is_no_version_s_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, verdicts: int | None, said: str
) -> None:
    def run(_: Path, words: list[str]) -> CompletedProcess[str]:
        if verdicts is not None:
            writer = Writer(
                Path(words[words.index("--report") + 1]) / "verdicts.jsonl", {"versions": {"executorch": "1.4.0"}}
            )
            writer.add(verdict("pack/flat/v1"))
        return CompletedProcess([], code, "", "a line\nno space\n")

    monkeypatch.setattr(judge, "environment", lambda *_: Path("python"))
    monkeypatch.setattr(judge, "importing", lambda _: None)
    monkeypatch.setattr(judge, "in_environment", run)
    with pytest.raises(RunBroke, match=said):
        judge_version("executorch", "1.4.0", None, [], tmp_path / "r")


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ({"1.4.1": RunBroke("killed")}, 1),
        ({"1.4.1": Unsatisfiable("no wheel")}, 0),
        ({"1.4.0": Unsatisfiable("no wheel"), "1.4.1": Unsatisfiable("none")}, 1),
    ],
)
def test_a_broken_run_and_nothing_judged_are_no_success(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    errors: dict[str, Exception],
    code: int,
) -> None:
    def run(package: str, version: str, *_: Any) -> Judged:
        if version in errors:
            raise errors[version]
        return judged(version, verdict("pack/flat/v1"))

    monkeypatch.setattr(judge, "releases", lambda *_: ["1.4.0", "1.4.1"])
    monkeypatch.setattr(cli_versions, "judge_version", run)
    assert main.main(["versions", "--report", str(tmp_path)]) == code
    said = capsys.readouterr().out
    assert all(f"not judged: executorch {version}: {error}\n" in said for version, error in errors.items())
    assert ("nothing was judged" in said) is (len(errors) == 2)


def verdict(case: str, outcome: str = "PASS", signature: str = "", defect: str = "", contract: str = "4.2") -> Verdict:
    return Verdict(case, "PACK", "x", outcome, signature, "why", defect=defect, contract=contract)


def judged(version: str, *verdicts: Verdict) -> Judged:
    return Judged(version, Stream({}, verdicts, truncated=False))


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (judged(PINNED, verdict("pack/flat/v1", "XFAIL", "PACK/layout/x", "one-row")), True),
        (judged(PINNED, verdict("pack/flat/v1", "XPASS", "", "one-row")), False),
        (judged(PINNED, verdict("pack/flat/v2", "FAIL", "PACK/layout/x")), False),
        (judged(PINNED, verdict("pack/flat/v2", "UNSUPPORTED")), False),
        (judged("1.6.0", verdict("pack/flat/v1", "FAIL", "PACK/layout/x")), True),
        (judged("1.6.0", verdict("pack/flat/v1")), True),
        (judged("1.6.0", verdict("pack/flat/v1", "FAIL", "PACK/layout/y")), False),
        (judged("1.10.0", verdict("pack/flat/v1", "ERROR", "PACK/raised/Died")), False),
        (judged("1.5.0", verdict("pack/flat/v2", "FAIL", "PACK/layout/y")), True),
    ],
)
def test_the_gate_is_on_news(found: Judged, good: bool) -> None:
    lines, said = gate("executorch", PINNED, [found], EXPECTED)
    assert said is good
    assert any(v.case in line for v in found.stream.verdicts for line in lines) is ("unexpected" in lines[0])


def test_the_matrix_and_what_changed() -> None:
    old = judged(
        "1.5.0",
        verdict("pack/flat/v1", "FAIL", "PACK/layout/x"),
        verdict("pack/flat/v2", "FAIL", "PACK/layout/z"),
        verdict("match/a", "UNSUPPORTED", contract="4.10"),
        verdict("match/b", "ERROR", "MATCH/raised/Died", contract="4.10"),
    )
    new = judged(
        PINNED,
        verdict("pack/flat/v1", "XFAIL", "PACK/layout/x", "one-row"),
        verdict("pack/flat/v2", "XPASS"),
        verdict("match/a", contract="4.10"),
        verdict("match/b", "FAIL", "MATCH/decision/a|b", contract="4.10"),
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables([old, new], EXPECTED)]
    for row in (
        ["FAIL", "2", "1"],
        ["XPASS", "0", "1"],
        ["4.2", "0/2/0", "1/1/0"],
        ["4.10", "0/1/1", "1/1/0"],
        ["one-row", "1", "1"],
        ["PACK/layout/z", "1", "0"],
        ["MATCH/decision/a/b", "0", "1"],
    ):
        assert row in rows
    assert rows.index(["4.2", "0/2/0", "1/1/0"]) < rows.index(["4.10", "0/1/1", "1/1/0"])
    assert changes([old, new], whole=False) == [
        "1.5.0 -> 1.5.1: new failures:1 fixed:1 changed:1 other bits:0 gone:0 added:0",
        "     1 ERROR (MATCH/raised/Died) -> FAIL (MATCH/decision/a|b): match/b",
        "     1 FAIL (PACK/layout/z) -> PASS: pack/flat/v2",
        "     1 UNSUPPORTED -> PASS: match/a",
    ]
    assert "  fixed: pack/flat/v2: FAIL (PACK/layout/z) -> PASS" in changes([old, new], whole=True)
