"""Bisection over a generated ExecuTorch history, and over versions: the miniature with one thing broken on the way."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conformance.bisect import version as bisect_version
from conformance.bisect.commits import SearchEnded
from conformance.bisect.search import steps
from conformance.bisect.version import Asked, Question, search
from conformance.case.catalogue import load, select
from conformance.cli import main as cli
from conformance.cli.bisect import main
from conformance.results import replay
from conformance.results.verdict import Verdict
from conformance.sources import releases as version_environments
from conformance.sources.releases import Unsatisfiable, environment, releases
from tests.support.git_histories import SUBJECT, linear

SIZED = Path(__file__).parents[1] / "fakes/right_up_to_a_size.py"
MINIATURE = Path(__file__).parents[1] / "data/executorch"
FILES = {
    p.relative_to(MINIATURE).as_posix(): p.read_text()
    for p in sorted(MINIATURE.rglob("*"))
    if p.is_file() and "__pycache__" not in p.parts
}
SHADER = "backends/vulkan/runtime/graph/ops/glsl/embedding_q4gsw.glsl"
MATCHER = "backends/vulkan/_passes/fuse_patterns.py"


def changed(file: str, good: str, bad: str) -> Mapping[str, str]:
    assert good in FILES[file]
    return {**FILES, file: FILES[file].replace(good, bad)}


@pytest.mark.parametrize(
    ("case", "broken", "signature"),
    [
        ("kernel/flat-buffer/float32-float32/control", (SHADER, "? 4 : 0", "? 0 : 4"), "KERNEL/array/values"),
        (
            "match/torchao/control",
            (MATCHER, "COLUMNS_PER_SCALE = 4", "COLUMNS_PER_SCALE = 64"),
            "MATCH/decision/missed",
        ),
    ],
    ids=["shader", "matcher"],
)
def test_a_regression_in_a_source_tree(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    broken: tuple[str, str, str],
    signature: str,
) -> None:
    """Two hundred commits: most touch nothing that counts, some do not import, the shader's do not compile."""
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path / "cache"))
    untestable = changed(broken[0], broken[1], "this is no program (")

    def files(i: int) -> Mapping[str, str]:
        if 98 <= i <= 102:
            return untestable
        tree = dict(changed(*broken) if i >= 70 else FILES)
        tree[f"docs/page{i % 7}.md"] = f"{i}\n"  # neighbours come and go
        if i >= 40:
            tree["backends/vulkan/README.md"] = "renamed and reformatted\n"
        return tree

    names = linear(tmp_path / "repo", 200, files)
    words = ["commit", case, "--repo", str(tmp_path / "repo"), "--good", names[1], "--bad", "main"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"first bad: {names[70]}" in said
    assert signature in said
    assert "executorch-src:" in said
    (log,) = (tmp_path / "cache").glob("bisect/*/steps.jsonl")
    asked = steps(log.parent)
    assert sum(not s.cached for s in asked) <= 3  # good, bad and untestable files: each judged once
    assert any(s.state == "skip" for s in asked)
    by_hand = dict(re.findall(r"(good|bad) by hand: +python -m conformance (.+)", said))
    assert all("--no-expectations" in words for words in by_hand.values()), "a known failure is shown as a failure"
    if signature.startswith("KERNEL"):
        assert {what: cli.main(shlex.split(words)) for what, words in by_hand.items()} == {"good": 0, "bad": 1}


def answers(**states: str) -> dict[str, Asked]:
    return {v.replace("_", "."): Asked(v.replace("_", "."), state, "", "") for v, state in states.items()}


def test_versions_are_halved_around_those_that_cannot_be_tested() -> None:
    path = ["v1", "v2", "v3", "v4", "v5", "v6"]
    known = answers(v1="good", v6="bad")
    assert search(path, known) == "v4"
    assert search(path, known | answers(v4="skip")) == "v3"
    assert search(path, known | answers(v4="bad", v3="good")) is None
    assert search(path, known | answers(v2="skip", v3="skip", v4="skip", v5="skip")) is None


def test_versions_come_from_a_directory_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1.10.0", "1.9.1", "1.9.0"):
        (tmp_path / f"executorch-{version}-cp311-none-any.whl").write_bytes(b"no wheel")
    (tmp_path / "torchao-0.18.0-py3-none-any.whl").touch()
    assert releases("executorch", tmp_path) == ["1.9.0", "1.9.1", "1.10.0"]
    with pytest.raises(ValueError, match=r"no version of executorch in .*--wheels"):
        releases("executorch", tmp_path / "empty")
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Unsatisfiable, match=r"pip cannot install executorch==1\.9\.0"):
        environment("executorch", "1.9.0", tmp_path)


