"""A lookup that is not fused is delegated as an operator that the runtime lacks.

The Vulkan runtime registers no torchao.dequantize_affine, so loading the method fails on the device.
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
    """A lookup with the bounds -7 and 7, which no pattern takes."""

    def forward(self, indices):
        """Dequantize and gather."""
        bounds = (torch.int8, -7, 7)
        rows = torch.ops.torchao.dequantize_affine(self.weight, [1, 32], self.scale, None, *bounds)
        return torch.nn.functional.embedding(indices, rows)


def main():
    """Lower it and look at what the delegates hold."""
    program = torch.export.export(Lookup(weight=table().clamp(-7, 7), scale=torch.rand(8, 2)), (INDICES,))
    lowered = to_edge_transform_and_lower(program, partitioner=[VulkanPartitioner()]).exported_program()
    held = [
        str(node.target)
        for module in lowered.graph_module.children()
        for node in module.original_module.graph.nodes
        if node.op == "call_function"
    ]
    if any("dequantize_affine" in name for name in held):
        print(f"DEFECT: delegated to Vulkan: {', '.join(held)}")
        return 1
    print("fixed: torchao.dequantize_affine stays outside")
    return 0


if __name__ == "__main__":
    sys.exit(main())
