"""SPIR-V for proofs over every size: our shaders by variant, a source tree's, another GLSL, a compiled file.

No device is needed. Declared float modes (contract 3.4) change a module's header and none of its instructions, so the
module without them stands for all.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from conformance.case import case as cases
from conformance.harness.errors import EnvironmentProblem, Untestable
from conformance.proofs.every_size.contract import Setting
from conformance.proofs.every_size.decide import Form
from conformance.proofs.target import TargetFacts
from conformance.sources.tree import copy_of, source_tree
from conformance.subjects.executorch_shaders import prepack_name, shader_name
from conformance.subjects.executorch_src_kernel import shaders_of
from impl.dispatch.prepack import PREPACK_STORAGES
from impl.errors import ShaderCompileError, ShaderToolMissing
from impl.kernel import VARIANTS, Variant, variant_named
from impl.shader import compiler

ROOT = Path(__file__).resolve().parents[3]
_EMBEDDING, _PREPACK = (compiler.GLSL / f"{name}.comp" for name in ("embedding_q4gsw", "pack_q4_linear_weight"))
_TREE, _PACK = "executorch-src", "prepack-"
#: Ours strides over rows, and may know sizes when its pipeline is made; ExecuTorch's covers its output.
_OURS = (Setting(), Setting(known_dim=True, known_group=True, known_rows=True))


@dataclass(frozen=True)
class Source:
    """One module, what it claims to be, and the settings that it has to be right in."""

    facts: TargetFacts
    spirv: bytes
    form: Form
    settings: tuple[Setting, ...]


def names() -> tuple[str, ...]:
    """Every form: 24 variants of the embedding shader, two of the prepack shader."""
    return (*(variant.name for variant in VARIANTS), *(f"{_PACK}{storage}" for storage in PREPACK_STORAGES))


def source(subject: str, name: str, file: Path | None = None, *, any_group: bool = False) -> Source:
    """The module of that form: the subject's, or ``file``, a GLSL file (.comp) or a module (.spv) of our interface.

    Raises:
        ValueError: no such subject, form or file, or a file that does not compile.
        EnvironmentProblem: no compiler; names what to install.
    """
    if name not in names():
        raise ValueError(f"unknown variant {name!r}: known are {', '.join(names())}")
    prepack = name.startswith(_PACK)
    form = name.removeprefix(_PACK) if prepack else _form(variant_named(name))
    kind, _colon, where = subject.partition(":")
    if kind == _TREE and file is None:
        facts, spirv = _from_tree(subject, where, name)
        return Source(facts, spirv, form, (Setting(strides=False, any_group=any_group),))
    if kind != "impl":
        raise ValueError(f"subject {subject!r} has no shader: every-size knows impl and {_TREE}:PATH[@REVISION]")
    facts, spirv = _from_file(name, file or (_PREPACK if prepack else _EMBEDDING))
    return Source(facts, spirv, form, _OURS[:1] if prepack else _OURS)


def _form(variant: Variant) -> cases.Variant:
    own = vars(variant)
    return cases.Variant(**{name: str(own[name]) for name in own if name != "float_modes"})


def _from_file(name: str, file: Path) -> tuple[TargetFacts, bytes]:
    if not file.is_file():
        raise ValueError(f"no shader file {file}")
    resolved = file.resolve()
    path = str(resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else resolved)
    if file.suffix == ".spv":
        spirv = file.read_bytes()
        return TargetFacts("impl", name, shader=path, spirv_sha256=hashlib.sha256(spirv).hexdigest()), spirv
    if name.startswith(_PACK):
        defines: tuple[str, ...] = ("TEXTURE",) if name.endswith("texture2d") else ()
    else:
        defines = variant_named(name).defines
    try:
        shader = compiler.compile_shader(file, defines)
    except ShaderToolMissing as error:
        raise EnvironmentProblem(str(error)) from error
    except ShaderCompileError as error:
        raise ValueError(str(error)) from error
    glsl = hashlib.sha256(file.read_bytes()).hexdigest()
    return TargetFacts("impl", name, "", path, glsl, shader.sha256), shader.spirv


def _from_tree(subject: str, where: str, name: str) -> tuple[TargetFacts, bytes]:
    own = prepack_name(name.removeprefix(_PACK)) if name.startswith(_PACK) else shader_name(variant_named(name))
    try:
        shaders = shaders_of(copy_of(source_tree(where)))
    except Untestable as error:
        raise ValueError(str(error)) from error
    if own not in shaders:
        raise ValueError(f"{subject} makes no shader {own}")
    return TargetFacts(subject, name, spirv_sha256=shaders[own].sha256), shaders[own].spirv