def test_the_first_bad_version_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path / "cache"))
    states = {"1.0.0": "good", "1.1.0": "good", "1.2.0": "skip", "1.3.0": "bad", "1.4.0": "bad", "1.5.0": "skip"}
    monkeypatch.setattr(bisect_version, "releases", lambda *_: list(states))
    monkeypatch.setattr(bisect_version, "ask", lambda _q, v, _s: Asked(v, states[v], "PACK/layout/x", "why"))
    words = ["version", "pack/flat/d2", "--good", "1.0.0", "--bad"]
    assert main([*words, "1.4.0"]) == 1
    said = capsys.readouterr().out
    assert "cannot be tested: 1.2.0" in said
    assert "first bad: executorch one of 1.2.0, 1.3.0 (PACK/layout/x); 1.1.0 is right" in said
    states["1.2.0"] = "bad"
    assert main([*words, "1.4.0"]) == 0
    assert "first bad: executorch 1.2.0 (PACK/layout/x); 1.1.0 is right" in capsys.readouterr().out
    for bad, code, error in (("1.1.0", 1, "does not fail as sought"), ("9.9", 2, "no version '9.9'; there are 1.0.0")):
        assert main([*words, bad]) == code
        assert error in capsys.readouterr().err


class Versions:
    """Environments that are not there, whose answers are given; counts how often one is asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *outcomes: str, digests: str = "") -> None:
        monkeypatch.setenv("Q4GSW_CACHE", str(folder))
        self.outcomes, self.digests = list(outcomes), iter(digests)
        self.words: list[list[str]] = []
        self.made_of = folder / "versions/executorch-1.0.0" / version_environments.COMPLETE
        self.made_of.parent.mkdir(parents=True)
        self.made_of.write_text("one")
        monkeypatch.setattr(bisect_version, "environment", lambda *_: Path("python"))
        monkeypatch.setattr(bisect_version, "importing", lambda _: None)
        monkeypatch.setattr(bisect_version, "in_environment", self.told)
        (self.case,) = select(load(), ids=["pack/flat/d2"])

    def told(self, _python: Path, words: list[str], _given: str) -> subprocess.CompletedProcess[str]:
        self.words.append(words)
        verdict = {"outcome": self.outcomes.pop(0), "signature": "", "reason": "", "digest": next(self.digests, "")}
        return subprocess.CompletedProcess([], 0, json.dumps(verdict), "")

    def ask(self, **question: Any) -> str:
        return bisect_version.ask(Question(self.case, "executorch", **question), "1.0.0", "").state


def test_a_version_s_verdict_is_kept_until_its_environment_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = Versions(tmp_path, monkeypatch, *["PASS"] * 7, "FAIL", "PASS")
    packages = tmp_path / "versions/executorch-1.0.0/lib/python3.11/site-packages/torchao-0.18.0.dist-info"
    packages.mkdir(parents=True)
    monkeypatch.setenv("VK_ICD_FILENAMES", "")
    (packages / "METADATA").write_text("Name: torchao\nVersion: 0.18.0\n")
    (packages / "RECORD").write_text("torchao/a.py,sha256=x,1\n")

    def asked(**question: Any) -> int:
        """How often the version was asked, of two questions one after the other."""
        before = len(versions.words)
        assert [versions.ask(**question), versions.ask(**question)] == ["good", "good"]
        return len(versions.words) - before

    assert asked() == 1
    versions.made_of.write_text("another")
    assert asked() == 1
    (packages / "RECORD").write_text("torchao/a.py,sha256=y,1\n")  # another wheel of the same version
    assert asked() == 1
    monkeypatch.setenv("Q4GSW_VALIDATE", "1")
    assert asked() == 1
    assert asked() == 0
    assert asked(subject="impl") == 1
    assert asked(subject=f"{SIZED}:RightBelow24Rows") == 2, "what a subject file imports is not known"
    assert [w[2] for w in versions.words[-3:]] == ["impl", *[f"{SIZED}:RightBelow24Rows"] * 2]
    with pytest.raises(SearchEnded, match=r"executorch 1\.0\.0 is flaky: 2 runs do not agree: FAIL, PASS"):
        versions.ask(repeat=2)


def test_a_fresh_search_over_versions_judges_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = Versions(tmp_path, monkeypatch, "PASS", "FAIL")
    assert [versions.ask(), versions.ask()] == ["good", "good"]
    (kept,) = tmp_path.glob("verdicts/*.json")
    os.utime(kept, (1000, 1000))
    assert versions.ask(since=2000.0) == "bad"
    assert [versions.ask(since=2000.0), versions.ask()] == ["bad", "bad"], "what was judged anew is kept"


def test_two_right_answers_with_other_bits_do_not_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = Versions(tmp_path, monkeypatch, "PASS", "PASS", digests="ab")
    with pytest.raises(SearchEnded, match=r"2 runs do not agree: PASS \(result a\), PASS \(result b\)"):
        versions.ask(repeat=2)


def test_the_subject_that_is_searched_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id's is executorch, a replay file's the recorded one; the one that is named comes first."""
    asked: list[tuple[str, float]] = []

    def show(question: Question, _ends: tuple[str, str], _sought: str) -> int:
        asked.append((question.subject, question.since))
        return 0

    monkeypatch.setattr(bisect_version, "show", show)
    (case,) = select(load(), ids=["pack/flat/d2"])
    ends = ["--good", "1.0.0", "--bad", "1.1.0"]
    relative = os.path.relpath(SIZED)

    def recorded(subject: str) -> str:
        return str(replay.write(tmp_path, case, Verdict(case.id, "PACK", subject, "FAIL", "PACK/x/y"), {}))

    assert main(["version", case.id, *ends]) == 0
    assert main(["version", recorded("impl"), *ends]) == 0
    assert main(["version", recorded(f"{relative}:RightBelow24Rows"), *ends]) == 0
    assert main(["version", recorded("gone"), *ends, "--subject", "executorch"]) == 0
    assert [subject for subject, _ in asked] == ["executorch", "impl", f"{SIZED}:RightBelow24Rows", "executorch"]
    assert not any(since for _, since in asked)
    assert main(["version", case.id, *ends, "--fresh"]) == 0
    assert asked[-1][1] > 0
    capsys.readouterr()
    assert main(["version", recorded("my-runner"), *ends]) == 2
    error = capsys.readouterr().err
    assert "unknown subject 'my-runner'" in error
    assert "give --subject" in error
    assert error.count("\n") == 1


