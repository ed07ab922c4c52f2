"""The menu: `nox -l` lists what this project can do. All sessions share one environment, .nox/shared.

`./dev SESSION OPTIONS` is `nox -s SESSION -- OPTIONS`, for example:
    ./dev conformance --subject executorch --level smoke
"""

import hashlib
import logging
import os
import shutil
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2026.10.20"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["conformance", "tests", "lint"]

# What nox says of itself before every session.
logging.getLogger("nox").addFilter(lambda r: not r.getMessage().startswith(("uv binary not found", "Running session ")))

ROOT = Path(__file__).parent
BIN = ROOT / ".nox" / "shared" / "bin"
#: One pytest worker a core; the programs drawn do not depend on the number.
WORKERS = str(os.cpu_count() or 1)
#: Whose models are compared unless others are asked for.
MODELS_OF = ("impl", "executorch")
#: The subjects of conformance/subjects/peers/ that need nothing but wheels.
PEERS = ("onnxruntime", "ggml", "litert", "openvino", "mlx", "torch-bag", "executorch-cpu")


def _run(session: nox.Session, program: str, *arguments: str) -> None:
    """Run a program of the shared environment, which is made first if its pins have changed.

    nox gives every session an environment of its own; torch and executorch are too large for that,
    so the sessions ask for none and share this one. A stamp holds the hash of what was installed.
    """
    pins = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    stamp = BIN.parent / "installed"
    if not stamp.is_file() or stamp.read_text() != pins:
        project = nox.project.load_toml(ROOT / "pyproject.toml")
        session.run(sys.executable, "-m", "venv", str(BIN.parent), external=True)
        install = (str(BIN / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        dependencies = project["project"]["dependencies"]
        # torch first: with it in place nothing else pulls in another build of it.
        session.run(*install, *(d for d in dependencies if d.startswith("torch==")), external=True)
        session.run(
            *install, *dependencies, *nox.project.dependency_groups(project, "lint", "fuzz", "cluster"), external=True
        )
        session.run(*install, "--no-deps", "--editable", str(ROOT), external=True)
        stamp.write_text(pins)
    session.run(str(BIN / program), *arguments, external=True)


def _beside(session: nox.Session, group: str, *options: str) -> str:
    """Return the Python of an environment that stands on the shared one and has the packages of ``group`` besides."""
    _run(session, "q4gsw", "--version")  # the shared environment
    place = ROOT / ".nox" / group
    python, project = place / "bin" / "python", nox.project.load_toml(ROOT / "pyproject.toml")
    if not python.is_file():
        session.run(sys.executable, "-m", "venv", str(place), external=True)
        (shared,), (own,) = (list(folder.glob("lib/*/site-packages")) for folder in (BIN.parent, place))
        (own / "shared.pth").write_text(f"{shared}\n")
    install = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    for requirement in nox.project.dependency_groups(project, group):
        try:
            session.run(*install, *options, requirement, external=True, silent=True)
        except CommandFailed:
            session.warn(f"{requirement} has no wheel for this machine; what needs it is left out")
    return str(python)


@nox.session(venv_backend="none")
def conformance(session: nox.Session) -> None:
    """Judge an implementation: [--subject NAME] [--level smoke|gate|deep] [--stages A,B] [--case GLOB] [...]."""
    _run(session, "q4gsw", "run", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the project's own tests: they judge the suite and the optimized implementation, and seed faults."""
    _run(session, "python", "-m", "pytest", "-q", "-n", WORKERS, "--durations", "25", *session.posargs)


@nox.session(venv_backend="none")
def prove(session: nox.Session) -> None:
    """Prove: all | arithmetic | layout | indexing | every-size | check FILE... (without words: all)."""
    _run(session, "q4gsw", "prove", *(session.posargs or ["all"]))


@nox.session(venv_backend="none")
def drivers(session: nox.Session) -> None:
    """Judge at level gate, and prove everything, on both drivers: lavapipe, and SwiftShader of Debian's chromium."""
    for device in ("llvmpipe", "swiftshader"):
        _run(session, "q4gsw", "run", "--device", device, *session.posargs)
        _run(session, "q4gsw", "prove", "all", "--device", device, "--out", f"report/certificates/{device}")


@nox.session(venv_backend="none")
def fuzz(session: nox.Session) -> None:
    """Fuzz the readers of files from strangers: [--seconds S] [--inputs N] [--readers A,B] [--state DIR]."""
    _run(session, "python", "-m", "tests.fuzz", *session.posargs)


@nox.session(venv_backend="none")
def mutate(session: nox.Session) -> None:
    """Measure detection power: [--files GLOB...] [--operators GLOB...] [--sample N --seed S] [--shard I/N] [...]."""
    session.run(_beside(session, "mutate"), "-m", "tests.meta.mutation", *session.posargs, external=True)


@nox.session(venv_backend="none")
def peers(session: nox.Session) -> None:
    """Judge other implementations, in an environment of their own: [SUBJECT ...]; writes docs/implementations.md."""
    python = _beside(session, "peers")
    asked = session.posargs or PEERS
    reports = ROOT / "report" / "peers"
    shutil.rmtree(reports, ignore_errors=True)
    q4gsw, any_end = (python, "-m", "conformance"), {"external": True, "success_codes": [0, 1, 2]}
    for subject in asked:
        for device in ("llvmpipe", "swiftshader") if ":" in subject else ("",):
            report = reports / "-".join(filter(None, (subject.partition(":")[0], device)))
            own = ("--subject", subject, *(("--device", device) if device else ()))
            session.run(*q4gsw, "run", *own, "--stages", "KERNEL", "--quiet", "--report", str(report), **any_end)
            for variant, domain in (("*f16scale", "all"), ("*f32scale", "boundary")):
                words = ("--variant", variant, "--domain", domain, "--out", str(report / "certificates"))
                session.run(*q4gsw, "prove", "arithmetic", *own, *words, **any_end)
    streams = sorted(map(str, reports.glob("*/verdicts.jsonl")))
    session.run(*q4gsw, "report", *streams, "--html", "--out", str(reports), **any_end)
    session.run(*q4gsw, "report", *streams, "--implementations", "docs/implementations.md", **any_end)


@nox.session(venv_backend="none")
def weights(session: nox.Session) -> None:
    """Take published embedding tables through every stage, on two drivers: [--package NAME]; writes docs/weights.md."""
    python = _beside(session, "weights", "--no-deps")  # only their files are read
    words = session.posargs or ["--out", "docs/weights.md"]
    devices = ("--device", "llvmpipe", "--device", "swiftshader")
    session.run(python, "-m", "tests.meta.weights", *devices, *words, external=True)


@nox.session(venv_backend="none")
def models(session: nox.Session) -> None:
    """Judge models of published architectures, and print a table of them: [SUBJECT ...] (impl and executorch)."""
    _run(session, "q4gsw", "--version")  # the shared environment
    reports, any_end = ROOT / "report" / "models", {"external": True, "success_codes": [0, 1]}
    shutil.rmtree(reports, ignore_errors=True)
    places = [(subject, str(reports / str(number))) for number, subject in enumerate(session.posargs or MODELS_OF)]
    for subject, place in places:
        asked = ("--level", "deep", "--case", "run/model/*", "--case-seconds", "600", "--quiet", "--report", place)
        session.run(str(BIN / "q4gsw"), "run", "--subject", subject, *asked, **any_end)
    session.run(str(BIN / "q4gsw"), "report", *(place for _, place in places), "--models", "--html", **any_end)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style, types and imports: ruff with every rule, mypy in strict mode, import-linter's contracts."""
    _run(session, "ruff", "check")
    _run(session, "ruff", "format", "--check")
    _run(session, "mypy")
    _run(session, "lint-imports", "--no-cache")


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Measure: kernel | packer | matcher | size | generate [options]; `kernel --help` lists the options."""
    what, *options = session.posargs or ["kernel", "--quick"]
    known = sorted(p.stem.removesuffix("_bench") for p in (ROOT / "bench").glob("*_bench.py"))
    if what not in known:
        session.error(f"unknown bench {what!r}; there is {', '.join(known)}")
    _run(session, "python", "-m", f"bench.{what}_bench", *options)


@nox.session(venv_backend="none")
def bisect(session: nox.Session) -> None:
    """Find what broke a case: stage CASE | commit CASE --repo PATH --good A --bad B | sizes CASE --axis NAME."""
    _run(session, "q4gsw", "bisect", *session.posargs)


@nox.session(venv_backend="none")
def versions(session: nox.Session) -> None:
    """Judge a subject with every release: [--since V | --versions A,B] [--package torchao] [--case GLOB] [...]."""
    _run(session, "q4gsw", "versions", *session.posargs)
