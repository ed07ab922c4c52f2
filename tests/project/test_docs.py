"""The documents are true: commands and options exist, links lead somewhere, examples and the workflow's gate run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # PyYAML is ExecuTorch's own dependency

from tests.support.documents import DOCUMENTS, ROOT, Command, anchors, blocks, commands, links, wrong_with

GATE = (ROOT / "docs" / "gate-your-repo.md").read_text()
FIRST = (ROOT / "docs" / "first-failure.md").read_text()
PACKED = ("--stages", "PACK", "--level", "smoke")


@pytest.fixture(scope="module")
def pytest_options(pytestconfig: pytest.Config) -> set[str]:
    """Every option that a session under pytest takes, those of the suite's plugin included."""
    parser = pytestconfig._parser
    groups = [parser._anonymous, *parser._groups]
    return {name for group in groups for option in group.options for name in option.names()} | {"--version"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_and_their_options_exist(path: Path, pytest_options: set[str]) -> None:
    text = path.read_text()
    if path.name == "moving.md":  # the first column of its tables holds what is gone
        text = re.sub(r"^\| .*? \| ", "| ", text, flags=re.MULTILINE)
    wrong = {c.text: why for c in commands(text) if (why := wrong_with(c, pytest_options))}
    assert not wrong


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("`python -m conformance run --subjekt impl`", "option --subjekt of run"),
        ("`q4gsw kit export KITS --lower impl`", "option --lower of kit"),
        ("`q4gsw kit judge KITS OUT --profile x`", "option --profile of kit"),
        ("`q4gsw compare A B`", "command compare"),
        ("`q4gsw bisect shape CASE`", "way shape of bisect"),
        ("nox -s conformance -- --subject \\\n  x.py:X --stage PACK\n", "option --stage of run"),
        ("nox/bin/nox -f suite/noxfile.py -s conform -- --level gate", "session conform"),
        ("`./dev tests --wurst`", "option --wurst of session tests"),
        ("`./dev bench kernel --fast`", "option --fast of session bench"),
        ("`./dev versions --form 1.4.0`", "option --form of versions"),
    ],
)
def test_a_wrong_command_is_found(text: str, why: str, pytest_options: set[str]) -> None:
    """Planted: what a typing mistake or a renamed option would leave in a document."""
    assert [wrong_with(c, pytest_options) for c in commands(text)] == [why]


def test_commands_are_seen_at_all() -> None:
    asked = "nox/bin/nox -f suite/noxfile.py -s conformance -- --report R \\\n  --stages PACK || code=$?"
    words = ("-f", "suite/noxfile.py", "-s", "conformance", "--", "--report", "R", "--stages", "PACK")
    assert list(commands(asked)) == [Command("nox", words)]
    assert sum(len(list(commands(path.read_text()))) for path in DOCUMENTS) > 60


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    for name, anchor in links(path.read_text()):
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), name
        assert not anchor or anchor in anchors(target.read_text()), f"{name}#{anchor}"


def workflow() -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """The workflow's only job, and the steps that replace one of its own for other subjects."""
    whole, *others = (yaml.safe_load(text) for text in blocks(GATE, "yaml"))
    assert set(whole[True]) == {"pull_request", "merge_group", "push"}  # YAML takes the key "on" for a truth value
    assert list(whole["jobs"]) == ["conformance"]
    return whole["jobs"]["conformance"], others


def step(name: str) -> dict[str, Any]:
    """The workflow's step of that name."""
    return next(s for s in workflow()[0]["steps"] if s["name"] == name)


