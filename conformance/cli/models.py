"""``q4gsw audit | explain | operators``: commands about model files.

Exit codes: 0 read; 1 something would fail or be wrong on a device (audit); 2 the file or the command line is
at fault.

Source: docs/contract.md section 6.
"""

import argparse
from pathlib import Path

from conformance.cli.options import Parser
from conformance.pte import operators as vulkan_operators


def add_audit(parser: Parser) -> None:
    """Add the options of ``q4gsw audit``."""
    parser.set_defaults(call=_audit)
    parser.add_argument("file", type=Path, help="MODEL.pte")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def add_explain(parser: Parser) -> None:
    """Add the options of ``q4gsw explain``."""
    parser.set_defaults(call=_explain)
    parser.add_argument("file", type=Path, help="MODEL.pt2, as torch.export.save writes it")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def add_operators(parser: Parser) -> None:
    """Add the options of ``q4gsw operators``."""
    parser.set_defaults(call=_operators)
    parser.add_argument("--executorch-src", type=Path, help="read the list from this clone, and save it")
    parser.add_argument("--revision", default="HEAD", help="revision of the clone (default: HEAD)")


def _audit(given: argparse.Namespace) -> int:
    from conformance.harness import limited  # noqa: PLC0415 - other commands do not need it

    text = limited.run("conformance.audit.audit:audit_file", given.file, "json" if given.json else "text")
    print(text[1:])
    return int(text[0])


def _explain(given: argparse.Namespace) -> int:
    from conformance.explain.pt2 import check_pt2  # noqa: PLC0415 - other commands do not need them
    from conformance.harness import limited  # noqa: PLC0415 - the same

    check_pt2(given.file)
    print(limited.run("conformance.explain.explain:explain_file", given.file, "json" if given.json else "text"))
    return 0


def _operators(given: argparse.Namespace) -> int:
    if given.executorch_src:
        vulkan_operators.save(vulkan_operators.read_source(given.executorch_src, given.revision))
        vulkan_operators.load.cache_clear()
    known = vulkan_operators.load()
    print("\n".join(known.operators))
    print(f"{len(known.operators)} operators of executorch {known.version} ({known.revision})")
    return 0
