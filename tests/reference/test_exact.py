"""The oracle's oracle: ``reference.arithmetic.accept`` and the layouts judged by exact fractions and plain integers.

What runs here in under a minute: every float16 scale x every code as the host computes them, and for
each of the 1,296 mode combinations a seeded share of boundary and random elements, for both scale and
output dtypes. ``python -m tests.reference.test_exact`` is the deep variant: every float16 scale x every
code under every combination that can matter, and two million float32 elements (about an hour of one core).
"""

import dataclasses
import itertools
import random
import sys
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from reference.arithmetic.accept import HOST, NOTHING_DECLARED, AcceptSet, FloatModes, accept_products
from reference.arithmetic.exact import (
    FLOAT16,
    FLOAT32,
    FORMATS,
    Allowed,
    allowed_bits,
    decode,
    round_exact,
    rounded_product,
)
from reference.q4_embedding_ref import embedding_q4gsw
from reference.table.layouts import linear_weight_to_blocks, pack_blocks, pack_flat, pack_linear_weight
from reference.table.positions import block_bytes, block_place, code_at, embed, flat_place, linear_weight_place, pack

Element = tuple[int, int]  # q, the scale's bits
UINTS: dict[str, type[np.unsignedinteger]] = {"float16": np.uint16, "float32": np.uint32}
ROUNDINGS = ("", "rte", "rtz")
DENORMS = ("", "denorm_preserve", "denorm_flush")
OUTPUTS = ("float32", "float16")


def every_mode() -> Iterator[FloatModes]:
    """All combinations a shader can declare: 3 roundings and 3 denorm behaviours a width, and four yes or no."""
    for r16, r32, d16, d32 in itertools.product(ROUNDINGS, ROUNDINGS, DENORMS, DENORMS):
        flags = {f"{mode}{width}": True for mode, width in ((r16, 16), (r32, 32), (d16, 16), (d32, 32)) if mode}
        for z16, z32, precise, image in itertools.product((False, True), repeat=4):
            zeros = {"signed_zero_inf_nan_preserve16": z16, "signed_zero_inf_nan_preserve32": z32}
            yield FloatModes(**flags, **zeros, precise=precise, image_output16=image)


MODES = tuple(every_mode())


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - draws that repeat are wanted, not secrets


def accepted(elements: list[Element], scale_dtype: str, output_dtype: str, modes: FloatModes) -> AcceptSet:
    """What the judged oracle says of the elements, in one call."""
    values = np.array([q for q, _ in elements], np.int8)
    scales = np.array([bits for _, bits in elements], UINTS[scale_dtype]).view(scale_dtype)
    return accept_products(values, scales, output_dtype, modes)


def as_allowed(found: AcceptSet, output_dtype: str) -> list[Allowed]:
    """The judged oracle's sets as this file's: padding is a repetition, and NaN patterns are ``any_nan``."""
    fmt = FORMATS[output_dtype]
    is_nan = frozenset({fmt.nan, fmt.nan | fmt.sign})
    result = []
    rows = zip(found.candidates.T.tolist(), found.any_nan.tolist(), found.unconstrained.tolist(), strict=True)
    for row, any_nan, unconstrained in rows:
        numbers = frozenset(row) - is_nan
        result.append(Allowed(unconstrained=True) if unconstrained else Allowed(numbers, any_nan))
    return result


def differences(elements: list[Element], scale_dtype: str, output_dtype: str, modes: FloatModes) -> list[str]:
    """Where the two oracles differ, as text a person can decide by."""
    found = as_allowed(accepted(elements, scale_dtype, output_dtype, modes), output_dtype)
    lines = []
    for (q, bits), theirs in zip(elements, found, strict=True):
        ours = allowed_bits(q, bits, scale_dtype, output_dtype, modes.names)
        if ours != theirs:
            lines.append(f"q={q} scale={bits:#x} {scale_dtype}->{output_dtype} {spelled(modes)}: {show(ours)}")
            lines[-1] += f" by fractions, {show(theirs)} judged"
    return lines


