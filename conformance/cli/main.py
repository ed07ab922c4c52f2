"""``q4gsw``: the commands by task, and where each of them ends: its errors and its exit code.

| exit code | |
| --- | --- |
| 0 | as expected; found; proven |
| 1 | an unexpected outcome; no answer; refuted |
| 2 | the command line, a file, the subject or the machine is at fault: one line says what; the suite: a traceback |
| 130 | interrupted |
"""

import importlib
import io
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from conformance.cli.options import Parser
from conformance.files import DISK, say, unwritable
from conformance.harness.errors import EnvironmentProblem
from conformance.harness.noise import keep_out

ROOT = Path(__file__).parents[2]
USAGE, INTERRUPTED = 2, 130


class Command(NamedTuple):
    """A command: ``add_NAME`` of ``module`` adds its options to a parser when it is called."""

    module: str
    what: str
    example: str


_RUN, _REPORT, _MODELS = "conformance.cli.run", "conformance.cli.report", "conformance.cli.models"
#: The commands, by task.
TASKS = {
    "judge an implementation": {
        "run": Command(_RUN, "run cases and judge them", "run --subject executorch --stages MATCH,PACK"),
        "replay": Command(_RUN, "run the case of a replay file", "replay report/replay/pack__flat__v1.toml"),
        "list": Command(_RUN, "the cases: id, stage, contract section, what each detects", "list --case 'run/*'"),
        "completion": Command("conformance.cli.completion", "completion for a shell, to be sourced", "completion bash"),
        "devices": Command(_RUN, "Vulkan devices, and the kernel variants that each can run", "devices"),
        "versions": Command("conformance.cli.versions", "judge with every release", "versions --since 1.4.0"),
    },
    "read a report": {
        "report": Command(_REPORT, "sum up verdict streams", "report report --timing"),
        "diff": Command(_REPORT, "what changed between two runs; exit 1 on new failures only", "diff old new"),
        "bisect": Command("conformance.cli.bisect", "find what broke a case", "bisect stage match/torchao/control"),
    },
    "judge a runtime that is elsewhere": {
        "kit": Command("conformance.cli.kit", "cases as files", "kit export kits --case 'run/*'"),
    },
    "look into a model": {
        "check": Command(_MODELS, "a .pt2 lowered, and its file executed beside eager", "check model.pt2"),
        "audit": Command(_MODELS, "what a .pte holds, and what would fail or be wrong on a device", "audit model.pte"),
        "explain": Command(_MODELS, "each embedding of a .pt2: fused or refused, and why", "explain model.pt2"),
        "operators": Command(_MODELS, "the operators that ExecuTorch's Vulkan runtime registers", "operators"),
    },
    "prove": {
        "prove": Command("conformance.cli.prove", "prove numbers and addressing", "prove layout --subject impl"),
    },
}
COMMANDS = {name: command for commands in TASKS.values() for name, command in commands.items()}


def parser(name: str, make: Callable[..., Parser] = Parser) -> Parser:
    """Return the parser of a command, from ``make``; this imports the command's module and no other."""
    module, what, example = COMMANDS[name]
    own = make(prog=f"q4gsw {name}", description=what, example=example)
    getattr(importlib.import_module(module), f"add_{name}")(own)
    return own


def menu() -> str:
    """Return the commands by task."""
    lines = ["usage: q4gsw COMMAND [OPTIONS]    q4gsw COMMAND --help    q4gsw --version"]
    for task, commands in TASKS.items():
        lines += ["", f"{task}:", *(f"  {name:10} {command.what}" for name, command in commands.items())]
    return "\n".join([*lines, "", "example: q4gsw run --level smoke"])


def version() -> str:
    """Return the suite's version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"q4gsw {project['version']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale's encoding lacks
    keep_out()
    try:
        code = _command(*(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("error: interrupted; a report that was being written holds what was judged until then", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, EnvironmentProblem) as error:
        say(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", USAGE)
    except BrokenPipeError:
        _no_more_output()  # the reader of a pipe has enough
        return 0
    except OSError as error:
        full = unwritable(error.filename or "standard output", error)
        other = ": ".join(filter(None, (error.filename, error.strerror or repr(error))))
        say(f"error: {full if error.errno in DISK else other}", file=sys.stderr)
        if not error.filename:
            _no_more_output()  # or what is left fails once more at exit
        return USAGE
    except MemoryError:
        say("error: not enough memory", file=sys.stderr)
        return USAGE
    except Exception:  # noqa: BLE001 - a mistake of the suite is no answer, and Python's exit code 1 would be one
        traceback.print_exc()
        say("error: a mistake of the suite, with nothing judged; please report it", file=sys.stderr)
        return USAGE
    return code


def _no_more_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(name: str = "--help", *words: str) -> int:
    if name in {"-h", "--help", "--version"}:
        say(version()) if name == "--version" else say(*menu().split("\n"))
        return 0
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; there is {', '.join(COMMANDS)}")
    at = words.index("--") if "--" in words else len(words)
    options = parser(name).parse_args(words[:at])
    if at < len(words) and not hasattr(options, "after"):
        raise ValueError(f"{name}: nothing can follow --")
    options.after = words[at + 1 :]
    code: int = options.call(options)
    return code
