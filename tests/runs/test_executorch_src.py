"""Subject executorch-src on a miniature tree: right where it is right, red at the stage where a bug is planted."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conformance.case.case import Case, Dispatch, EndToEnd, Program, Table
from conformance.case.single_table import SingleTable, single_table
from conformance.cli import main
from conformance.harness.subject import check_name, load, resolved
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.sources import tree as source_tree_module
from conformance.sources.git import GitProblem, commit_of
from conformance.sources.tree import HOST, copy_of, listing, source_tree, tree_hash
from conformance.subjects.executorch_src_kernel import host_line
from reference.program.spec import Values

TREE = Path(__file__).parents[1] / "data/executorch"
VULKAN = "backends/vulkan"
SCALE = "t_scales[row * (out_sizes.x / group_size) + column / group_size]"
CODES = Values("uniform", 5, -8, 7)
REFUSED = Case(
    "test/match", "MATCH", "5", "a test", Program(single_table(SingleTable(route="synthetic", group_size=2)))
)
PACK = Case("test/pack", "PACK", "1", "a test", Table(9, 64, CODES))
PREPACK = Case("test/prepack", "PREPACK", "1", "a test", Table(9, 64, CODES, "blocks"))
KERNEL = Case("test/kernel", "KERNEL", "7", "a test", Dispatch(weight_layout="flat"))
CASES = (REFUSED, PACK, PREPACK, KERNEL)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path / "cache"))


def planted(tmp_path: Path, file: str, good: str, bad: str) -> Path:
    tree = tmp_path / "tree"
    shutil.copytree(TREE, tree, ignore=shutil.ignore_patterns("__pycache__"))
    text = (tree / VULKAN / file).read_text()
    assert good in text
    (tree / VULKAN / file).write_text(text.replace(good, bad))
    return tree


def red(argument: Path | str, cases: tuple[Case, ...] = CASES) -> dict[str, str]:
    """Stage -> what is wrong there, for every stage that does not pass."""
    with Worker(f"executorch-src:{argument}") as worker:
        verdicts = [judge(case, worker.run(case), worker.subject) for case in cases]
    return {v.stage: v.signature or v.reason for v in verdicts if v.outcome != "PASS"}


def repository(folder: Path, tree: Path) -> str:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, check=True, text=True)
        return done.stdout.strip()

    shutil.copytree(tree, folder, ignore=shutil.ignore_patterns("__pycache__"))
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "a tree")
    git("tag", "v1")
    return git("rev-parse", "HEAD")


def test_a_right_tree_is_right_also_when_read_from_git(tmp_path: Path) -> None:
    commit = repository(tmp_path / "repo", TREE)
    shutil.rmtree(tmp_path / "repo" / "backends")  # only the history is read
    journey = Case("test/journey", "KERNEL", "7", "a test", EndToEnd(spec=single_table(SingleTable())))
    tied = Case("test/tied", "MATCH", "5", "a test", Program(single_table(SingleTable(linear="after"))))
    lower = Case("test/lower", "LOWER", "6", "a test", Program(single_table(SingleTable())))
    found = red(f"{tmp_path / 'repo'}@v1", (*CASES, journey, tied, lower))
    assert found == {"LOWER": "LOWER/raised/Untestable"}  # the miniature has no partitioner
    assert resolved(f"executorch-src:{tmp_path / 'repo'}@v1").endswith(f"@{commit}")


@pytest.mark.parametrize(
    ("file", "good", "bad", "expected"),
    [
        (
            "_passes/fuse_patterns.py",
            "PER_SCALE = 4",
            "PER_SCALE = 2",
            {"MATCH": "MATCH/decision/undue_fusion:group_size_not_multiple_of_4"},
        ),
        (
            "patterns/weight_packing_utils.py",
            "codes[:, 1::2] << 4 | codes[:, ::2]",
            "codes[:, ::2] << 4 | codes[:, 1::2]",
            {"PACK": "PACK/layout/nibble_order"},
        ),
        ("runtime/graph/ops/glsl/embedding_q4gsw.glsl", "? 4 : 0", "? 0 : 4", {"KERNEL": "KERNEL/array/values"}),
        ("runtime/graph/ops/glsl/embedding_q4gsw.glsl", SCALE, "1.0", {"KERNEL": "KERNEL/array/values"}),
        ("runtime/graph/ops/glsl/pack_q4_linear_weight.glsl", ": 8u", ": 0u", {"PREPACK": "PREPACK/layout/padding"}),
    ],
    ids=["matcher", "packer", "shader", "unused scales", "prepack"],
)
def test_a_bug_turns_its_own_stage_red(tmp_path: Path, file: str, good: str, bad: str, expected: Any) -> None:
    cases = (PREPACK, KERNEL) if file.startswith("runtime") else CASES  # without torch where it cannot matter
    assert red(planted(tmp_path, file, good, bad), cases) == expected


def test_a_tree_that_does_not_import_cannot_be_tested(tmp_path: Path) -> None:
    tree = planted(tmp_path, "patterns/weight_packing_utils.py", "import torch", "import torch_misspelt")
    with Worker(f"executorch-src:{tree}") as worker:
        verdict = judge(PACK, worker.run(PACK), worker.subject)
    assert (verdict.outcome, verdict.signature) == ("ERROR", "PACK/raised/Untestable")
    assert "No module named 'torch_misspelt'" in verdict.reason
    assert "\n" not in verdict.reason


def test_a_generator_that_fails_cannot_be_tested(tmp_path: Path) -> None:
    tree = planted(tmp_path, "runtime/graph/ops/glsl/embedding_q4gsw.glsl", "void main", "void main(")
    assert red(tree, (KERNEL,)) == {"KERNEL": "KERNEL/raised/Untestable"}


def test_a_tree_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = planted(tmp_path, "patterns/weight_packing_utils.py", "import torch", "import torch  # ")
    read, file = listing(source_tree(str(tree))), tree / VULKAN / "patterns/weight_packing_utils.py"
    file.write_text(file.read_text() + "# saved just now\n")
    monkeypatch.setattr(source_tree_module, "listing", lambda _: read)
    with pytest.raises(ValueError, match=r"weight_packing_utils\.py was changed while the tree was read; run it again"):
        copy_of(source_tree(str(tree)))
    assert not list((tmp_path / "cache" / "trees").iterdir())


def test_working_tree_and_commit_of_equal_contents_have_one_hash(tmp_path: Path) -> None:
    repository(tmp_path / "repo", TREE)
    here, there = source_tree(str(TREE)), source_tree(f"{tmp_path / 'repo'}@v1")
    assert tree_hash(listing(here)) == tree_hash(listing(there))
    assert copy_of(here) == copy_of(there)
    assert not list((copy_of(here).parent).glob(".new-*"))
    assert not (copy_of(here) / "README.md").exists()
    other = planted(tmp_path, "__init__.py", "miniature", "larger")
    assert tree_hash(listing(source_tree(str(other)))) != tree_hash(listing(here))


def test_what_is_no_tree_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository(tmp_path / "repo", TREE)
    for argument, said in (
        ("", "no directory ''"),
        ("/nowhere", "no directory '/nowhere'"),
        (str(tmp_path), "backends/vulkan/__init__.py is missing"),
        (str(tmp_path / "repo/.git"), "name a revision: PATH@REVISION"),
        (f"{tmp_path / 'repo'}@v2", "no commit 'v2' there"),
        (f"{tmp_path}@v2", "not a git repository"),
    ):
        assert main.main(["run", "--subject", f"executorch-src:{argument}", "--case", "pack/flat/d2"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    with pytest.raises(ValueError, match=r"executorch-src:PATH\[@REVISION\]"):
        check_name("executorch-src")
    with pytest.raises(GitProblem, match="no such directory"):
        commit_of(tmp_path / "none", "HEAD")


def test_a_relative_path_is_recorded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TREE.parent)
    with Worker("executorch-src:executorch") as worker:
        assert worker.subject == f"executorch-src:{TREE}"
    flat = Case("test/flat", "PACK", "1", "a test", Table(9, 64, CODES, "flat"))
    assert "flat" in str(load(worker.subject).supports(flat))


def test_a_failure_cites_the_line_of_the_host_code_that_its_binding_follows(tmp_path: Path) -> None:
    assert host_line(tmp_path) == ""
    (tmp_path / HOST).parent.mkdir(parents=True)
    (tmp_path / HOST).write_text("void bind() {\n  graph.add(new DynamicDispatchNode(\n")
    assert host_line(tmp_path) == f"{HOST}:2"
