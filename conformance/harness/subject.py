"""Subject: an implementation under judgement, and how one is loaded by name or file."""

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import reprlib
import sys
from pathlib import Path
from typing import Protocol, runtime_checkable

from conformance.case.case import Case
from conformance.harness.errors import BadSubject
from conformance.harness.observation import Observation
from conformance.sources.runtime import runtime_source
from conformance.sources.tree import source_tree

SUBJECTS = Path(__file__).parent.parent / "subjects"
#: Built-in subjects that judge something named: NAME:WHAT.
WHAT = {
    **dict.fromkeys(("executorch-src", "executorch-webgpu-src"), "PATH[@REVISION]"),
    "executorch-runtime": "PATH[@LOWERING]",
}


@runtime_checkable
class Subject(Protocol):
    """The one interface of the suite. Every child process makes a subject of its own."""

    def supports(self, case: Case) -> bool | str | None:
        """Return whether the subject can be asked this case: a bool; or the reason why not, or None."""
        ...

    def run(self, case: Case) -> Observation:
        """Do what the case asks and report it. Exceptions count against the subject."""
        ...


def names() -> tuple[str, ...]:
    """Names of the built-in subjects: the files of conformance/subjects/ that define SubjectUnderTest, with dashes."""
    return tuple(sorted(_modules()))


def peers() -> tuple[str, ...]:
    """Names of the built-in subjects that are other projects' implementations."""
    return tuple(name for name in names() if ".peers." in _modules()[name])


@functools.cache
def _modules() -> dict[str, str]:
    """The module of each built-in subject, by its name."""
    found = {}
    for path in SUBJECTS.rglob("*.py"):
        if "\nclass SubjectUnderTest" in path.read_text(encoding="utf-8"):
            module = path.relative_to(SUBJECTS.parent).with_suffix("").parts
            found[path.stem.replace("_", "-")] = ".".join(["conformance", *module])
    return found


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """Subjects of other packages in this environment, by name: entry points of the group ``q4gsw.subjects``."""
    return {point.name: point for point in importlib.metadata.entry_points(group="q4gsw.subjects")}


def resolved(spec: str) -> str:
    """Return ``spec`` as it is recorded: what NAME:WHAT names in full, so that it means the same from anywhere.

    Raises:
        ValueError: see ``check_name``.
    """
    name, colon, what = spec.partition(":")
    if colon and name in WHAT:
        return f"{name}:{runtime_source(what) if name == 'executorch-runtime' else source_tree(what)}"
    path, colon, class_name = spec.rpartition(":")
    return f"{Path(path).resolve()}:{class_name}" if colon and path.endswith(".py") else spec


def check_name(spec: str) -> None:
    """Check ``spec`` without importing anything.

    Raises:
        ValueError: neither a built-in name, nor NAME:WHAT, nor an existing path.py:Class; names the nearest ones.
    """
    name, colon, _ = spec.partition(":")
    if name in WHAT:
        if not colon:
            raise ValueError(f"subject {name!r} needs to be told what to judge: --subject {name}:{WHAT[name]}")
        resolved(spec)
        return
    if spec in names() or spec in installed():
        return
    path, colon, class_name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        if not Path(path).is_file():
            raise ValueError(f"subject {spec!r}: no file {path}")
        if not class_name.isidentifier():
            raise ValueError(f"subject {spec!r}: {class_name!r} is not a class name")
        return
    every = (*names(), *installed())
    near = difflib.get_close_matches(spec, every, cutoff=0.3) or every
    raise ValueError(f"unknown subject {spec!r}; did you mean {' or '.join(near)}? (or path.py:Class)")


def from_file(recorded: str, option: str, file: Path) -> str:
    """Return the subject to ask where ``file`` records one: ``--subject``, or the file's own where it is built in.

    Raises:
        ValueError: the file's own runs code from a path, which only the command line may name; or see ``check_name``.
    """
    if not option and (":" in recorded or recorded in installed()) and recorded not in names():
        raise ValueError(f"{file}: its subject {recorded!r} is code of its own, which runs only if --subject names it")
    try:
        check_name(option or recorded)
    except ValueError as error:
        raise ValueError(str(error) if option else f"{error} (recorded in {file}; give --subject)") from error
    return option or recorded


def option_for(spec: str) -> tuple[str, ...]:
    """Return the words with which a command takes the subject ``spec``, though a file names it (``from_file``)."""
    return ("--subject", resolved(spec)) if ":" in spec or spec in installed() else ()


def load(spec: str) -> Subject:
    """Return a new subject: built in (a file's class ``SubjectUnderTest``), installed, NAME:WHAT or path.py:Class.

    Raises:
        ValueError: no such subject.
        BadSubject: the file has no such class, or the class has no ``supports`` and ``run``.
    """
    check_name(spec)
    name, _, what = spec.partition(":")
    arguments = (what,) if name in WHAT else ()
    point = installed().get(spec)
    if spec in names() or arguments:
        class_name = "SubjectUnderTest"
        try:
            module = importlib.import_module(_modules()[name])
        except ImportError as error:
            if name not in peers():
                raise
            raise BadSubject(f"subject {name!r}: {error}; install what peers need: ./dev peers") from error
    elif point:
        module, class_name = importlib.import_module(point.module), point.attr
    else:
        path, _, class_name = spec.rpartition(":")
        module_spec = importlib.util.spec_from_file_location(f"subject_{Path(path).stem}", path)
        if module_spec is None or module_spec.loader is None:
            raise BadSubject(f"subject {spec!r}: {path} cannot be imported")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module
        module_spec.loader.exec_module(module)
    subject_class = getattr(module, class_name, None)
    if subject_class is None:
        raise BadSubject(f"subject {spec!r}: no class {class_name} there")
    subject = subject_class(*arguments)
    if not isinstance(subject, Subject):
        raise BadSubject(f"subject {spec!r}: {class_name} needs the methods supports(case) and run(case)")
    return subject


def unsupported(subject: Subject, case: Case) -> str | None:
    """Return why the subject cannot be asked this case, or None if it can.

    Raises:
        BadSubject: its ``supports`` returns neither a bool nor a reason.
    """
    answer = subject.supports(case)
    if answer is None or isinstance(answer, bool):
        return None if answer is not False else "the subject does not support it"
    if isinstance(answer, str):
        return answer
    name = type(subject).__name__
    raise BadSubject(
        f"subject class {name}: supports() returns {reprlib.repr(answer)}, neither a bool nor a reason as a text"
    )
