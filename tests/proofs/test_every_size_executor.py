"""The executor under `prove every-size` is a third implementation: it agrees with a device and with the reference."""

import contextlib
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import z3

from conformance.case.case import Case, Dispatch, Variant
from conformance.case.catalogue import load
from conformance.case.operands import operands
from conformance.proofs.every_size.contract import Lookup, Setting
from conformance.proofs.every_size.decide import decide
from conformance.proofs.every_size.instance import Grid, lookup, wrong_lookup
from conformance.proofs.every_size.spirv import terms
from conformance.proofs.every_size.spirv.concrete import Buffer, run
from conformance.proofs.every_size.spirv.concrete import Dispatch as Run
from conformance.proofs.every_size.spirv.explore import walk
from conformance.proofs.every_size.spirv.module import BadModule, Unsupported, read
from conformance.proofs.every_size.spirv.terms import atom, quotient, remainder, variable, z
from conformance.subjects.impl import run_kernel, variant_of
from impl.dispatch.job import Job, Operand, Output, run_job
from impl.kernel import Device, variant_named
from impl.shader.compiler import GLSL, Shader, compile_shader

EMBEDDING = GLSL / "embedding_q4gsw.comp"
FLAT = "flat-buffer-f32out-f32scale-buffer"
MOST_ELEMENTS = 8_000


def cases() -> list[Case]:
    """KERNEL cases with arrays of their own that take the executor less than a second each."""
    found = []
    for case in load():
        own = case.question
        if isinstance(own, Dispatch) and not own.exceeds_limit and case.level != "deep":
            size = int(np.prod(own.indices_shape)) * own.embed_dim
            if (
                size <= MOST_ELEMENTS
                and own.vocab_size * own.embed_dim <= 1 << 22
                and own.embed_dim % own.group_size == 0
            ):
                found.append(case)
    return found


