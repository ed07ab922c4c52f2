"""Every token mutant of both shaders: refuted by a case, or proven equivalent for all sizes.

    python -m tests.meta.shader_mutants --journal mutants.jsonl

A mutant is the shader with one operator, number or component changed. It is compiled as the first form whose binary
it changes; a mutant that changes none is the same shader. What small cases do not show goes to the proof. The journal
keeps what was decided: run the command again to go on. Prints the counts, and each mutant that is neither.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from conformance.case.case import Variant as Form
from conformance.proofs.every_size import refute
from conformance.proofs.every_size.contract import Setting
from conformance.proofs.every_size.decide import decide
from conformance.proofs.every_size.spirv.module import BadModule, Unsupported, read
from impl.errors import ShaderCompileError
from impl.kernel import variant_named
from impl.shader.compiler import GLSL, compile_shader

SHADERS = ("embedding_q4gsw", "pack_q4_linear_weight")
#: Forms that together compile every line, the cheapest to judge first.
FORMS = {
    SHADERS[0]: (
        "flat-buffer-f32out-f32scale-buffer", "block-buffer-f32out-f32scale-buffer",
        "block-buffer-f16out-f16scale-buffer", "block-texture2d-f32out-f32scale-texture3d",
        "flat-buffer-f16out-f32scale-texture3d",
    ),
    SHADERS[1]: ("buffer", "texture2d"),
}  # fmt: skip
_TOKEN = re.compile(
    r"(?P<number>0x[0-9A-Fa-f]+|\b\d+)(?P<unsigned>u?)\b|(?P<operator><<|>>|<=|>=|==|!=|\+\+|\+=|[-+*/%&|<>]=?)"
    r"|\.(?P<lanes>[xyzw]{1,2})\b"
)
_OPERATORS = {
    "<<": (">>",), ">>": ("<<",), "<": ("<=", ">"), ">": ("<",), "<=": ("<",), ">=": (">", "<"), "==": ("!=",),
    "!=": ("==",), "+": ("-", "*"), "-": ("+",), "*": ("+", "/"), "/": ("*", "%"), "%": ("/",), "&": ("|", "^"),
    "|": ("&", "^"), "+=": ("-=",),
}  # fmt: skip
_LANES = dict(zip("xyzw", "yzwx", strict=True))
REFUTED, EQUIVALENT, SAME, NONE, OPEN = (
    "refuted",
    "proven equivalent",
    "the same binary",
    "does not compile",
    "undecided",
)


@dataclass(frozen=True)
class Mutant:
    shader: str
    line: int
    column: int
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.shader}:{self.line}:{self.column} {self.old} -> {self.new}"

    def text(self) -> str:
        lines = (GLSL / f"{self.shader}.comp").read_text().splitlines()
        line = lines[self.line - 1]
        lines[self.line - 1] = line[: self.column] + self.new + line[self.column + len(self.old) :]
        return "\n".join(lines) + "\n"


def mutants(shader: str) -> Iterator[Mutant]:
    """Every change of one token, in the order of the text."""
    for number, line in enumerate((GLSL / f"{shader}.comp").read_text().splitlines(), 1):
        code = line.partition("//")[0]
        if code.lstrip().startswith(("#", "layout(")) and not code.startswith("#define COLUMNS"):
            continue
        for match in _TOKEN.finditer(code):
            old = match.group().removeprefix(".")
            for new in changed(match):
                yield Mutant(shader, number, match.end() - len(old), old, new)


def changed(match: re.Match[str]) -> Iterator[str]:
    if text := match["number"]:
        value = int(text, 0)
        for other in {value + 1, max(value - 1, 0)} - {value}:
            yield (hex(other) if text.startswith("0x") else str(other)) + match["unsigned"]
    elif text := match["operator"]:
        yield from _OPERATORS.get(text, ())
    elif text := match["lanes"]:
        yield _LANES[text[0]] + text[1:]


def judged(mutant: Mutant, folder: Path) -> tuple[str, str]:
    """What is known of a mutant, and the form with what is wrong."""
    source = folder / f"{mutant.shader}.comp"
    source.write_text(mutant.text())
    original = GLSL / f"{mutant.shader}.comp"
    for name in FORMS[mutant.shader]:
        prepack = mutant.shader == SHADERS[1]
        defines = (("TEXTURE",) if name == "texture2d" else ()) if prepack else variant_named(name).defines
        try:
            spirv = compile_shader(source, defines).spirv
        except ShaderCompileError:
            return NONE, name
        if spirv != compile_shader(original, defines).spirv:
            return decided(spirv, name, prepack=prepack)
    return SAME, ""


def decided(spirv: bytes, name: str, *, prepack: bool) -> tuple[str, str]:
    own = {} if prepack else {key: value for key, value in vars(variant_named(name)).items() if key != "float_modes"}
    form = name if prepack else Form(**own)
    try:
        module = read(spirv)
        for question in refute.usual_tables(name) if prepack else refute.usual_lookups(Form(**own)):
            if wrong := refute.wrong(module, question, strides=True):
                return REFUTED, f"{name}: {refute.describe(question)}: {wrong}"
    except (BadModule, Unsupported) as error:
        return OPEN, f"{name}: {error}"
    found = [decide(spirv, form, Setting())]
    if not prepack and found[0].result == "proven":
        found.append(decide(spirv, form, Setting(known_dim=True, known_group=True, known_rows=True)))
    worst = next((one for one in found if one.result != "proven"), None)
    if worst is None:
        return EQUIVALENT, name
    return (REFUTED if worst.result == "refuted" else OPEN), f"{name}: {worst.findings[0].line}"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--part", default="1/1", help="I/N: every Nth mutant, from the Ith on")
    options = parser.parse_args(words)
    known = {}
    if options.journal.is_file():
        known = {line["name"]: line for line in map(json.loads, options.journal.read_text().splitlines())}
    part, parts = map(int, options.part.split("/"))
    wanted = [mutant for shader in SHADERS for mutant in mutants(shader)][part - 1 :: parts]
    folder = options.journal.parent / f"mutants-{part}"
    folder.mkdir(parents=True, exist_ok=True)
    for mutant in tqdm(wanted, unit=" mutants", disable=None):
        if mutant.name not in known:
            outcome, why = judged(mutant, folder)
            known[mutant.name] = {**asdict(mutant), "name": mutant.name, "outcome": outcome, "why": why}
            with options.journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps(known[mutant.name]) + "\n")
    lines = [known[mutant.name] for mutant in wanted]
    print(f"{len(lines)} mutants:", dict(Counter(line["outcome"] for line in lines)))
    for line in lines:
        if line["outcome"] == OPEN:
            print(f"  {line['name']}: {line['why']}")
    return 1 if any(line["outcome"] == OPEN for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
