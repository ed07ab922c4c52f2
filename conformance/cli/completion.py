"""``q4gsw completion``: completion of commands and options for a shell."""

import argparse
import functools

import shtab

from conformance.cli.options import Parser


def add_completion(parser: Parser) -> None:
    """Add the options of ``q4gsw completion``."""
    parser.set_defaults(call=_completion)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def _completion(options: argparse.Namespace) -> int:
    from conformance.cli.main import COMMANDS, parser  # noqa: PLC0415 - which has loaded this module

    root = Parser(prog="q4gsw", example="run --level smoke")
    ways = root.add_subparsers()
    for name, command in COMMANDS.items():
        parser(name, functools.partial(ways.add_parser, name, help=command.what))
    print(shtab.complete(root, options.shell))  # noqa: T201 - a script of ours, with tabs
    return 0
