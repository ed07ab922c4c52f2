"""A lookup that renormalises its rows (max_norm) ends lowering.

``aten.embedding_renorm`` is neither decomposed nor has it a kernel, so no program with it reaches a runtime.
Exits 1 while the defect is there, 0 once it is fixed. Needs torch and executorch 1.5.1 only.
"""

import sys
import warnings

import torch
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.exir import to_edge_transform_and_lower

warnings.simplefilter("ignore")
INDICES = torch.tensor([0, 3, 1])


class Lookup(torch.nn.Module):
    """Rows of a norm of at most 1."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.rand(8, 64))

    def forward(self, indices):
        """Renormalise what is looked up, and gather; what torch.export makes of F.embedding(max_norm=1.0)."""
        rows = torch.ops.aten.embedding_renorm.default(self.table, indices, 1.0, 2.0)
        return torch.nn.functional.embedding(indices, rows)


def main():
    """Lower it."""
    program = torch.export.export(Lookup(), (INDICES,))
    try:
        to_edge_transform_and_lower(program, partitioner=[VulkanPartitioner()]).to_executorch()
    except Exception as error:  # noqa: BLE001 - whatever a pass raises
        print(f"DEFECT: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
        return 1
    print("fixed: it is lowered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