def test_a_version_s_subject_and_its_commands_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two environments of which one packs wrongly: the printed lines tell them apart, from any directory."""
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path / "a cache"))
    wrong = {"1.0.0": "", "1.1.0": "1"}
    for version, flag in wrong.items():
        python = version_environments.folder_of("executorch", version) / "bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nWRONG={flag} exec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        (python.parent.parent / version_environments.COMPLETE).write_text("whole")
    subject = tmp_path / "subject.py"
    subject.write_text(
        SUBJECT.replace("from helper import OFFSET", "import os\nOFFSET = 7 if os.environ['WRONG'] else 8")
    )
    monkeypatch.setattr(bisect_version, "releases", lambda *_: list(wrong))
    folder = version_environments.folder_of
    monkeypatch.setattr(bisect_version, "environment", lambda p, v, _: folder(p, v) / "bin/python")
    monkeypatch.setattr(bisect_version, "importing", lambda _: None)
    words = ["version", "pack/linear_weight/every-pair", "--good", "1.0.0", "--bad", "1.1.0", "--case-seconds", "31.5"]
    assert main([*words, "--subject", f"{subject}:Packs"]) == 0
    said = capsys.readouterr().out
    assert "first bad: executorch 1.1.0" in said
    by_hand = dict(re.findall(r"(good|bad) by hand: (.+)", said))
    assert all("--case-seconds 31.5" in line for line in by_hand.values())
    ran = {what: subprocess.run(["bash", "-c", line], cwd="/", check=False) for what, line in by_hand.items()}
    assert {what: done.returncode for what, done in ran.items()} == {"good": 0, "bad": 1}