def test_it_agrees_with_the_reference_and_with_the_device_on_the_kernel_cases() -> None:
    compared = 0
    for number, case in enumerate(cases()[::3]):
        own = case.question
        assert isinstance(own, Dispatch)
        module = read(compile_shader(EMBEDDING, variant_of(own).defines).spirv)
        given = operands(own)
        grid = Grid((own.embed_dim // 4, 3, 2 if own.io_storage == "texture3d" else 1), {})
        assert wrong_lookup(module, own, given, grid) == "", case.id
        if number % 8 == 0:
            got, _faults = lookup(module, own, given, grid)
            answer = run_kernel(own)
            there = answer.arrays["out"]  # type: ignore[union-attr]
            assert ((got == there.view(got.dtype)) | np.isnan(there)).all(), case.id
            compared += 1
    assert compared > 25


@pytest.mark.parametrize("seed", range(12))
def test_it_agrees_with_the_device_on_random_shaders(seed: int, tmp_path: Path) -> None:
    """Expressions of integers and floats, with branches, over what the invocation's number makes of two inputs."""
    source = tmp_path / "random.comp"
    source.write_text(drawn(random.Random(seed)))  # noqa: S311 - no secret
    shader = compile_shader(source)
    rng = np.random.default_rng(seed)
    inputs = rng.integers(0, 1 << 32, 64, dtype=np.uint64).astype(np.uint32)
    here = np.zeros(64, np.uint32)
    dispatch = Run({0: Buffer(here), 1: Buffer(inputs)}, (7, 3), {0: 16}, (4, 1, 1))
    run(read(shader.spirv), dispatch)
    assert not dispatch.faults
    with Device() as device:
        there = run_job(device, job(shader, inputs), checked=False).out
    assert [hex(x) for x in here] == [hex(x) for x in there]


def job(shader: Shader, inputs: np.ndarray) -> Job:  # type: ignore[type-arg]
    output = Output(np.dtype(np.uint32), (64,))
    return Job(shader, output, (Operand("inputs", "storage", inputs),), (7, 3), {0: 16}, (4, 1, 1), 256)


def drawn(draw: random.Random) -> str:
    """A shader of a dozen statements; no undefined operation: divisors are odd, shifts below 32."""

    def integer(depth: int) -> str:
        if depth == 0:
            return draw.choice(["a", "b", "int(i)", "p.x", "int(w)", str(draw.randint(-9, 99))])
        x, y = integer(depth - 1), integer(depth - 1)
        return draw.choice([
            f"({x} + {y})", f"({x} - {y})", f"({x} * {y})", f"(({x} & 0xffff) / (({y} & 30) | 1))",
            f"(({x} & 0xffff) % (({y} & 30) | 1))", f"({x} & {y})", f"({x} | {y})", f"({x} ^ {y})", f"(~{x})",
            f"({x} << ({y} & 7))", f"({x} >> ({y} & 7))", f"int(uint({x}) >> ({y} & 7))",
            f"({x} < {y} ? {x} : {y})", f"(uint({x}) < uint({y}) ? 1 : -1)", f"ivec2({x}, {y})[{x} & 1]",
        ])  # fmt: skip

    lines = [f"  if ({integer(1)} > {integer(1)}) a = {integer(2)}; else b = {integer(2)};" for _ in range(4)]
    lines += [
        f"  for (int k = 0; k < (b & 3); ++k) a += {integer(1)};",
        f"  precise float f = float(a & 0xffff) * float({draw.randint(1, 99)}.25);",
    ]
    return "\n".join([
        "#version 450 core", "layout(local_size_x_id = 0) in;",
        "layout(std430, set = 0, binding = 0) buffer Out { uint outs[]; };",
        "layout(std430, set = 0, binding = 1) readonly buffer In { uint ins[]; };",
        "layout(push_constant) uniform Push { ivec2 p; };",
        "void main() {", "  uint i = gl_GlobalInvocationID.x;", "  uint w = ins[i % ins.length()];",
        "  int a = int(w & 0xffu), b = int(w >> 20);", *lines,
        "  outs[i] = uint(a ^ b) ^ floatBitsToUint(f);", "}",
    ])  # fmt: skip


def test_reading_past_a_table_is_a_fault() -> None:
    own = Dispatch(weight_layout="flat", vocab_size=3, embed_dim=32, group_size=32, indices_shape=(2,))
    given = operands(own)
    module = read(compile_shader(EMBEDDING, variant_named(FLAT).defines).spirv)
    fewer = Variant(weight_layout="flat")
    assert wrong_lookup(module, fewer, given, Grid((8, 2, 1))) == ""
    assert "written never" in wrong_lookup(module, fewer, given, Grid((7, 2, 1)))


def test_what_is_no_module_is_one_line() -> None:
    spirv = compile_shader(EMBEDDING, variant_named(FLAT).defines).spirv
    words = list(struct.unpack(f"<{len(spirv) // 4}I", spirv))
    for broken in (b"", b"\0" * 3, spirv[:-4], spirv[:40], spirv[1:], spirv + b"\0\0\0\0", b"\0" * (5 << 20)):
        with pytest.raises((BadModule, Unsupported)) as caught:
            read(broken)
        assert "\n" not in str(caught.value)
    given, module = operands(Dispatch(weight_layout="flat")), read(spirv)
    draw = random.Random(3)  # noqa: S311 - no secret
    for _ in range(60):
        other = list(words)
        for _ in range(draw.randint(1, 3)):
            other[draw.randrange(3, len(other))] = draw.choice([0, 1, 2, 0xFFFFFFFF, 0x7FFF0001, draw.choice(words)])
        with contextlib.suppress(BadModule, Unsupported):
            module = read(struct.pack(f"<{len(other)}I", *other))
            wrong_lookup(module, Variant(weight_layout="flat"), given, Grid((16, 5, 1)))
        with contextlib.suppress(BadModule, Unsupported):
            sizes = Lookup(Variant(weight_layout="flat"), Setting())
            walk(module, sizes.environment, sizes.specialization(), lambda conditions: len(conditions) < 20)


def test_an_instruction_without_semantics_is_named(tmp_path: Path) -> None:
    source = tmp_path / "atomic.comp"
    source.write_text(
        EMBEDDING.read_text().replace("void main() {", "shared uint n;\nvoid main() {\n  atomicAdd(n, 1u);", 1)
    )
    decided = decide(
        compile_shader(source, variant_named(FLAT).defines).spirv, Variant(weight_layout="flat"), Setting()
    )
    assert decided.result != "proven"
    assert "opcode 234" in decided.findings[0].line


def test_quotients_in_normal_form_are_floor_divisions() -> None:
    terms.forget()
    draw, names = random.Random(1), ("x", "y", "w")  # noqa: S311 - no secret
    for _ in range(300):
        a = sum(draw.choice([0, 1, 2, 4, 8, 12]) * variable(name) for name in names) + draw.randint(-9, 40)
        b = draw.choice([1, 2, 3, 4, 8, 12, variable("d"), 4 * variable("d"), variable("x")])
        given = {name: draw.randint(1, 50) for name in (*names, "d")}
        values = [(z3.Int(name), z3.IntVal(value)) for name, value in given.items()]
        number = [
            z3.simplify(z3.substitute(z(term), *values)).as_long() for term in (a, b, quotient(a, b), remainder(a, b))
        ]
        assert number[2:] == [number[0] // number[1], number[0] % number[1]], (a, b, given)
    assert quotient(atom(z3.Int("q")) * 12 + 7, 4) == 3 * variable("q") + 1


def test_declared_modes_change_no_instruction() -> None:
    """The certificate is of the module without modes; what follows its declarations is the same with them."""
    plain = compile_shader(EMBEDDING, variant_named(FLAT).defines)
    modes = compile_shader(EMBEDDING, variant_named(FLAT).defines, ("RoundingModeRTE 32", "DenormPreserve 32"))
    one, other = read(plain.spirv), read(modes.spirv)
    assert plain.sha256 != modes.sha256
    assert one.blocks == other.blocks
    assert one.constants == other.constants
