"""What the documents say, as data: code blocks, commands with their options, links. And what there really is."""

import argparse
import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Sessions that hand their words to a command of ``q4gsw``.
#: Sessions that run a package of tests/.
_MAINS = {"fuzz": "fuzz", "mutate": "meta/mutation"}
_FORWARDED = {"conformance": "run", "prove": "prove", "bisect": "bisect", "versions": "versions"}
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
#: The command at the start of a line or of a code span, in a shell's transcript, with its directory, after a colon.
_Q4GSW = r"python -m conformance(?![.\w])|(?:^ *|(?<=`)|(?<=\$ )|(?<=bin/)|(?<=: ))q4gsw(?= [a-z\-])"
_COMMAND = re.compile(
    rf"(?:{_Q4GSW}|\bnox(?= -(?:s|f|l)\b)|\./dev(?= ))(?P<words>(?:[^\n`\\]|\\\n|\\[^\n])*)", re.MULTILINE
)
_OPTION = re.compile(r"(?<![\w\-./])--?[a-zA-Z][\w\-]*")


@dataclass(frozen=True)
class Command:
    """``program`` is "q4gsw" or "nox"; ``words`` what follows it, quoted arguments left out."""

    program: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.program} {' '.join(self.words)}"


def blocks(text: str, language: str = "") -> list[str]:
    """The code blocks of a document, of one language if it is given."""
    return [
        re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
        for indent, name, body in _FENCE.findall(text)
        if language in {"", name}
    ]


def commands(text: str) -> Iterator[Command]:
    """Every command of ours in a text, in a code block or between backticks."""
    for found in _COMMAND.finditer(text):
        line = found["words"].replace("\\\n", " ")
        line = re.sub(r"\"[^\"]*\"|'[^']*'", "QUOTED", line)  # what a command is told about another command
        line = re.split(r" #|;|&&|\|\| |>|\) ", line)[0]
        program = "nox" if found[0].startswith(("nox", "./dev")) else "q4gsw"
        yield Command(program, tuple(re.sub(r"[\[\](),…|]", " ", line).split()))


@functools.cache
def sessions() -> set[str]:
    """The sessions of noxfile.py."""
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.decorator_list}


@functools.cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command of ``q4gsw``."""
    from conformance.cli.main import COMMANDS, parser

    return {name: parser(name) for name in COMMANDS}


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def options_of(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> set[str]:
    """The options of a parser and of the subparsers that ``words`` name (of all of them where they name none)."""
    own = {option for action in parser._actions for option in action.option_strings}
    below = _subparsers(parser)
    named = [word for word in words if word in below]
    return own.union(*(options_of(below[name], words) for name in named or below))


def wrong_with(command: Command, pytest_options: set[str]) -> str:
    """What in a command does not exist, or ""; ``pytest_options`` are those of pytest and of the suite's plugin."""
    words = command.words
    if command.program == "q4gsw":
        return _wrong_subcommand(words)
    own, _, rest = " ".join(words).partition(" -- ")
    named = own.split()
    if "-s" in named[:-1]:  # nox -s SESSION -- OPTIONS
        session = named[named.index("-s") + 1]
    else:  # ./dev SESSION OPTIONS
        session, rest, own = (named or [""])[0], " ".join(words[1:]), ""
    if session.startswith("-"):  # ./dev -l
        return "" if session == "-l" else f"nox option {session}"
    if session not in sessions():
        return f"session {session}"
    if unknown := set(_OPTION.findall(own)) - {"-s", "-f"}:
        return f"nox option {unknown.pop()}"
    told = tuple(rest.split())
    if session in _FORWARDED:
        return _wrong_subcommand((_FORWARDED[session], *told))
    known = pytest_options
    if session == "bench":
        known = _bench_options(told)
    elif session in _MAINS:
        known = _options_in(ROOT / "tests" / _MAINS[session] / "__main__.py")
    unknown = set(_OPTION.findall(rest)) - known
    return f"option {min(unknown)} of session {session}" if unknown else ""


def _wrong_subcommand(words: tuple[str, ...]) -> str:
    known = parsers()
    if not words or not re.fullmatch(r"[a-z][a-z\-]*", words[0]):
        return ""  # "q4gsw COMMAND" stands for all of them
    if words[0] not in known:
        return f"command {words[0]}"
    below = _subparsers(known[words[0]])
    if below and words[1:] and re.fullmatch(r"[a-z][a-z\-]*", words[1]) and words[1] not in below:
        return f"way {words[1]} of {words[0]}"
    if "--" in words:  # what follows is another program's
        words = words[: words.index("--")]
    unknown = set(_OPTION.findall(" ".join(words))) - options_of(known[words[0]], words[1:])
    return f"option {min(unknown)} of {words[0]}" if unknown else ""


def _bench_options(words: tuple[str, ...]) -> set[str]:
    """The options of the bench that ``words`` start with: read off its source, importing one takes torch."""
    paths = [ROOT / "bench" / f"{words[0] if words else 'kernel'}_bench.py", ROOT / "bench" / "common.py"]
    if not paths[0].is_file():
        return set()
    return _options_in(*paths)


def _options_in(*paths: Path) -> set[str]:
    return {"--help", *re.findall(r'"(--[a-z\-]+)"', "".join(path.read_text() for path in paths))}


def links(text: str) -> list[tuple[str, str]]:
    """(path, anchor) of every link to a file; a path of "" is the document itself."""
    prose = _FENCE.sub("", text)
    found = re.findall(r"\]\(([^()\s#]*)(?:#([^()\s]*))?\)", prose)
    return [(path, anchor) for path, anchor in found if not path.startswith(("http:", "https:"))]


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
