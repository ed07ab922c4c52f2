"""``q4gsw check | audit | explain | operators``: commands about model files."""

import argparse
from collections.abc import Callable
from pathlib import Path

from conformance.cli.options import Parser, busy, positive, print_json
from conformance.files import check_writable, printable, say, write_whole
from conformance.pte import operators as vulkan_operators


def add_audit(parser: Parser) -> None:
    """Add the options of ``q4gsw audit``."""
    _reading(parser, _audit, "MODEL.pte")
    _limits(parser)


def add_explain(parser: Parser) -> None:
    """Add the options of ``q4gsw explain``."""
    _reading(parser, _explain, "MODEL.pt2, as torch.export.save writes it")
    parser.add_argument("--subject", choices=("impl", "executorch"), default="impl", help="whose decisions")
    _limits(parser)


def add_check(parser: Parser) -> None:
    """Add the options of ``q4gsw check``."""
    _reading(parser, _check, "MODEL.pt2, as torch.export.save writes it")
    parser.add_argument(
        "--inputs", type=Path, help="an .npz of arrays, named in order (default: the file's example inputs)"
    )
    parser.add_argument("--subject", choices=("impl", "executorch"), default="impl", help="ours, or the stock lowering")
    parser.add_argument("--html", type=Path, help="write a page to this file, and print its address and the verdict")


def _reading(parser: Parser, call: Callable[[argparse.Namespace], int], what: str) -> None:
    parser.set_defaults(call=call)
    parser.add_argument("file", type=Path, help=what)
    parser.add_argument("--json", dest="form", action="store_const", const="json", default="text", help="print JSON")


def _limits(parser: Parser) -> None:
    add = parser.add_argument
    add("--max-storage-buffer-range", type=positive, metavar="N", help="bytes of the device's largest buffer")
    add("--max-image-dimension-2d", type=positive, metavar="N", help="texels a side of the device's largest image")


def _limit_words(options: argparse.Namespace) -> list[str]:
    limits = (options.max_storage_buffer_range, options.max_image_dimension_2d)
    return ["" if limit is None else str(limit) for limit in limits]


def add_operators(parser: Parser) -> None:
    """Add the options of ``q4gsw operators``."""
    parser.set_defaults(call=_operators)
    parser.add_argument("--executorch-src", type=Path, help="read the list from this clone, and save it")
    parser.shared("--json")
    parser.add_argument("--revision", default="HEAD", help="revision of the clone (default: HEAD)")


def _audit(options: argparse.Namespace) -> int:
    from conformance.harness import limited  # noqa: PLC0415 - other commands do not need it

    with busy(f"reading {printable(str(options.file))}"):
        text = limited.run("conformance.audit.audit:audit_file", options.file, options.form, *_limit_words(options))
    say(*text[1:].split("\n"))
    return int(text[0])


def _explain(options: argparse.Namespace) -> int:
    from conformance.explain.pt2 import check_pt2  # noqa: PLC0415 - other commands do not need them
    from conformance.harness import limited  # noqa: PLC0415 - the same

    check_pt2(options.file)
    words = options.form, options.subject, *_limit_words(options)
    with busy(f"reading {printable(str(options.file))}"):
        text = limited.run("conformance.explain.explain:explain_file", options.file, *words)
    say(*text.split("\n"))
    return 0


def _check(options: argparse.Namespace) -> int:
    from conformance.explain.pt2 import check_pt2  # noqa: PLC0415 - other commands do not need them
    from conformance.harness import limited  # noqa: PLC0415 - the same

    check_pt2(options.file)
    inputs = str(options.inputs.resolve()) if options.inputs else ""
    if options.html:
        check_writable(options.html.parent)
    read, page = "conformance.explain.check:check_file", "conformance.explain.page:page_file"
    words = (inputs, options.subject, *(() if options.html else (options.form,)))
    with busy(f"lowering {printable(str(options.file))}, and executing it"):
        text = limited.run(page if options.html else read, options.file, *words, seconds=600)
    lines = text[1:].split("\n")
    if options.html:
        write_whole({options.html: text[1:]})
        lines = [f"{'WRONG' if int(text[0]) else 'right'}: {options.html.resolve().as_uri()}"]
    say(*lines)
    return int(text[0])


def _operators(options: argparse.Namespace) -> int:
    if options.executorch_src:
        vulkan_operators.save(vulkan_operators.read_source(options.executorch_src, options.revision))
        vulkan_operators.load.cache_clear()
    known = vulkan_operators.load()
    if options.json:
        print_json(known)
        return 0
    say(*known.operators)
    say(
        f"{len(known.operators)} operators of executorch {known.version}, commit {known.revision}",
        f"read from what {vulkan_operators.RUNTIME} registers there, by q4gsw operators --executorch-src CLONE",
    )
    return 0