def test_the_workflow_is_whole() -> None:
    job, others = workflow()
    assert {"runs-on", "container", "timeout-minutes", "steps"} <= set(job)
    assert job["defaults"]["run"]["shell"] == "bash"
    for steps in (job["steps"], *others):
        for one in steps:
            assert ("uses" in one) != ("run" in one), one["name"]
            if "uses" in one:
                assert re.fullmatch(r"[\w-]+/[\w/-]+@v\d+\.\d+\.\d+", one["uses"]), one["uses"]
    names = [s["name"] for s in job["steps"]]
    assert len(set(names)) == len(names)
    assert all(one["name"] in names for steps in others for one in steps)  # else it replaces nothing
    ids = {s["id"] for s in job["steps"] if "id" in s}
    assert set(re.findall(r"steps\.(\w+)\.", GATE)) == ids
    assert names.index("Remove what an earlier run left") == 0  # before there is anything that it may not remove
    restored, saved = step("The main branch's report")["with"], step("Keep it for the pull requests to come")["with"]
    assert restored["path"] == saved["path"]  # a cache is found by its path too
    assert restored["restore-keys"] == "${{ steps.before.outputs.keys }}"
    assert saved["key"].startswith("q4gsw-report-${{ github.sha }}-")


def test_what_the_workflow_installs_is_what_dev_installs() -> None:
    dev = (ROOT / "dev").read_text()
    needed = set(re.search(r"packages=\((.*)\)", dev)[1].split()) - {"chromium"}  # type: ignore[index]  # the line is there
    assert needed <= set(step("Debian packages")["run"].split())
    assert set(re.findall(r"nox==[\d.]+", GATE)) == set(re.findall(r"nox==[\d.]+", dev))


def test_files_that_the_workflow_names_exist() -> None:
    """Those of the suite in this checkout; those of the user's repository on the page."""
    job, others = workflow()
    scripts = "\n".join(one.get("run", "") for steps in (job["steps"], *others) for one in steps)
    for name in re.findall(r"(?:\s|\")(?:\$GITHUB_WORKSPACE/|\.\./)?suite/([\w./-]+)", scripts):
        assert (ROOT / name).exists(), name
    told = set(re.findall(r"`(ci/[\w.]+)`", GATE))
    assert set(re.findall(r"repository/(ci/[\w.]+)", scripts)) <= told


def conformance(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m conformance`` from the repository's root."""
    command = [sys.executable, "-m", "conformance", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """The workspace of a workflow after the checkouts: the page's repository, and this checkout as the suite."""
    root = tmp_path / "workspace"
    packer, subject = blocks(GATE, "python")
    (root / "repository" / "ci").mkdir(parents=True)
    (root / "repository" / "nibbles.py").write_text(packer)
    (root / "repository" / "ci" / "q4gsw_subject.py").write_text(subject)
    (root / "repository" / "ci" / "q4gsw_known.toml").write_text("")
    bin_ = root / "suite" / ".nox" / "shared" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "q4gsw").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m conformance "$@"\n')
    (bin_ / "q4gsw").chmod(0o755)
    for package in ("conformance", "reference"):
        (root / "suite" / package).symlink_to(ROOT / package)
    (root / "nox" / "bin").mkdir(parents=True)
    return root


def swap_nibbles(workspace: Path) -> None:
    """Break the packer of the page's repository."""
    packer = workspace / "repository" / "nibbles.py"
    packer.write_text(packer.read_text().replace("0::2] << 4 | codes[:, 1::2]", "1::2] << 4 | codes[:, 0::2]"))


def nox_that(workspace: Path, afterwards: str = "") -> None:
    """Put down a nox that judges as its session does: every exit code but 0 is 1. ``afterwards`` runs then."""
    there = workspace / "nox" / "bin" / "nox"
    there.write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift\n'
        f'(cd "{ROOT}" && "{sys.executable}" -m conformance run "$@") && code=0 || code=1\n{afterwards}\nexit $code\n'
    )
    there.chmod(0o755)


