"""Bisection over a generated ExecuTorch history: the miniature with one thing broken on the way."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from conformance.cli import main as cli
from tests.support.git_histories import linear, steps

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
    words = ["bisect", "commit", case, "--repo", str(tmp_path / "repo"), "--good", names[1], "--bad", "main"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"first bad: {names[70]}" in said
    assert signature in said
    assert "executorch-src:" in said
    (log,) = (tmp_path / "cache").glob("bisect/*/steps.jsonl")
    asked = steps(log.parent)
    assert sum(not s.cached for s in asked) <= 3  # good, bad and untestable files: each judged once
    assert any(s.state == "skip" for s in asked)
    by_hand = dict(re.findall(r"(good|bad) by hand: +q4gsw (.+)", said))
    assert all("--no-expectations" in words for words in by_hand.values()), "a known failure is shown as a failure"
    if signature.startswith("KERNEL"):
        assert {what: cli.main(shlex.split(words)) for what, words in by_hand.items()} == {"good": 0, "bad": 1}
