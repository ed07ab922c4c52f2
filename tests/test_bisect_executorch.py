"""Bisection over a generated ExecuTorch history, and over versions: the miniature with one thing broken on the way."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from conformance import bisect_version, cli, version_environments
from conformance.bisect_cli import main
from conformance.bisect_commit import SearchEnded
from conformance.bisect_search import steps
from conformance.bisect_version import Asked, search
from conformance.catalogue import load, select
from conformance.version_environments import Unsatisfiable, environment, releases
from tests.bisect_repositories import linear

MINIATURE = Path(__file__).parent / "miniature_executorch"
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
    monkeypatch.setattr(bisect_version, "ask", lambda _c, _p, v, *_: Asked(v, states[v], "PACK/layout/x", "why"))
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


def test_a_version_s_verdict_is_kept_until_its_environment_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path))
    answers = iter(["PASS", "PASS", "PASS", "FAIL"])
    made_of = tmp_path / "versions/executorch-1.0.0" / version_environments.COMPLETE
    made_of.parent.mkdir(parents=True)
    made_of.write_text("one")

    def told(*_: object) -> subprocess.CompletedProcess[str]:
        verdict = {"outcome": next(answers), "signature": "", "reason": ""}
        return subprocess.CompletedProcess([], 0, json.dumps(verdict), "")

    monkeypatch.setattr(bisect_version, "environment", lambda *_: Path("python"))
    monkeypatch.setattr(bisect_version, "importing", lambda _: None)
    monkeypatch.setattr(bisect_version, "in_environment", told)
    (case,) = select(load(), ids=["pack/flat/d2"])

    def ask(repeat: int = 1) -> str:
        return bisect_version.ask(case, "executorch", "1.0.0", None, "", 60.0, repeat).state

    assert [ask(), ask()] == ["good", "good"]
    made_of.write_text("another")
    assert ask() == "good"
    with pytest.raises(SearchEnded, match=r"executorch 1\.0\.0 is flaky: 2 runs do not agree: PASS, FAIL"):
        ask(2)
    assert next(answers, None) is None
