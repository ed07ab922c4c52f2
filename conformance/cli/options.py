"""The parser of every command, and the options that commands share: each is declared here once."""

import argparse
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from conformance.case.case import LEVELS, STAGES
from conformance.cli.config import config
from conformance.files import say
from conformance.serialize import unstructure


def names(text: str) -> tuple[str, ...]:
    """Return the words of a list with commas.

    >>> names("PACK, KERNEL,")
    ('PACK', 'KERNEL')
    """
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def shard(text: str) -> tuple[int, int]:
    """Return I and N of ``--shard I/N``.

    >>> shard("2/4")
    (2, 4)
    """
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"shard {text!r} is not I/N with 1 <= I <= N, such as 2/4")
    return int(number), int(count)


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


DECLARED: dict[str, dict[str, Any]] = {
    "--subject": {
        "default": "impl",
        "help": "impl | executorch | executorch-src:PATH[@REV] | executorch-runtime:PATH | path.py:Class",
    },
    "--level": {"default": "gate", "help": " | ".join(LEVELS)},
    "--stages": {"default": (), "type": names, "metavar": "A,B", "help": "of " + ", ".join(STAGES)},
    "--case": {"default": [], "action": "append", "metavar": "GLOB", "help": "ids of cases, whatever their level"},
    "--device": {"default": "", "help": "Vulkan device by name or index, see q4gsw devices"},
    "--validate": {"action": "store_true", "help": "with Vulkan's validation layer; any message fails the case"},
    "--case-seconds": {
        "type": float,
        "default": 60.0,
        "metavar": "S",
        "help": "of a case; of the first, which loads the subject, at least 120",
    },
    "--json": {"action": "store_true", "help": "print JSON"},
    "--all": {"action": "store_true", "help": "show every failure, not one for each signature"},
    "--repeat": {"type": positive, "default": 1, "metavar": "N", "help": "ask so often: answers that differ fail"},
    "--report": {"default": "", "metavar": "DIR", "help": "directory for the report (default: a new one)"},
    "--shard": {
        "type": shard,
        "metavar": "I/N",
        "help": "only this one of N parts, each of which another machine runs",
    },
    "--cluster": {"default": "", "metavar": "ADDRESS", "help": "a Dask scheduler whose workers do the work"},
    "--resource": {"default": "", "metavar": "NAME", "help": "a Dask resource that a task takes one of, such as GPU"},
    "--expectations": {"default": "", "metavar": "FILE", "help": "known failures, instead of the subject's own"},
}


class Parser(argparse.ArgumentParser):
    """A command's parser: what is wrong raises, and the help ends with an example."""

    def __init__(self, *, example: str = "", **others: Any) -> None:
        super().__init__(epilog=f"example: q4gsw {example}", allow_abbrev=False, **others)
        self.ways: argparse._SubParsersAction[Parser] | None = None

    def error(self, message: str) -> NoReturn:
        """Raise in place of exiting: errors end where every command ends."""
        raise ValueError(f"{message}; see {self.prog} --help")

    def way(self, name: str, what: str, example: str, call: Callable[[argparse.Namespace], int]) -> "Parser":
        """Add the parser of one way of the command, such as ``kit export``, which ``call`` runs."""
        self.ways = self.ways or self.add_subparsers(dest="way", required=True, metavar="WAY")
        one = self.ways.add_parser(name, help=what, description=what, example=example)
        one.set_defaults(call=call)
        return one

    def shared(self, *names: str, **changed: Any) -> None:
        """Add options of ``DECLARED``, with what is ``changed`` in all of them; else the repository's own defaults."""
        for name in names:
            own = config(Path.cwd()).get(name.removeprefix("--")) if name != "--report" else None
            self.add_argument(name, **DECLARED[name] | ({"default": own} if own else {}) | changed)


@contextlib.contextmanager
def busy(what: str, total: int | None = None, unit: str = "") -> Iterator[tqdm]:
    """Say on a terminal, every second, what takes long, and how long it has taken; of a ``total`` rate and time left.

    Whoever has a ``total`` updates the bar. What is logged meanwhile stands above it.
    """
    over, form = threading.Event(), None if total else "{desc}: {elapsed}"
    with (
        logging_redirect_tqdm(),
        tqdm(desc=what, total=total, unit=f" {unit}", bar_format=form, disable=None, leave=False) as bar,
    ):

        def tick() -> None:
            while not over.wait(1):
                bar.refresh()

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield bar
        finally:
            over.set()
            ticker.join()


def print_json(value: object) -> None:
    """Print plain data or dataclasses."""
    say(*json.dumps(unstructure(value), indent=1, sort_keys=True).split("\n"))
