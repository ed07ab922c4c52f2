"""A zero point on embedding_4bit ends the whole lowering.

The detector branches on a fake tensor's values.
Exits 1 while the defect is there, 0 once it is fixed. Needs torch, torchao and executorch 1.5.1 only.
"""

import sys
import warnings

import torch
from executorch.backends.vulkan import custom_ops_lib  # noqa: F401 - registers et_vk.embedding_q4gsw
from executorch.backends.vulkan._passes.fuse_patterns import FusePatternsPass
from executorch.backends.vulkan.vulkan_preprocess import apply_passes
from executorch.exir import EdgeCompileConfig, to_edge
from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401 - registers embedding_4bit

warnings.simplefilter("ignore")
INDICES = torch.tensor([0, 3, 1])


def edge(model, *inputs):
    """Export the model and take it to the edge dialect."""
    config = EdgeCompileConfig(_check_ir_validity=False)
    return to_edge(torch.export.export(model, inputs), compile_config=config).exported_program()


def fuse(model, *inputs):
    """Apply the Vulkan backend's own pattern pass."""
    return apply_passes(edge(model, *inputs), [FusePatternsPass()])


class Model(torch.nn.Module):
    """A module whose buffers are given by name."""

    def __init__(self, **buffers):
        super().__init__()
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)


class Packed(Model):
    """quantized_decomposed.embedding_4bit, as ExecuTorch's LLM export writes it."""

    def forward(self, indices):
        """Look up in packed bytes."""
        return torch.ops.quantized_decomposed.embedding_4bit.dtype(
            self.weight, self.scale, self.zero_point, -8, 7, indices, dtype=torch.float32
        )


def main():
    """Run the pass; a table that cannot be fused should be left alone."""
    weight = torch.full((8, 32), 0x88, dtype=torch.uint8)
    model = Packed(weight=weight, scale=torch.rand(8, 2), zero_point=torch.zeros(8, 2))
    try:
        fuse(model, INDICES)
    except Exception as error:  # noqa: BLE001 - whatever it raises is the defect
        cause = error.__cause__ or error
        print("DEFECT: embedding_4bit with a zero point, even one of zeros, ends the pass:")
        print(f"{type(cause).__name__}: {str(cause)[:200]}")
        return 1
    print("fixed: embedding_4bit with a zero point passes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
