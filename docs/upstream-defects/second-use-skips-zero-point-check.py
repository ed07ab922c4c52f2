"""An asymmetric lookup is fused, silently, behind a symmetric one of the same table.

The zero point is checked only by whoever packs the table; the second lookup finds it packed.
Exits 1 while the defect is there, 0 once it is fixed. Needs torch, torchao and executorch 1.5.1 only.
"""

import sys
import warnings

import torch
import torchao  # noqa: F401 - registers torchao.dequantize_affine
from executorch.backends.vulkan import custom_ops_lib  # noqa: F401 - registers et_vk.embedding_q4gsw
from executorch.backends.vulkan._passes.fuse_patterns import FusePatternsPass
from executorch.backends.vulkan.vulkan_preprocess import apply_passes
from executorch.exir import EdgeCompileConfig, to_edge

warnings.simplefilter("ignore")
INDICES = torch.tensor([0, 3, 1])


def dequantize(weight, scale, zero_point=None, group=32, dtype=torch.float32):
    """Dequantize as torchao's weight-only int4 configuration does."""
    bounds = (torch.int8, -8, 7)
    return torch.ops.torchao.dequantize_affine(weight, [1, group], scale, zero_point, *bounds, output_dtype=dtype)


def edge(model, *inputs):
    """Export the model and take it to the edge dialect."""
    config = EdgeCompileConfig(_check_ir_validity=False)
    return to_edge(torch.export.export(model, inputs), compile_config=config).exported_program()


def fuse(model, *inputs):
    """Apply the Vulkan backend's own pattern pass."""
    return apply_passes(edge(model, *inputs), [FusePatternsPass()])


def table(rows=8, columns=64):
    """Make int8 values in [-8, 7]."""
    return (torch.arange(rows * columns) * 7 % 16 - 8).to(torch.int8).reshape(rows, columns)


class Model(torch.nn.Module):
    """A module whose buffers are given by name."""

    def __init__(self, **buffers):
        super().__init__()
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)


class Twice(Model):
    """Two lookups into one table, with and without a zero point."""

    def forward(self, indices):
        """Dequantize twice and gather."""
        first = torch.nn.functional.embedding(indices, dequantize(self.weight, self.scale))
        shifted = dequantize(self.weight, self.scale, self.zero_point)
        return first, torch.nn.functional.embedding(indices, shifted)


def main():
    """Compare the second lookup's values."""
    model = Twice(weight=table(), scale=torch.ones(8, 2), zero_point=torch.full((8, 2), 3, dtype=torch.int8))
    got, wanted = fuse(model, INDICES).module()(INDICES)[1], model(INDICES)[1]
    if not torch.equal(got, wanted):
        print(f"DEFECT: {got[0, 0].item()} for {wanted[0, 0].item()}: the zero point of 3 was ignored, without a word")
        return 1
    print("fixed: the second lookup keeps its zero point")
    return 0


if __name__ == "__main__":
    sys.exit(main())
