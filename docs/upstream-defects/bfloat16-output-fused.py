"""A bfloat16 lookup is fused.

The operator returns float32, which rounds otherwise and is another type.
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


class Lookup(Model):
    """Look rows up in the table."""

    def forward(self, indices):
        """Dequantize and gather."""
        return torch.nn.functional.embedding(indices, dequantize(self.weight, self.scale, dtype=torch.bfloat16))


def main():
    """Compare the dtype of the fused program with the model's."""
    model = Lookup(weight=table(), scale=torch.rand(8, 2))
    got, wanted = fuse(model, INDICES).module()(INDICES).dtype, model(INDICES).dtype
    if got != wanted:
        print(f"DEFECT: the model returns {wanted}, the fused program {got}")
        return 1
    print("fixed: the dtype is kept, or the lookup is left alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
