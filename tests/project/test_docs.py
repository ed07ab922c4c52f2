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


ACTION = (ROOT / "action.yml").read_text()
JOB = (ROOT / ".github/workflows/gate.yml").read_text()
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
#: The action's steps that are run here; caches and artifacts are copies of directories.
RUN = ("Remove what an earlier run left", "Judge", "Gate")


AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org")


def steps() -> list[dict[str, Any]]:
    """The action's steps."""
    found: list[dict[str, Any]] = yaml.safe_load(ACTION)["runs"]["steps"]
    return found


def step(name: str) -> dict[str, Any]:
    """The action's step of that name."""
    return next(s for s in steps() if s["name"] == name)


def test_the_action_is_whole() -> None:
    names = [s["name"] for s in steps()]
    assert len(set(names)) == len(names)
    assert names[0] == RUN[0]  # before there is anything that it may not remove
    for one in steps():
        assert ("uses" in one) != ("run" in one), one["name"]
        assert one.get("shell", "bash" if "uses" in one else "") == "bash", one["name"]  # with pipefail
        # What a pull request chooses reaches a script through the environment, never as its text.
        assert "${{" not in one.get("run", ""), one["name"]
    ids = {s["id"] for s in steps() if "id" in s}
    assert set(re.findall(r"steps\.(\w+)\.", ACTION)) == ids
    inputs = set(yaml.safe_load(ACTION)["inputs"])
    assert set(re.findall(r"inputs\.([\w-]+)", ACTION)) == inputs
    restored, saved = step("The main branch's report")["with"], step("Keep it for the pull requests to come")["with"]
    assert restored["path"] == saved["path"]  # a cache is found by its path too
    assert restored["restore-keys"] == "${{ steps.before.outputs.keys }}"
    assert saved["key"].startswith("q4gsw-report-${{ github.sha }}-")


def test_what_others_wrote_is_pinned_by_commit() -> None:
    for text in (ACTION, JOB, GATE):
        for used in re.findall(r"^ *(?:- )?uses: (.*)", text, re.MULTILINE):
            assert re.fullmatch(r"\./suite|[\w./-]+@[0-9a-f]{40} +# .*", used), used
        actions = re.findall(r"uses: (actions/[\w/-]+@[0-9a-f]{40}) +# (v\d+\.\d+\.\d+)", text)
        assert len(actions) == text.count("uses: actions/")


def test_the_job_hands_its_inputs_on_and_may_only_read() -> None:
    job = yaml.safe_load(JOB)
    inputs = set(job[True]["workflow_call"]["inputs"])  # YAML takes the key "on" for a truth value
    (one,) = (s for s in job["jobs"]["conformance"]["steps"] if s.get("uses") == "./suite")
    assert one["with"] == {"repository": "repository", **{name: f"${{{{ inputs.{name} }}}}" for name in inputs}}
    assert set(one["with"]) <= set(yaml.safe_load(ACTION)["inputs"])
    assert job["permissions"] == {"contents": "read"}
    assert {"runs-on", "container", "timeout-minutes"} <= set(job["jobs"]["conformance"])


def test_the_page_gives_what_the_job_and_the_action_take() -> None:
    whole, runner, hook = (yaml.safe_load(text) for text in blocks(GATE, "yaml"))
    assert set(whole[True]) == {"pull_request", "merge_group", "push"}
    assert whole["permissions"] == {"contents": "read"}
    job, (*_, action) = whole["jobs"]["conformance"], runner["jobs"]["conformance"]["steps"]
    assert set(job["with"]) <= set(yaml.safe_load(JOB)[True]["workflow_call"]["inputs"])
    assert set(action["with"]) <= set(yaml.safe_load(ACTION)["inputs"])
    assert len(blocks(GATE, "yaml")[0].splitlines()) <= 11
    (own,) = HOOKS
    assert [h["id"] for h in hook["repos"][0]["hooks"]] == [own["id"]]
    assert os.access(ROOT / own["entry"], os.X_OK)


def test_what_the_action_installs_is_what_dev_installs() -> None:
    dev = (ROOT / "dev").read_text()
    needed = set(re.search(r"packages=\((.*)\)", dev)[1].split()) - {"chromium"}  # type: ignore[index]  # the line is there
    assert needed <= set(step("Debian packages")["run"].split())
    assert step("Judge")["env"]["Q4GSW_WITHOUT"] == "chromium"


