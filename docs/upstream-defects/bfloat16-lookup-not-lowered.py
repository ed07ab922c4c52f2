"""A bfloat16 lookup cannot be lowered.

Nobody delegates its dequantize, and the CPU has no kernel for it.
Exits 1 while the defect is there, 0 once it is fixed. Needs torch, torchao and executorch 1.5.1 only.
"""

import sys
import warnings

import torch
import torchao  # noqa: F401 - registers torchao.dequantize_affine
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.exir import to_edge_transform_and_lower

warnings.simplefilter("ignore")
INDICES = torch.tensor([0, 3, 1])


def dequantize(weight, scale, zero_point=None, group=32, dtype=torch.float32):
    """Dequantize as torchao's weight-only int4 configuration does."""
    bounds = (torch.int8, -8, 7)
    return torch.ops.torchao.dequantize_affine(weight, [1, group], scale, zero_point, *bounds, output_dtype=dtype)


def table(rows=8, columns=64):
    """Make int8 values in [-8, 7]."""
    return (torch.arange(rows * columns) * 7 % 16 - 8).to(torch.int8).reshape(rows, columns)


class Model(torch.nn.Module):
    """A module whose buffers are given by name."""

    def __init__(self, **buffers):
        super().__init__()
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)


class Lookup(Model):
    """Look rows up in the table."""

    def forward(self, indices):
        """Dequantize and gather."""
        return torch.nn.functional.embedding(indices, dequantize(self.weight, self.scale, dtype=torch.bfloat16))


def main():
    """Run the pass; a table that cannot be fused should be left alone."""
    program = torch.export.export(Lookup(weight=table(), scale=torch.rand(8, 2)), (INDICES,))
    try:
        to_edge_transform_and_lower(program, partitioner=[VulkanPartitioner()]).to_executorch()
    except Exception as error:  # noqa: BLE001 - whatever it raises is the defect
        cause = error.__cause__ or error
        print("DEFECT: lowering a bfloat16 lookup fails:")
        print(f"{type(cause).__name__}: {str(cause)[:200]}")
        return 1
    print("fixed: a bfloat16 lookup is lowered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
