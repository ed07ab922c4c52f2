"""Tables, scales and expectations for the kernel's tests, all from the reference side."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from impl.kernel import KernelResult, Variant
from reference.arithmetic.accept import FloatModes, accept_products
from reference.q4_embedding_ref import embedding_operands
from reference.table.layouts import pack_blocks, pack_flat

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Table:
    """A random table in both layouts, with scales that are exact in neither float16 nor float32 products."""

    values: Array
    scales: Array
    group_size: int

    @property
    def vocab_size(self) -> int:
        return int(self.values.shape[0])

    def weight(self, variant: Variant) -> Array:
        return pack_flat(self.values) if variant.weight_layout == "flat" else pack_blocks(self.values)

    def products(self, indices: Array) -> tuple[Array, Array]:
        """Values and scales that each output element multiplies."""
        return embedding_operands(pack_flat(self.values), self.scales, self.group_size, indices)


def random_table(vocab_size: int, embed_dim: int, group_size: int, scale_dtype: str, seed: int = 1) -> Table:
    rng = np.random.default_rng(seed)
    values = rng.integers(-8, 8, (vocab_size, embed_dim), dtype=np.int8)
    scales = rng.standard_normal((vocab_size, embed_dim // group_size)).astype(scale_dtype)
    return Table(values, scales, group_size)


def modes_of(result: KernelResult, variant: Variant) -> FloatModes:
    """What the reference has to grant a result, from what its SPIR-V declares."""
    fields = {"RoundingModeRTE": "rte", "DenormPreserve": "denorm_preserve"}
    fields["SignedZeroInfNanPreserve"] = "signed_zero_inf_nan_preserve"
    declared = {fields[mode.split()[0]] + mode.split()[1]: True for mode in result.float_modes}
    # Our shader hands the image a float16 already, so the store rounds nothing even there.
    del variant
    return FloatModes(**declared, precise=True)


def assert_right(result: KernelResult, variant: Variant, table: Table, indices: Array) -> None:
    """Every element is allowed, written, and nothing else was touched."""
    values, scales = table.products(indices)
    allowed = accept_products(values, scales, variant.output_dtype, modes_of(result, variant))
    good = allowed.contains(np.atleast_1d(result.out))
    assert result.out.shape == (*indices.shape, table.values.shape[1])
    assert good.all(), f"{variant.name}: first wrong at {np.argwhere(~good)[0]}"
    assert (result.unwritten, result.unstable, result.damage) == (None, None, "")
