"""Verdicts for other programs: JUnit for CI, SARIF for code scanning, annotations on a pull request.

A failure stands at the innermost line of the subject's repository that its traceback names, else at the subject's file.

Source: OASIS SARIF 2.1.0; GitHub's workflow commands; docs/gate-your-repo.md.
"""

import json
import re
import xml.etree.ElementTree as ET  # written here; nothing is parsed
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import quote

from conformance.files import printable
from conformance.results.causes import causes, describe
from conformance.results.verdict import ERROR, PASS, UNEXPECTED, UNSUPPORTED, XFAIL, Stream, Verdict

_FRAME = re.compile(r'File "([^"\n]+)", line (\d{1,9})\b')
#: What an outcome is in JUnit; "" is passed.
_KIND = {PASS: "", UNSUPPORTED: "skipped", XFAIL: "skipped", ERROR: "error"}
_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def place(verdict: Verdict, stream: Stream) -> tuple[str, int]:
    """Return a path of the subject's repository, with slashes, and a line of it; ("", 1) for a built-in subject."""
    root, own = (str(stream.header.get(name, "")) for name in ("subject_repository", "subject_file"))
    for path, line in reversed(_FRAME.findall(verdict.printed)):
        if root and PurePosixPath(path).is_relative_to(root):
            return str(PurePosixPath(path).relative_to(root)), max(1, int(line))
    return own.rpartition(":")[0], 1


def annotations(streams: Sequence[Stream]) -> list[str]:
    """Return a command of GitHub's workflows for each cause: its example, on a line of a changed file."""
    lines = []
    for stream in streams:
        for there in causes(stream.verdicts):
            path, line = place(there[0], stream)
            count = f" ({len(there)} cases)" if there[1:] else ""
            about = {"file": path, "line": str(line) if path else "", "title": f"{there[0].signature}{count}"}
            words = ",".join(f"{name}={_escaped(text, ',:')}" for name, text in about.items() if text)
            said = f"{there[0].case}: {there[0].reason} [contract {there[0].contract}]"
            lines.append(f"::error {words}::{_escaped(said)}")
    return lines


def _escaped(text: str, more: str = "") -> str:
    """A text as a workflow command carries it: percent signs, ends of lines and ``more`` as %XX."""
    return "".join(f"%{ord(c):02X}" if c in f"%\r\n{more}" else c for c in text)


def junit(streams: Sequence[Stream], detects: Mapping[str, str]) -> str:
    """Return JUnit XML: a suite for each stream, a test for each verdict; XPASS is a failure, XFAIL skipped."""
    suites = ET.Element("testsuites")
    for stream in streams:
        header, verdicts = stream.header, stream.verdicts
        suite = ET.SubElement(suites, "testsuite", name=_line(header, "subject"), tests=str(len(verdicts)))
        suite.set("timestamp", _line(header, "started"))
        suite.set("time", f"{sum(v.seconds for v in verdicts):.3f}")
        kinds = [_KIND.get(v.outcome, "failure") for v in verdicts]
        for name, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(name, str(kinds.count(kind)))
        for v, kind in zip(verdicts, kinds, strict=True):
            test = ET.SubElement(suite, "testcase", classname=v.stage, name=v.case, time=f"{v.seconds:.3f}")
            named = {"contract": v.contract, "outcome": str(v.outcome), "signature": v.signature}
            properties = ET.SubElement(test, "properties")
            for name, value in named.items():
                ET.SubElement(properties, "property", name=name, value=value)
            if kind:
                end = ET.SubElement(test, kind, message=f"{v.defect}: {v.reason}" if v.outcome == XFAIL else v.reason)
                end.text = describe(v, detects.get(v.case, "")) if v.outcome in UNEXPECTED else None
    return str(ET.tostring(suites, encoding="unicode", xml_declaration=True))


def _line(header: Mapping[str, object], name: str) -> str:
    return printable(str(header.get(name, "")))


def sarif(streams: Sequence[Stream]) -> str:
    """Return a SARIF log: a run for each stream, a rule for each signature, a result for each unexpected verdict."""
    runs = []
    for stream in streams:
        bad = [v for v in stream.verdicts if v.outcome in UNEXPECTED]
        rules = {v.signature or v.outcome: {"text": f"docs/contract.md {v.contract}, stage {v.stage}"} for v in bad}
        driver = {
            "name": "q4gsw",
            "version": str(stream.header.get("revision", "unknown")),
            "rules": [{"id": name, "shortDescription": text} for name, text in rules.items()],
        }
        runs.append({"tool": {"driver": driver}, "results": [_result(v, *place(v, stream)) for v in bad]})
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": runs}, indent=1)


def _result(v: Verdict, path: str, line: int) -> dict[str, object]:
    where = {"artifactLocation": {"uri": quote(path)}, "region": {"startLine": line}}
    return {
        "ruleId": v.signature or str(v.outcome),
        "level": "error",
        "message": {"text": f"{v.case}: {v.reason}"},
        "locations": [{"physicalLocation": where}] if path else [],
        "partialFingerprints": {"case/v1": v.case},
    }