def conformance(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m conformance`` from the repository's root."""
    command = [sys.executable, "-m", "conformance", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A runner after the checkouts: the page's repository, and an action whose environment is this one."""
    root = tmp_path / "workspace"
    packer, subject = blocks(GATE, "python")
    (root / "repository" / "ci").mkdir(parents=True)
    (root / "repository" / "nibbles.py").write_text(packer)
    (root / "repository" / "ci" / "q4gsw_subject.py").write_text(subject)
    (root / "repository" / "ci" / "q4gsw_known.toml").write_text("")
    (root / "action" / ".nox" / "shared" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", root / "action")
    (root / "action" / "dev").write_text("#!/bin/sh\n")
    (root / "action" / "dev").chmod(0o755)
    q4gsw_that(root)
    for words in (["init", "-q"], ["add", "."], [*AUTHOR, "commit", "-q", "-m", "mine"]):
        subprocess.run(["git", "-C", str(root / "repository"), *words], check=True)
    return root


def q4gsw_that(workspace: Path, afterwards: str = "") -> None:
    """Put down the command of the environment that ``dev`` makes; ``afterwards`` follows a run."""
    there = workspace / "action" / ".nox" / "shared" / "bin" / "q4gsw"
    there.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="{ROOT}"\n"{sys.executable}" -m conformance "$@"\ncode=$?\n'
        f'if [ "$1" = run ]; then {afterwards or ":"}; fi\nexit $code\n'
    )
    there.chmod(0o755)


def swap_nibbles(workspace: Path) -> None:
    """Break the packer of the page's repository."""
    packer = workspace / "repository" / "nibbles.py"
    packer.write_text(packer.read_text().replace("0::2] << 4 | codes[:, 1::2]", "1::2] << 4 | codes[:, 0::2]"))


def bash(workspace: Path, name: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a step as it stands in the action, for the page's packer at level smoke."""
    one, outputs = step(name), home / "outputs"
    outputs.mkdir(exist_ok=True)
    values = {f"inputs.{n}": about.get("default", "") for n, about in yaml.safe_load(ACTION)["inputs"].items()}
    page = yaml.safe_load(blocks(GATE, "yaml")[0])["jobs"]["conformance"]["with"]
    values |= {f"inputs.{n}": value for n, value in page.items()} | {"inputs.level": "smoke"}
    values["inputs.repository"] = "repository"
    for file in outputs.iterdir():
        pairs = (line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
        values |= {f"steps.{file.name}.outputs.{n}": value for n, value in pairs}
    own = {n: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: values.get(m[1], ""), v) for n, v in one.get("env", {}).items()}
    github = {"WORKSPACE": workspace, "STEP_SUMMARY": workspace / "summary", "ACTION_PATH": workspace / "action"}
    github["OUTPUT"] = outputs / one.get("id", "none")
    env = {**os.environ, **{f"GITHUB_{n}": str(path) for n, path in github.items()}, "HOME": str(home), **own}
    env["RUNNER_TEMP"] = str(home / "temp")
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", one["run"]]
    return subprocess.run(command, cwd=workspace, env=env, capture_output=True, text=True, check=False, timeout=300)


def job(workspace: Path, home: Path, of_main: Path | None = None) -> tuple[str, str]:
    """Run the action's steps around a verdict in their order; the one that failed, or "", and what they said."""
    said = ""
    for one in steps():
        if one["name"] == "The main branch's report" and of_main:
            shutil.copytree(of_main, home / "temp" / "q4gsw" / "main-report")
        if one["name"] in RUN:
            done = bash(workspace, one["name"], home)
            said += done.stdout + done.stderr
            if done.returncode:
                return one["name"], said
    return "", said


def report_of(home: Path) -> Path:
    return home / "temp" / "q4gsw" / "report"


def test_the_subject_and_the_gate_run(workspace: Path, tmp_path: Path) -> None:
    """The page's packer is right; with its nibbles swapped it is red, explained, and only what is new is gated."""
    failed, said = job(workspace, tmp_path)
    assert failed == "", said
    assert "tests:2 passed:1 failed:0 error:0 unsupported:1" in said
    right, swapped = tmp_path / "right", tmp_path / "swapped"
    shutil.copytree(report_of(tmp_path), right)
    swap_nibbles(workspace)
    failed, said = job(workspace, tmp_path, right)  # a runner keeps its files: what was green there hides nothing
    assert failed == "Gate", said
    assert "new failure: pack/worked-bytes/flat: PASS -> FAIL (PACK/layout/nibble_order)" in said
    assert "new failure: pack/worked-bytes/flat" in (workspace / "summary").read_text()
    about = "file=ci/q4gsw_subject.py,line=1,title=PACK/layout/nibble_order"
    assert f"::error {about}::pack/worked-bytes/flat: packed[0, 0] is 0xf0" in said
    assert said.index("::stop-commands::") < said.index("FAIL pack/worked-bytes/flat") < said.index("::error ")
    assert (report_of(tmp_path) / "junit.xml").is_file()
    assert "PACK/layout/nibble_order" in (report_of(tmp_path) / "q4gsw.sarif").read_text()
    shutil.copytree(report_of(tmp_path), swapped)
    assert job(workspace, tmp_path, swapped)[0] == ""  # main has it already
    assert job(workspace, tmp_path)[0] == "Gate"  # no report of main yet


@pytest.mark.parametrize(
    "afterwards",
    ['rm -r "$REPORT"', "sed -i '$d' \"$REPORT/verdicts.jsonl\""],
    ids=["could not start", "did not finish"],
)
def test_a_run_without_its_end_is_red(workspace: Path, tmp_path: Path, afterwards: str) -> None:
    """The second leaves a summary.md and no footer, as a run that was interrupted does."""
    q4gsw_that(workspace, afterwards)
    assert job(workspace, tmp_path)[0] == "Judge"


def test_the_hook_judges_the_repository_that_it_is_run_in(workspace: Path) -> None:
    (own,) = HOOKS
    hook = workspace / "action" / own["entry"]
    hook.parent.mkdir()
    shutil.copy(ROOT / own["entry"], hook)
    words = [str(hook), "--subject", "ci/q4gsw_subject.py:Packer", "--stages", "PACK"]
    env = {**os.environ, "Q4GSW_CACHE": str(workspace / "cache")}
    for code in (0, 1):
        done = subprocess.run(words, cwd=workspace / "repository", env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        swap_nibbles(workspace)


def test_what_a_run_is_compared_with_are_the_commits_of_main_before_it(workspace: Path, tmp_path: Path) -> None:
    """Nearest first, without the pull request's own, and no more than a cache is looked for by."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.rmtree(workspace / "repository" / ".git")
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
    assert bash(workspace, "The commits of main before this one", home).returncode == 0
    keys = [f"q4gsw-report-{of}" for of in reversed(main)][:9]
    assert (home / "outputs" / "before").read_text().split("\n") == ["keys<<END", *keys, "END", ""]
    for text in (JOB, GATE):
        depth = re.search(r"fetch-depth: (\d+)", text)
        assert depth
        assert int(depth[1]) == 1 + len(keys) == 10, "and the key that is never there makes ten: all that are allowed"


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


def test_counts_are_those_of_the_catalogue() -> None:
    """One count of the whole catalogue in all transcripts; cases that came since are few enough."""
    from argparse import Namespace

    from conformance.runs.plugin import selected

    asked = Namespace(level="gate", case=[], case_list="", last_failed="", stages=(), seed=0)
    there, packed = len(selected(asked)), len(selected(Namespace(**vars(asked) | {"stages": ("PACK",)})))
    line = r"^tests:(\d{4}) passed:\1 failed:0 error:0 unsupported:0 xfail:0 xpass:0$"
    told = {int(n) for path in (ROOT / "README.md", ROOT / "docs/first-failure.md") for n in found(line, path)}
    assert len(told) == 1
    assert there * 0.9 < told.pop() <= there
    assert {int(n) for n in found(r"^tests:(\d{3}) passed:0 ", ROOT / "docs/first-failure.md")} == {packed}
    for level, number in found(r"^\| (smoke|gate|deep) \| (\d+)", ROOT / "docs/commands.md"):
        real = len(selected(Namespace(**vars(asked) | {"level": level})))
        assert real * 0.9 < int(number) <= real, level


def found(pattern: str, path: Path) -> list[Any]:
    return re.findall(pattern, path.read_text(), re.MULTILINE)


def test_each_upstream_defect_has_a_state() -> None:
    """Drafted, filed with a link, or fixed in a version; docs/upstream-defects.md says how one is retired."""
    text = (ROOT / "docs/upstream-defects.md").read_text()
    state = r"^- issue, (drafted|\[filed\]\(https://\S+\)|fixed in \d+(\.\d+)+):"
    defects = [part for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:] if "- signature:" in part]
    assert len(defects) > 20
    assert not [part.splitlines()[0] for part in defects if not re.search(state, part, re.MULTILINE)]
