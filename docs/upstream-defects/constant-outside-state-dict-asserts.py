"""A table in a non-persistent buffer ends the whole lowering.

Packed data are written to the state dict only.
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
    """Look rows up in a non-persistent buffer."""

    def __init__(self, weight, **buffers):
        super().__init__(**buffers)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, indices):
        """Dequantize and gather."""
        return torch.nn.functional.embedding(indices, dequantize(self.weight, self.scale))


def main():
    """Run the pass; a table that cannot be fused should be left alone."""
    model = Lookup(table(), scale=torch.rand(8, 2))
    try:
        fuse(model, INDICES)
    except Exception as error:  # noqa: BLE001 - whatever it raises is the defect
        cause = error.__cause__ or error
        print("DEFECT: a table in a non-persistent buffer ends the pass:")
        print(f"{type(cause).__name__}: {str(cause)[:200]}")
        return 1
    print("fixed: a non-persistent table passes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
