"""The oracle behind the proofs: its shortcuts say what the accept sets say."""

from dataclasses import replace

import numpy as np
import pytest

from conformance.proofs import domain
from reference.arithmetic.accept import CODES, HOST, NOTHING_DECLARED, accept_products
from reference.arithmetic.accept_many import host_rows, judge_rows
from reference.program.values import special_bits

MODES = {
    "host": HOST,
    "nothing": NOTHING_DECLARED,
    "flushes": replace(HOST, denorm_preserve32=False, denorm_preserve16=False),
    "truncates": replace(HOST, rte16=False, rte32=False, rtz16=True, rtz32=True),
}


def scales_of(dtype: str) -> np.ndarray:
    """Specials, runs across the whole dtype in both signs, and random patterns."""
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    random = np.random.Generator(np.random.PCG64(7))
    top = 1 << (8 * unsigned.itemsize)
    starts = [0, 1 << (8 * unsigned.itemsize - 1), *range(0, top - 64, top // 97)]
    runs = np.concatenate([np.arange(s, s + 64) for s in starts])
    bits = np.concatenate([special_bits(dtype).astype(np.int64), runs, random.integers(0, top, 2000)])
    return bits.astype(unsigned).view(dtype)


def disturbed(scales: np.ndarray, output_dtype: str) -> np.ndarray:
    """Host results with every kind of harm: bits off by one, zeros of either sign, NaN, infinity."""
    bits = host_rows(scales, output_dtype).copy()
    random = np.random.Generator(np.random.PCG64(8))
    kind = random.integers(0, 12, bits.shape)
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    bits[kind == 0] ^= bits.dtype.type(1)
    bits[kind == 1] = 0
    bits[kind == 2] = sign
    bits[kind == 3] ^= sign
    bits[kind == 4] = ~sign
    return bits


@pytest.mark.parametrize("scale_dtype", ["float16", "float32"])
@pytest.mark.parametrize("output_dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", MODES)
def test_tallies_are_those_of_the_accept_sets(scale_dtype: str, output_dtype: str, name: str) -> None:
    scales, modes = scales_of(scale_dtype), MODES[name]
    for got in (host_rows(scales, output_dtype), disturbed(scales, output_dtype)):
        allowed = accept_products(CODES[None, :], scales[:, None], output_dtype, modes)
        strict = accept_products(CODES[None, :], scales[:, None], output_dtype, HOST)
        tally = judge_rows(scales, output_dtype, modes, got)
        refused = ~allowed.contains(got)
        assert tally.pairs == got.size
        assert tally.refused == np.count_nonzero(refused)
        assert tally.not_strict == np.count_nonzero(~strict.contains(got))
        assert tally.unconstrained == np.count_nonzero(np.broadcast_to(allowed.unconstrained, got.shape))
        assert tally.total == sum(got.reshape(-1).view(np.uint64).tolist()) % (1 << 64)
        places = [(int(scales.view(f"u{scales.itemsize}")[r]), c, int(got[r, c])) for r, c in np.argwhere(refused)]
        assert [(r.scale_bits, r.code, r.got) for r in tally.first] == places[:8]


@pytest.mark.parametrize(("scale_dtype", "output_dtype"), [("float32", "float32"), ("float32", "float16")])
def test_flushed_subnormals_are_allowed_and_not_strict(scale_dtype: str, output_dtype: str) -> None:
    """As a device that flushes does: whole blocks of zeros, which a shortcut judges."""
    scales = np.arange(1, 40001, dtype=np.uint32).view(scale_dtype)
    got = host_rows(np.zeros_like(scales), output_dtype)
    tally = judge_rows(scales, output_dtype, MODES["flushes"], got)
    assert tally.refused == 0
    assert tally.not_strict == (scales.size * 15 if output_dtype == "float32" else 0)
    assert judge_rows(scales, output_dtype, HOST, got).refused == tally.not_strict


def test_a_run_of_equal_results_needs_every_one_of_them() -> None:
    """Where monotony is the argument, one wrong bit still shows."""
    scales = np.arange(0x50000000, 0x50000000 + 20000, dtype=np.uint32).view(np.float32)
    got = host_rows(scales, "float16")
    assert judge_rows(scales, "float16", HOST, got).refused == 0
    got[12345, 3] ^= 1
    tally = judge_rows(scales, "float16", HOST, got)
    assert [(r.scale_bits, r.code) for r in tally.first] == [(0x50000000 + 12345, 3)]


def test_domains_cover_what_they_say() -> None:
    whole = domain.parse("all", "float16")
    assert np.array_equal(whole.scales(0, whole.size).view(np.uint16), np.arange(1 << 16, dtype=np.uint16))
    full = domain.parse("all", "float32")
    assert full.pairs == 1 << 36
    assert full.scales(full.size - 2, full.size).view(np.uint32).tolist() == [0xFFFFFFFE, 0xFFFFFFFF]
    edge = domain.parse("boundary", "float32")
    bits = edge.scales(0, edge.size).view(np.uint32)
    assert (np.diff(bits.astype(np.int64)) > 0).all()
    assert set((bits >> 23).tolist()) == set(range(512))


@pytest.mark.parametrize("text", ["", "some", "1", "5:5", "5:2", "0:0x10001", "-1:5", "a:b"])
def test_bad_domains_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="all, boundary or START:STOP"):
        domain.parse(text, "float16")