def bash(workspace: Path, name: str, outputs: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a step as it stands on the page (at level smoke), in the workspace."""
    script = step(name)["run"].replace("--level gate", "--level smoke")
    told = outputs.read_text() if outputs.exists() else ""
    if code := re.search(r"^code=(\d+)$", told, re.MULTILINE):
        script = script.replace("${{ steps.judge.outputs.code }}", code[1])
    assert "${{" not in script
    github = {"WORKSPACE": workspace, "STEP_SUMMARY": workspace / "summary", "OUTPUT": outputs}
    env = {**os.environ, **{f"GITHUB_{name}": str(path) for name, path in github.items()}, "HOME": str(home)}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=workspace, env=env, capture_output=True, text=True, check=False, timeout=60)


def job(workspace: Path, home: Path, of_main: Path | None = None) -> tuple[str, str]:
    """Run the workflow's steps around a verdict in their order; the one that failed, or "", and what it said."""
    outputs = home / "output"
    outputs.unlink(missing_ok=True)
    for one in workflow()[0]["steps"]:
        if one["name"] == "The main branch's report" and of_main:
            shutil.copytree(of_main, workspace / "main-report")
        if one["name"] in {"Remove what an earlier run left", "Judge", "Gate"}:
            done = bash(workspace, one["name"], outputs, home)
            if done.returncode:
                return one["name"], done.stdout + done.stderr
    return "", ""


def judged(workspace: Path, report: str) -> subprocess.CompletedProcess[str]:
    """What the step "Judge" does, without nox and at level smoke; ``report`` is new in the workspace."""
    ci = workspace / "repository" / "ci"
    options = ("--subject", f"{ci}/q4gsw_subject.py:Packer", "--expectations", str(ci / "q4gsw_known.toml"))
    return conformance("run", *PACKED, *options, "--report", str(workspace / report))


def gated(workspace: Path, old: str, new: str, code: str = "0") -> subprocess.CompletedProcess[str]:
    """Run the step "Gate" as it stands on the page, on two reports."""
    for name, report in (("main-report", old), ("report", new)):
        (workspace / name).unlink(missing_ok=True)
        (workspace / name).symlink_to(workspace / report)
    outputs = workspace / "outputs"
    outputs.write_text(f"code={code}\n")
    return bash(workspace, "Gate", outputs, workspace)


def test_the_subject_and_the_gate_run(workspace: Path) -> None:
    """The page's packer is right; with its nibbles swapped it is red, explained, and only what is new is gated."""
    done = judged(workspace, "right")
    assert done.returncode == 0, done.stdout
    assert "tests:2 passed:1 failed:0 error:0 unsupported:1" in done.stdout
    swap_nibbles(workspace)
    done = judged(workspace, "swapped")
    assert done.returncode == 1
    assert "PACK/layout/nibble_order" in done.stdout

    red = gated(workspace, "right", "swapped", "1")
    assert red.returncode == 1
    assert "new failure: pack/worked-bytes/flat: PASS -> FAIL (PACK/layout/nibble_order)" in red.stdout
    assert "new failure: pack/worked-bytes/flat" in (workspace / "summary").read_text()
    assert gated(workspace, "swapped", "swapped", "1").returncode == 0  # main has it already
    assert gated(workspace, "right", "nowhere").returncode == 2
    assert gated(workspace, "nowhere", "swapped", "1").returncode == 1  # no report of main yet


def test_a_report_of_an_earlier_run_is_no_verdict(workspace: Path, tmp_path: Path) -> None:
    """A self-hosted runner keeps its workspace: what was green there may not hide a packer that is broken since."""
    nox_that(workspace)
    assert job(workspace, tmp_path) == ("", "")
    of_main = tmp_path / "of-main"
    shutil.copytree(workspace / "report", of_main)
    swap_nibbles(workspace)
    for kept in (of_main, None):
        failed, said = job(workspace, tmp_path, kept)
        assert failed == "Gate", said
    merged = tmp_path / "merged"
    shutil.copytree(workspace / "report", merged)
    assert job(workspace, tmp_path, merged) == ("", "")  # main has it already


@pytest.mark.parametrize(
    "afterwards",
    ["rm -r report", "sed -i '$d' report/verdicts.jsonl"],
    ids=["could not start", "did not finish"],
)
def test_a_run_without_its_end_is_red(workspace: Path, tmp_path: Path, afterwards: str) -> None:
    """The second leaves a summary.md and no footer, as a run that was interrupted does."""
    nox_that(workspace, afterwards)
    assert job(workspace, tmp_path)[0] == "Judge"


def test_what_a_run_is_compared_with_are_the_commits_of_main_before_it(workspace: Path, tmp_path: Path) -> None:
    """Nearest first, without the pull request's own, and no more than a cache is looked for by."""
    outputs, home = tmp_path / "output", tmp_path / "home"
    home.mkdir()
    identity = "[user]\nname = a\nemail = a@example.org\n[init]\ndefaultBranch = main\n"
    (home / ".gitconfig").write_text(identity)

    def git(*words: str) -> str:
        env = {**os.environ, "HOME": str(home)}
        command = ["git", "-C", str(workspace / "repository"), *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()

    def commit(message: str) -> str:
        git("commit", "-q", "--allow-empty", "-m", message)
        return git("rev-parse", "HEAD")

    git("init", "-q")
    main = [commit(f"main {number}") for number in range(12)]
    git("checkout", "-q", "-b", "mine", main[8])
    commit("mine")
    git("checkout", "-q", "main")
    git("merge", "-q", "--no-ff", "-m", "merged, as a pull request is tried", "mine")
    assert bash(workspace, "The commits of main before this one", outputs, home).returncode == 0
    keys = [f"q4gsw-report-{of}" for of in reversed(main)][:9]
    assert outputs.read_text().split("\n") == ["keys<<END", *keys, "END", ""]
    depth = step("Check out this repository")["with"]["fetch-depth"]
    assert depth == 1 + len(keys) == 10, "and the key that is never there makes ten, which is all that are allowed"


def test_the_example_of_a_known_failure_fits_the_catalogue(tmp_path: Path) -> None:
    from conformance.case.catalogue import load
    from conformance.results.expectations import load as expectations

    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for text in [*blocks(GATE, "toml"), *blocks(contributing, "toml")]:
        if "[[known]]" in text:
            (tmp_path / "known.toml").write_text(text)
            assert len(expectations(tmp_path / "known.toml", load(), {}).by_case) > 40


def test_the_device_profile_on_the_page_is_one(tmp_path: Path) -> None:
    from conformance.kits.judge import read_profile

    (profile,) = (text for text in blocks(GATE, "toml") if "execution_modes" in text)
    (tmp_path / "device.toml").write_text(profile)
    assert read_profile(tmp_path / "device.toml").precise


def test_the_first_failure_is_what_the_transcript_says(tmp_path: Path) -> None:
    """Its packer fails with the very lines, is replayed, and passes once the sed on the page has fixed it."""
    (packer,) = blocks(FIRST, "python")
    path, report = tmp_path / "packer.py", tmp_path / "report"
    path.write_text(packer)
    there = FIRST.replace("/root/mine/packer.py", str(path)).replace("/root/report", str(report))
    done = conformance("run", *PACKED, "--subject", f"{path}:Mine", "--report", str(report))
    failure = done.stdout[done.stdout.index("FAIL pack/worked-bytes/flat") : done.stdout.index("replay:")]
    assert failure in there
    replay = str(report / "replay" / "pack__worked-bytes__flat.toml")
    again = ("replay", replay, "--subject", f"{path}:Mine")
    assert f"q4gsw {' '.join(again)}\n" in there
    ends = conformance(*again).stdout.splitlines()[-2:]
    assert "\n".join(ends) in there
    fix = re.search(r"^\$ (sed .*)$", there, re.MULTILINE)
    assert fix
    subprocess.run(["bash", "-c", fix[1]], check=True)
    assert conformance(*again).stdout in there


def test_the_recipe_for_a_shader_runs(tmp_path: Path) -> None:
    (recipe,) = (text for text in blocks((ROOT / "CONTRIBUTING.md").read_text(), "python") if "class Faster" in text)
    (tmp_path / "faster.py").write_text(recipe)
    shutil.copy(ROOT / "vulkan/glsl/embedding_q4gsw.comp", tmp_path / "faster.comp")
    options = ("--subject", f"{tmp_path}/faster.py:Faster", "--case", "kernel/flat-buffer/float32-float32/control")
    done = conformance("run", *options, "--report", str(tmp_path / "report"))
    assert done.stdout.endswith("tests:1 passed:1 failed:0 error:0 unsupported:0 xfail:0 xpass:0\n"), done.stdout