def show(allowed: Allowed) -> str:
    if allowed.unconstrained:
        return "any pattern"
    return "{" + ", ".join([f"{p:#x}" for p in sorted(allowed.patterns)] + ["NaN"] * allowed.any_nan) + "}"


def spelled(modes: FloatModes) -> str:
    return "+".join(sorted(modes.names)) or "nothing declared"


def boundary_scales(scale_dtype: str, mantissas: int, seed: int = 3) -> list[int]:
    """Every exponent x boundary and some random mantissas x both signs: specials and subnormals among them."""
    fmt, draw = FORMATS[scale_dtype], seeded(seed)
    top = (1 << fmt.stored) - 1
    edges = {0, 1, 2, top // 2, top // 2 + 1, top - 1, top}
    scales = []
    for exponent in range(1 << (fmt.width - 1 - fmt.stored)):
        fractions = edges | {draw.randrange(top) for _ in range(mantissas)}
        scales += [sign | exponent << fmt.stored | fraction for fraction in fractions for sign in (0, fmt.sign)]
    return scales


def tie_elements(count: int, seed: int = 4) -> list[Element]:
    """float32 elements whose product lies at or beside a float16 number, midpoint or limit: where roundings differ."""
    draw, elements = seeded(seed), []
    for _ in range(count):
        # Half of them around the smallest numbers, the smallest normal ones and the overflow.
        below = draw.choice(
            (draw.randrange(FLOAT16.infinity), draw.choice((0, 1, 2, 0x3FE, 0x3FF, 0x400, 0x7BFE, 0x7BFF)))
        )
        low = decode(below, FLOAT16).magnitude or Fraction(0)
        ulp = Fraction(2) ** (max(below >> FLOAT16.stored, 1) - 1 + FLOAT16.last)
        target = low + ulp * Fraction(draw.choice((0, 2, 4, 1, 3)), 4)
        q = draw.choice([q for q in range(-8, 8) if q])
        (bits,) = round_exact(target / abs(q), FLOAT32, "nearest")
        bits = min(max(bits + draw.choice((-2, -1, -1, 0, 0, 0, 1, 1, 2)), 0), FLOAT32.infinity)
        elements.append((q, bits | draw.choice((0, FLOAT32.sign))))
    return elements


def shares(elements: list[Element], size: int, seed: int) -> Iterator[tuple[FloatModes, list[Element]]]:
    """A seeded share of the elements for each combination of modes; together they go through all of them."""
    draw, pool = seeded(seed), list(elements)
    draw.shuffle(pool)
    endless = itertools.cycle(pool)
    for modes in MODES:
        yield modes, [next(endless) for _ in range(size)]


def report(lines: list[str]) -> None:
    assert not lines, f"{len(lines)} elements differ, the first:\n" + "\n".join(lines[:12])


def test_every_float16_product_on_the_host() -> None:
    """All 2**20 products: exact in float32 and subnormal never there (contract 3.1), and from there nearest even."""
    for start in range(0, FLOAT16.sign, 1 << 12):
        scales = [sign | bits for bits in range(start, start + (1 << 12)) for sign in (0, FLOAT16.sign)]
        elements = [(q, bits) for bits in scales for q in range(-8, 8)]
        # "either" would give two patterns for a product that is not exact, and ``one`` takes none but a single one.
        wide = [one(rounded_product(bits, q, FLOAT16, FLOAT32, "either")) for q, bits in elements]
        assert all(p in {0, FLOAT32.sign} or p & FLOAT32.infinity for p in wide)  # a zero, or an exponent above 0
        both = {"float32": wide, "float16": [one(rounded_product(p, 1, FLOAT32, FLOAT16, "nearest")) for p in wide]}
        for output_dtype, expected in both.items():
            found, fmt = accepted(elements, "float16", output_dtype, HOST), FORMATS[output_dtype]
            assert found.candidates.shape == (1, len(elements))
            got = [
                fmt.nan if nan else p
                for p, nan in zip(found.candidates[0].tolist(), found.any_nan.tolist(), strict=True)
            ]
            assert not found.unconstrained.any()
            assert got == expected


def one(patterns: frozenset[int]) -> int:
    (pattern,) = patterns
    return pattern


@pytest.mark.parametrize("output_dtype", OUTPUTS)
def test_float16_scales_under_all_modes(output_dtype: str) -> None:
    elements = [(q, bits) for bits in boundary_scales("float16", 20) for q in range(-8, 8)]
    report(
        [
            line
            for modes, share in shares(elements, 40, 1)
            for line in differences(share, "float16", output_dtype, modes)
        ]
    )


@pytest.mark.parametrize("output_dtype", OUTPUTS)
def test_float32_scales_under_all_modes(output_dtype: str) -> None:
    draw = seeded(2)
    elements = [(draw.randrange(-8, 8), bits) for bits in boundary_scales("float32", 30)]
    elements += [(draw.randrange(-8, 8), draw.randrange(1 << 32)) for _ in range(4000)]
    if output_dtype == "float16":
        elements += tie_elements(40_000)
    report(
        [
            line
            for modes, share in shares(elements, 40, 5)
            for line in differences(share, "float32", output_dtype, modes)
        ]
    )


@pytest.mark.parametrize("modes", [HOST, NOTHING_DECLARED], ids=spelled)
def test_float32_scales_of_the_two_ends(modes: FloatModes) -> None:
    draw = seeded(8)
    elements = [(draw.randrange(-8, 8), bits) for bits in boundary_scales("float32", 2)]
    report(differences(elements, "float32", "float32", modes))
    report(differences(elements + tie_elements(8_000), "float32", "float16", modes))


@pytest.mark.parametrize("flags", [*itertools.product(ROUNDINGS, ROUNDINGS, (False, True), (False, True))])
def test_two_roundings_give_two_neighbours_at_most(flags: tuple[str, str, bool, bool]) -> None:
    """Flushing and lost signs apart, float32 then float16 or once, in any directions: two, one beside the other."""
    wide, narrow, precise, image = flags
    kept = {f"denorm_preserve{w}": True for w in (16, 32)} | {
        f"signed_zero_inf_nan_preserve{w}": True for w in (16, 32)
    }
    kept |= {f"{mode}{width}": True for mode, width in ((wide, 32), (narrow, 16)) if mode}
    modes = FloatModes(**kept, precise=precise, image_output16=image)
    for q, bits in tie_elements(400, seed=9):
        patterns = allowed_bits(q, bits, "float32", "float16", modes.names).patterns
        assert max(patterns) - min(patterns) <= 1


@pytest.mark.parametrize("output_dtype", OUTPUTS)
@pytest.mark.parametrize("modes", [HOST, NOTHING_DECLARED, FloatModes(rtz16=True, denorm_flush32=True)], ids=spelled)
def test_a_result_is_contained_exactly_where_it_is_allowed(modes: FloatModes, output_dtype: str) -> None:
    fmt = FORMATS[output_dtype]
    elements = tie_elements(150) + [(q, bits) for bits in (0, FLOAT32.sign, 0x7F800000, 0xFFC00001) for q in (-8, 0, 7)]
    found = accepted(elements, "float32", output_dtype, modes)
    ours = [allowed_bits(q, bits, "float32", output_dtype, modes.names) for q, bits in elements]
    probes = [max(a.patterns, default=0) for a in ours]
    for step, sign in itertools.product((-2, -1, 0, 1, 2), (0, fmt.sign)):
        got = [(p + step) % (1 << fmt.width) ^ sign for p in probes]
        check_contains(found, ours, got, output_dtype)
    for constant in (0, fmt.sign, fmt.infinity, fmt.nan, fmt.infinity | 1, fmt.sign | fmt.nan):
        check_contains(found, ours, [constant] * len(ours), output_dtype)
    for index, allowed in enumerate(ours):
        if not allowed.unconstrained:
            named = sorted(allowed.patterns | ({fmt.nan} if allowed.any_nan else set()))
            assert sorted(int(p) for p in found.allowed((index,))) == named


def check_contains(found: AcceptSet, ours: list[Allowed], got: list[int], output_dtype: str) -> None:
    fmt = FORMATS[output_dtype]
    expected = [
        a.unconstrained or (a.any_nan if decode(g, fmt).nan else g in a.patterns)
        for a, g in zip(ours, got, strict=True)
    ]
    bits = np.array(got, UINTS[output_dtype])
    assert found.contains(bits).tolist() == expected
    assert found.contains(bits.view(output_dtype)).tolist() == expected


def test_a_planted_pattern_is_found() -> None:
    """One wrong bit, one missing candidate, one NaN too many: each is seen."""
    elements = tie_elements(50)
    found = accepted(elements, "float32", "float16", NOTHING_DECLARED)
    ours = [allowed_bits(q, bits, "float32", "float16", NOTHING_DECLARED.names) for q, bits in elements]
    assert as_allowed(found, "float16") == ours
    wrong = found.candidates.copy()
    wrong[0, 7] ^= 0x10
    assert as_allowed(dataclasses.replace(found, candidates=wrong), "float16") != ours
    fewer = np.repeat(found.candidates[:1], len(found.candidates), axis=0)
    assert as_allowed(dataclasses.replace(found, candidates=fewer), "float16") != ours
    nan = found.any_nan.copy()
    nan[3] = True
    assert as_allowed(dataclasses.replace(found, any_nan=nan), "float16") != ours


SHAPES = [(1, 32, 32), (7, 32, 4), (8, 64, 8), (9, 96, 12), (17, 32, 16), (24, 128, 64)]


def draw_table(vocab_size: int, embed_dim: int) -> list[list[int]]:
    draw = seeded(vocab_size * 1000 + embed_dim)
    return [[draw.randrange(-8, 8) for _ in range(embed_dim)] for _ in range(vocab_size)]


@pytest.mark.parametrize(("vocab_size", "embed_dim", "_group"), SHAPES)
def test_layouts_hold_each_code_where_the_integers_say(vocab_size: int, embed_dim: int, _group: int) -> None:
    table = draw_table(vocab_size, embed_dim)
    values, half = np.array(table, np.int8), vocab_size * embed_dim // 2
    linear = pack_linear_weight(values)
    assert pack_flat(values).tobytes() == pack(table, flat_place, half, vocab_size)
    assert linear.tobytes() == pack(table, linear_weight_place, half, vocab_size)
    size = block_bytes(vocab_size, embed_dim)
    blocks = pack(table, block_place, size, -(-vocab_size // 8) * 8)
    assert pack_blocks(values).astype("<i4").tobytes() == blocks
    assert linear_weight_to_blocks(linear).astype("<i4").tobytes() == blocks
    assert all(
        code_at(blocks, block_place(n, k, embed_dim)) == q + 8 for n, row in enumerate(table) for k, q in enumerate(row)
    )


@pytest.mark.parametrize("scale_dtype", OUTPUTS)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("vocab_size", "embed_dim", "group"), SHAPES)
def test_the_operator_by_fractions(vocab_size: int, embed_dim: int, group: int, linear: bool, scale_dtype: str) -> None:
    table, draw = draw_table(vocab_size, embed_dim), seeded(group)
    source = FORMATS[scale_dtype]
    bits = [
        [draw.randrange(source.infinity) | draw.choice((0, source.sign)) for _ in range(embed_dim // group)]
        for _ in table
    ]
    place = linear_weight_place if linear else flat_place
    weight = np.frombuffer(pack(table, place, vocab_size * embed_dim // 2, vocab_size), np.uint8).reshape(
        vocab_size, -1
    )
    scales = np.array(bits, UINTS[scale_dtype]).view(scale_dtype)
    indices = np.array(
        [[draw.randrange(vocab_size) for _ in range(3)] for _ in range(2)] + [[0, vocab_size - 1, 0]], np.int64
    )
    for output_dtype in OUTPUTS:
        out = embedding_q4gsw(weight, scales, group, indices, is_linear_weight=linear, output_dtype=output_dtype)
        assert out.shape == (*indices.shape, embed_dim)
        got = out.view(UINTS[output_dtype]).tolist()
        for i, j in itertools.product(range(3), range(3)):
            n = int(indices[i, j])
            expected = [
                allowed_bits(q, bits[n][d // group], scale_dtype, output_dtype, HOST.names).patterns
                for d, q in enumerate(table[n])
            ]
            assert [frozenset({p}) for p in got[i][j]] == expected
            if (scale_dtype, output_dtype) == ("float16", "float32"):  # every such product is exact (contract 3.1)
                exact = [[signed(b, scale_dtype) for b in row] for row in bits]
                assert [signed(p, output_dtype) for p in got[i][j]] == embed(table, exact, group, n)


def signed(bits: int, dtype: str) -> Fraction:
    number = decode(bits, FORMATS[dtype])
    assert number.magnitude is not None
    return -number.magnitude if number.negative else number.magnitude


def relevant(modes: FloatModes, output_dtype: str) -> FloatModes:
    """The combination that a float16 scale's products cannot tell from ``modes`` (contract 3.1 and 3.3).

    They are exact in float32 and not subnormal there, so the 32-bit rounding and denorm modes, and with
    them ``precise``, decide nothing; a 16-bit rounding needs a conversion to float16 in the shader.
    """
    off = {"rte32": False, "rtz32": False, "denorm_preserve32": False, "denorm_flush32": False, "precise": False}
    if output_dtype == "float32":
        off["image_output16"] = False
    if output_dtype == "float32" or modes.image_output16:
        off |= {"rte16": False, "rtz16": False}
    return dataclasses.replace(modes, **off)


def same_sets(one: AcceptSet, other: AcceptSet) -> npt.NDArray[np.bool_]:
    """Where two accept sets are equal, [...]: each one's candidates are among the other's."""
    free = one.unconstrained & other.unconstrained
    pairs = one.candidates[:, None] == other.candidates[None]
    covers = pairs.any(axis=1).all(axis=0) & pairs.any(axis=0).all(axis=0)
    return free | ((one.unconstrained == other.unconstrained) & (one.any_nan == other.any_nan) & (covers | one.any_nan))


def differences_within(
    elements: list[Element], output_dtype: str, plain: FloatModes, members: list[FloatModes]
) -> list[str]:
    """Where a combination's sets differ from its class's, or (in a sample) from the fractions'."""
    lines, known = [], accepted(elements, "float16", output_dtype, plain)
    for modes in members:
        same = same_sets(known, accepted(elements, "float16", output_dtype, modes))
        odd = [elements[i] for i in np.flatnonzero(~same)[:3]]
        lines += [f"{element} {output_dtype}: {spelled(modes)} differs from {spelled(plain)}" for element in odd]
        lines += differences(elements[:: len(elements) // 7], "float16", output_dtype, modes)
    return lines


def judge_deep() -> int:
    """All float16 scales x codes under every combination that can matter to them, then two million float32 elements.

    Each other combination is compared with the one it should equal on a sixteenth of the scales. Returns the
    exit status.
    """
    failures: list[str] = []
    for output_dtype in OUTPUTS:
        classes: dict[FloatModes, list[FloatModes]] = {}
        for modes in MODES:
            classes.setdefault(relevant(modes, output_dtype), []).append(modes)
        for number, (plain, members) in enumerate(classes.items(), start=1):
            for chunk in range(16):
                scales = range(chunk << 12, (chunk + 1) << 12)
                elements = [(q, bits) for bits in scales for q in range(-8, 8)]
                failures += differences(elements, "float16", output_dtype, plain)
                failures += differences_within(elements, output_dtype, plain, members[chunk::16])
            print(f"float16->{output_dtype} class {number}/{len(classes)}: {len(failures)} differences", flush=True)
    draw = seeded(6)
    elements = [(q, bits) for bits in boundary_scales("float32", 40) for q in range(-8, 8)] + tie_elements(200_000)
    elements += [(draw.randrange(-8, 8), draw.randrange(1 << 32)) for _ in range(200_000)]
    for output_dtype in OUTPUTS:
        for modes, share in shares(elements, 800, 7):
            failures += differences(share, "float32", output_dtype, modes)
        print(f"float32->{output_dtype}: {800 * len(MODES)} elements, {len(failures)} differences", flush=True)
    print("\n".join(failures[:50]) or "the two oracles agree everywhere")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(judge_deep())
