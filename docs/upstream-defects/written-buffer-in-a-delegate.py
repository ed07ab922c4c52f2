"""A buffer that the program writes to becomes the delegate's own, and its new value one output more of its graph.

The program does not take that output: it hands the delegate a value fewer than the graph has, and nothing is written.
Exits 1 while the defect is there, 0 once it is fixed. Needs torch and executorch 1.5.1 only.
"""

import sys
import warnings

import torch
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.backends.vulkan.serialization.vulkan_graph_serialize import (
    extract_vk_flatbuffer,
    flatbuffer_to_vk_graph,
)
from executorch.exir import to_edge_transform_and_lower

warnings.simplefilter("ignore")


class Counter(torch.nn.Module):
    """Adds a buffer, then doubles it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.ones(64))

    def forward(self, x):
        """Return x plus what the calls before left."""
        y = x + self.state
        self.state.mul_(2)
        return y


def main():
    """Lower it, and count what the delegate's graph takes and gives."""
    program = torch.export.export(Counter(), (torch.rand(4, 64),))
    lowered = to_edge_transform_and_lower(program, partitioner=[VulkanPartitioner()]).exported_program()
    calls = [n for n in lowered.graph.nodes if "executorch_call_delegate" in str(n.target)]
    for call in calls:
        delegate = getattr(lowered.graph_module, call.args[0].target)
        graph = flatbuffer_to_vk_graph(extract_vk_flatbuffer(delegate.processed_bytes))
        holds, handed = len(graph.input_ids) + len(graph.output_ids), len(call.args) - 1 + len(call.users)
        if holds != handed:
            print(f"DEFECT: the delegate's graph has {holds} inputs and outputs, the program hands it {handed} values")
            return 1
    print("fixed: the program hands the delegate what it holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
