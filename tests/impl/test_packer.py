"""impl.packer against the contract's own words and bytes, and against upstream's packer where both apply."""

import tracemalloc

import numpy as np
import pytest
import torch
from executorch.backends.vulkan.patterns.weight_packing_utils import pack_4bit_weight_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from impl import packer

MIB = 1 << 20


def random_table(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 8, (rows, columns)).astype(np.int8)


def blocks_by_definition(values: np.ndarray) -> np.ndarray:
    """Contract 1, word by word and bit by bit."""
    rows, columns = values.shape
    out = np.zeros((-(-rows // 8), columns // 4, 4), np.uint32)
    for n in range(out.shape[0] * 8):
        for k in range(columns):
            code = int(values[n, k]) + 8 if n < rows else 8
            out[n >> 3, k >> 2, n & 3] |= np.uint32(code << ((4 if n & 4 else 0) + 8 * (k & 3)))
    return out.view(np.int32)


def test_worked_bytes_of_the_contract() -> None:
    row = np.array([[-8, 7, 0, -1]], np.int8)
    assert packer.pack_flat(row).tolist() == [[0x0F, 0x87]]
    assert packer.pack_linear_weight(row).tolist() == [[0xF0, 0x78]]
    # One row: its codes 0, F, 8, 7 in the low nibbles; row 4 does not exist, code 8 in the high ones.
    assert packer.pack_blocks(np.array([[0xF0, 0x78]], np.uint8)).view(np.uint32)[0, 0, 0] == 0x87888F80


def test_every_pair_of_values() -> None:
    even, odd = np.meshgrid(np.arange(-8, 8), np.arange(-8, 8), indexing="ij")
    table = np.stack([even.ravel(), odd.ravel()], axis=1).astype(np.int8)
    codes = (table + 8).astype(np.uint8)
    assert np.array_equal(packer.pack_flat(table)[:, 0], codes[:, 0] * 16 + codes[:, 1])
    assert np.array_equal(packer.pack_linear_weight(table)[:, 0], codes[:, 1] * 16 + codes[:, 0])


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 17])
@pytest.mark.parametrize("columns", [4, 8, 36, 64])
def test_blocks_follow_the_definition(rows: int, columns: int) -> None:
    table = random_table(rows, columns, seed=rows * 100 + columns)
    assert np.array_equal(packer.pack_blocks(packer.pack_linear_weight(table)), blocks_by_definition(table))


def test_chunks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_table(101, 64)
    whole = [packer.pack_flat(table), packer.pack_linear_weight(table)]
    whole.append(packer.pack_blocks(whole[1]))
    for chunk_bytes in (1, 65, 64 * 16, 64 * 23):
        monkeypatch.setattr(packer, "CHUNK_BYTES", chunk_bytes)
        pieces = [packer.pack_flat(table), packer.pack_linear_weight(table)]
        pieces.append(packer.pack_blocks(pieces[1]))
        assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_same_bytes_as_upstream_for_the_linear_layout() -> None:
    table = torch.from_numpy(random_table(33, 72))
    assert torch.equal(packer.pack_linear_weight(table), pack_4bit_weight_tensor(table))


def test_nibble_swap_turns_one_layout_into_the_other() -> None:
    table = random_table(9, 32)
    assert np.array_equal(packer.flat_to_linear_weight(packer.pack_flat(table)), packer.pack_linear_weight(table))
    assert np.array_equal(packer.flat_to_linear_weight(packer.pack_linear_weight(table)), packer.pack_flat(table))


@pytest.mark.parametrize(
    "pack", [packer.pack_flat, packer.pack_linear_weight, lambda v: packer.pack_blocks(packer.pack_linear_weight(v))]
)
def test_kind_layout_and_ownership(pack: object) -> None:
    table = random_table(10, 32)
    from_numpy, from_torch = pack(table), pack(torch.from_numpy(table))  # type: ignore[operator] # one of three functions
    assert isinstance(from_numpy, np.ndarray)
    assert type(from_torch) is torch.Tensor
    assert np.array_equal(from_numpy, from_torch.numpy())
    assert from_torch.is_contiguous()
    # The serializer writes the whole storage: a packed table must not be a window of a larger one.
    assert from_torch.untyped_storage().nbytes() == from_torch.numel() * from_torch.element_size()


def test_strided_tables_and_parameters() -> None:
    table = random_table(64, 96)
    for view in (table.T, table[::2], table[:, 32:], table[::-1], np.asfortranarray(table)):
        assert np.array_equal(packer.pack_flat(view), packer.pack_flat(np.array(view, order="C")))
    parameter = torch.nn.Parameter(torch.from_numpy(table), requires_grad=False)
    assert torch.equal(packer.pack_flat(parameter), packer.pack_flat(torch.from_numpy(table)))
    transposed = torch.from_numpy(table).t()
    assert torch.equal(packer.pack_linear_weight(transposed), packer.pack_linear_weight(transposed.contiguous()))


@pytest.mark.parametrize(("row", "column", "value"), [(0, 0, 8), (2, 5, -9), (99, 63, 127), (50, 0, -128)])
def test_names_the_first_value_out_of_range(monkeypatch: pytest.MonkeyPatch, row: int, column: int, value: int) -> None:
    table = random_table(100, 64)
    table[row, column] = value
    table[99, 63] = 127  # a later one, never the one named unless it is the first
    monkeypatch.setattr(packer, "CHUNK_BYTES", 64 * 7)
    assert packer.first_out_of_range(table) == (row, column, value)
    for pack in (packer.pack_flat, packer.pack_linear_weight):
        with pytest.raises(ValueError, match=rf"values\[{row}, {column}\] is {value}, outside \[-8, 7\]"):
            pack(torch.from_numpy(table))


def test_the_bounds_themselves_are_in_range() -> None:
    assert packer.first_out_of_range(np.array([[-8, 7]], np.int8)) is None
    assert packer.first_out_of_range(np.zeros((0, 4), np.int8)) is None


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="values is a list"):
        packer.pack_flat([[1, 2]])  # type: ignore[type-var] # the point of the test
    with pytest.raises(ValueError, match="dtype is int32, it must be int8"):
        packer.pack_flat(torch.zeros(2, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match="dtype is int8, it must be uint8"):
        packer.pack_blocks(np.zeros((2, 4), np.int8))
    with pytest.raises(ValueError, match=r"shape is \(4,\), it must have 2 axes"):
        packer.pack_linear_weight(np.zeros(4, np.int8))
    with pytest.raises(ValueError, match="is 3, it must be even"):
        packer.pack_linear_weight(np.zeros((2, 3), np.int8))
    with pytest.raises(ValueError, match=r"embed_dim 6 .* is not a multiple of 4"):
        packer.pack_blocks(np.zeros((2, 3), np.uint8))
    fake = FakeTensorMode().from_tensor(torch.zeros(2, 4, dtype=torch.int8))
    with pytest.raises(ValueError, match="FakeTensor on cpu holds no bytes"):
        packer.pack_flat(fake)


@pytest.mark.parametrize("step", ["flat", "linear", "blocks", "swap"])
def test_extra_memory_is_a_few_chunks(step: str) -> None:
    table = np.zeros((16384, 2048), np.int8)  # 32 MiB
    packed = packer.pack_linear_weight(table)
    run = {
        "flat": lambda: packer.pack_flat(table),
        "linear": lambda: packer.pack_linear_weight(table),
        "blocks": lambda: packer.pack_blocks(packed),
        "swap": lambda: packer.flat_to_linear_weight(packed),
    }[step]
    tracemalloc.start()
    result = run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - result.nbytes < 4 * MIB
