"""Laws that hold whatever the numbers are, drawn by Hypothesis: for the reference, the packer and the shader."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conformance.proofs import target as prove_target
from conformance.proofs.target import Array
from impl import packer
from reference.q4_embedding_ref import embedding_q4gsw
from reference.table import layouts
from reference.table.layouts import pack_linear_weight

#: values, scales, group_size, indices -> out
Lookup = Callable[[Array, Array, int, Array], Array]
#: The same examples everywhere and always; a device takes its time.
LAW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
DEVICE_VARIANTS = ("flat-buffer-f32out-f32scale-buffer", "block-texture2d-f32out-f32scale-texture3d")


@st.composite
def tables(draw: st.DrawFn) -> tuple[Array, Array, int]:
    """Values int8 [V, D], float32 scales [V, D/G] of any finite size, G."""
    rows, columns = draw(st.integers(1, 20)), 32 * draw(st.integers(1, 3))
    group_size = draw(st.sampled_from([g for g in (4, 8, 12, 16, 32, 48) if columns % g == 0]))
    random = np.random.Generator(np.random.PCG64(draw(st.integers(0, 2**32))))
    values = random.integers(-8, 8, (rows, columns)).astype(np.int8)
    bits = random.integers(0x30000000, 0x50000000, (rows, columns // group_size)).astype(np.uint32)
    signs = random.integers(0, 2, bits.shape).astype(np.uint32) << np.uint32(31)
    return values, (bits | signs).view(np.float32), group_size


@pytest.fixture(scope="module", params=["reference", *DEVICE_VARIANTS])
def lookup(request: pytest.FixtureRequest) -> Iterator[Lookup]:
    if request.param == "reference":
        yield lambda values, scales, g, indices: embedding_q4gsw(pack_linear_weight(values), scales, g, indices, True)  # noqa: FBT003 - the operator's own signature
        return
    target = prove_target.open_target("impl", request.param)

    def on_device(values: Array, scales: Array, group_size: int, indices: Array) -> Array:
        looked = target.lookup(values, scales, group_size, indices)
        assert looked.damage == ""
        return looked.out

    yield on_device
    target.close()


def rows_of(draw_seed: int, vocab_size: int, count: int) -> Array:
    return np.random.Generator(np.random.PCG64(draw_seed)).integers(0, vocab_size, count)


def same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and np.array_equal(one.view(np.uint32), other.view(np.uint32))


@LAW
@given(table=tables())
def test_unpacking_undoes_packing(table: tuple[Array, Array, int]) -> None:
    values = table[0]
    for module in (layouts, packer):
        assert np.array_equal(layouts.unpack_flat(module.pack_flat(values)), values)
        assert np.array_equal(layouts.unpack_linear_weight(module.pack_linear_weight(values)), values)
    linear = packer.pack_linear_weight(values)
    for blocks in (layouts.pack_blocks(values), packer.pack_blocks(linear)):
        assert np.array_equal(layouts.unpack_blocks(blocks, len(values)), values)
    assert np.array_equal(packer.flat_to_linear_weight(packer.pack_flat(values)), linear)


@LAW
@given(table=tables(), seed=st.integers(0, 2**32))
def test_permuting_indices_permutes_rows(lookup: Lookup, table: tuple[Array, Array, int], seed: int) -> None:
    values, scales, group_size = table
    indices = rows_of(seed, len(values), 9)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(9)
    assert same(lookup(values, scales, group_size, indices[order]), lookup(values, scales, group_size, indices)[order])


@LAW
@given(table=tables(), seed=st.integers(0, 2**32), exponent=st.integers(-30, 60))
def test_scaling_by_a_power_of_two_is_exact(
    lookup: Lookup, table: tuple[Array, Array, int], seed: int, exponent: int
) -> None:
    """Scales are far enough from both ends for the law to hold."""
    values, scales, group_size = table
    indices = rows_of(seed, len(values), 5)
    factor = np.float32(2.0**exponent)
    scaled = lookup(values, scales * factor, group_size, indices)
    assert same(scaled, lookup(values, scales, group_size, indices) * factor)


@LAW
@given(table=tables(), seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_a_table_split_by_rows_gives_the_same_rows(
    lookup: Lookup, table: tuple[Array, Array, int], seed: int, share: float
) -> None:
    values, scales, group_size = table
    assume(len(values) > 1)
    cut = 1 + int(share * (len(values) - 2))
    indices = rows_of(seed, len(values), 7)
    whole = lookup(values, scales, group_size, indices)
    for part, chosen, base in ((slice(cut), indices < cut, 0), (slice(cut, None), indices >= cut, cut)):
        if chosen.any():
            got = lookup(values[part], scales[part], group_size, indices[chosen] - base)
            assert same(got, whole[chosen])


@LAW
@given(table=tables(), seed=st.integers(0, 2**32))
def test_a_table_split_by_groups_gives_the_same_columns(
    lookup: Lookup, table: tuple[Array, Array, int], seed: int
) -> None:
    values, scales, group_size = table
    columns = values.shape[1]
    cut = 32
    assume(columns > cut and cut % group_size == 0)  # both parts need whole groups and 32 columns
    indices = rows_of(seed, len(values), 4)
    left = lookup(values[:, :cut], scales[:, : cut // group_size], group_size, indices)
    right = lookup(values[:, cut:], scales[:, cut // group_size :], group_size, indices)
    assert same(np.concatenate([left, right], axis=1), lookup(values, scales, group_size, indices))
